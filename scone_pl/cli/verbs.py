"""The verbs of `python -m scone_pl`, each the function that it calls."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from scone_pl import __version__, deprecated, messages
from scone_pl.cli.command import HELP, PROG, Command, help_wanted, run_command
from scone_pl.cli.help import group_help, recipe_help
from scone_pl.errors import UserError


@dataclass(frozen=True)
class Verb:
    """One command, several commands, or a recipe that LightningCLI runs (neither)."""

    summary: str
    command: Command | None = None
    commands: dict[str, Command] = field(default_factory=dict)


def _of(module: str, *names: str, **options: object) -> dict[str, Command]:
    return {name: Command(f"scone_pl.cli.{module}:{name}", **options) for name in names}  # type: ignore[arg-type]  # options of Command


_JUDGES = (("judge", "scone_pl.evaluation.presets:judge_settings"),)
VERBS = {
    "init": Verb(
        "start a project of your own: recipes, a Makefile, a README",
        Command("scone_pl.cli.project:init", positional=("folder",)),
    ),
    "demo": Verb(
        "train both stages in the mini-world and score them, in minutes on two cores",
        Command("scone_pl.cli.project:demo"),
    ),
    "fit": Verb("train a stage, or a chain of stages"),
    "validate": Verb("loss on the validation data"),
    "test": Verb("loss on the test data"),
    "predict": Verb("generate an image for every sample of the prediction data"),
    "export": Verb(
        "a run's weights as a checkpoint folder in the published layout",
        Command("scone_pl.cli.export:export", positional=("checkpoint", "output")),
    ),
    "estimate": Verb(
        "memory, time and cost of a recipe on given GPUs", Command("scone_pl.cli.estimate:estimate", rest="recipe")
    ),
    "latents": Verb(
        "encode a recipe's training images once, beside its data sets",
        Command("scone_pl.cli.latents:latents", rest="recipe"),
    ),
    "generate": Verb(
        "one image from reference images and an instruction",
        Command("scone_pl.cli.generate:generate", flat="settings"),
    ),
    "download": Verb(
        "published weights or data sets from the Hugging Face hub",
        Command("scone_pl.cli.download:download", positional=("repository",)),
    ),
    "evaluate": Verb(
        "a benchmark: generate, judge, tables",
        Command("scone_pl.cli.evaluate:evaluate", flat="selection", behind="extra", presets=_JUDGES),
    ),
    "judge": Verb(
        "have a benchmark's images judged",
        Command("scone_pl.cli.evaluate:judge", flat="selection", presets=_JUDGES),
    ),
    "tables": Verb("tables of judged images beside the paper's", Command("scone_pl.cli.evaluate:tables")),
    "agreement": Verb(
        "how far two judges, or a judge and people, agree on the same images",
        Command("scone_pl.cli.agreement:agreement"),
    ),
    "study-page": Verb(
        "one page on which people choose the best image, blind", Command("scone_pl.cli.blind_study:study_page")
    ),
    "study-choices": Verb(
        "how often people chose each model, and how far the judge agrees",
        Command("scone_pl.cli.blind_study:study_choices"),
    ),
    "similarity": Verb(
        "DINO, CLIP-I and CLIP-T of generated images, without a judge",
        Command("scone_pl.cli.similarity:similarity"),
    ),
    "shards": Verb(
        "convert, verify and describe data sets",
        commands={
            "convert": Command("scone_pl.cli.shards:convert", positional=("source", "output"), flat="config"),
            **_of("shards", "verify", "stats", positional=("folder",)),
        },
    ),
    "construct": Verb(
        "make training data from pools of images: filter, score, compose, verify",
        commands={
            **_of("construct", "plan", "run", "status", "sheet", "merge", flat="settings"),
            **_of("construct", "demo"),
        },
    ),
    "layers": Verb(
        "which decoder layer the bridge should read, with and without labels", Command("scone_pl.cli.layers:layers")
    ),
    "app": Verb("a page in the browser that shows the bridge at work", Command("scone_pl.cli.app:app")),
    "parity": Verb(
        "compare with numbers that the published implementation computed",
        Command("scone_pl.parity:parity", positional=("folder",)),
    ),
    "study": Verb(
        "a question as a YAML file: arms, seeds, evaluations, intervals, page",
        commands={
            **_of("study", "run", "plan", "status", positional=("study",), flat="selection", behind="fit"),
            "page": Command("scone_pl.cli.study:page"),
            "arm": Command("scone_pl.cli.study:arm", positional=("study", "arm"), behind="fit"),
        },
    ),
    "mini": Verb(
        "the mini-world: shards, base weights, exact evaluation, images",
        commands={
            **_of("mini", "shards", "base", "report"),
            **_of("mini", "evaluate", "contact_sheet", flat="settings"),
        },
    ),
    "icons": Verb(
        "world 2, natural subjects off the grid: shards, base weights, autoencoder, evaluation, images",
        commands={
            **_of("icons", "shards", "base", "autoencoder", "judge", "label_images", "agreement"),
            **_of("icons", "evaluate", "contact_sheet", flat="settings"),
        },
    ),
}


def run(args: Sequence[str]) -> int:
    """Runs a verb.

    Args:
        args: the verb, and what was typed after it.

    Returns:
        The exit status.

    Raises:
        UserError: anything that the user can correct.
    """
    if not args or args[0] in HELP:
        print(usage())
        return 0
    if "--version" in args[:2]:
        print(f"scone_pl {__version__}")
        return 0
    name, *rest = deprecated.rename_command(args)
    if name not in VERBS:
        raise UserError(f"no verb {name}; {_suggestion(name, VERBS)}")
    messages.configure()
    verb = VERBS[name]
    if verb.command is not None:
        return run_command(verb.command, name, rest)
    if verb.commands:
        return _run_group(name, verb.commands, rest)
    if help_wanted(rest) == "short":
        print(recipe_help(name, verb.summary))
        return 0
    from scone_pl.cli.parsing import check_typed

    check_typed(rest)
    recipes = importlib.import_module("scone_pl.cli.stages")
    return int(recipes.main([name, *rest]))


def usage() -> str:
    """All verbs."""
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join([f"usage: {PROG} VERB [--help | --help all | --version] ...", "", *lines])


def _run_group(name: str, commands: dict[str, Command], args: list[str]) -> int:
    if not args or args[0] in HELP:
        print(group_help(f"{PROG} {name}", commands))
        return 0
    command = commands.get(args[0])
    if command is None:
        raise UserError(f"{name} has no command {args[0]}; {_suggestion(args[0], commands)}")
    return run_command(command, f"{name} {args[0]}", args[1:])


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}"
