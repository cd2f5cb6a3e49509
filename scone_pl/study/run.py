"""One run of one arm: `fit` with the arm's settings, then its evaluations; a JSON file marks it as finished."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scone_pl.checkpoints.folder import is_checkpoint_folder
from scone_pl.errors import UserError
from scone_pl.evaluation.evaluator import Evaluator, digest
from scone_pl.files import read_json, read_text, write_json
from scone_pl.study.spec import MINI, Study, merged, merged_files
from scone_pl.study.training import Fit, check_start, commit, last_step, read_starts, starts_of, train, versions

ROOT = Path("runs/evidence")


def root_of(study: Study) -> Path:
    """Folder of all runs at a study's scale."""
    return ROOT if study.scale == MINI else ROOT / study.scale


def folder_of(study: Study, arm: str, seed: int, *, quick: bool = False) -> Path:
    """A run's folder; other settings or other starting weights make another folder.

    Raises:
        UserError: the weights that it starts from are missing.
    """
    from scone_pl.training.runs import weights_identity

    origin = start_of(study, arm, seed, quick=quick)
    if not is_checkpoint_folder(origin):
        raise UserError(
            f"{study.name} {arm}: no weights in {origin}; `study run` first runs what `prepare`, `init_of` and "
            "`weights_of` name, but `init_from` and `weights` must exist"
        )
    identity = study.identity(arm, weights_identity(origin), quick=quick)
    return root_of(study) / study.name / f"{arm}-{identity}" / f"seed{seed}"


def result_file(study: Study, folder: Path, *, quick: bool = False) -> Path:
    """The file in a run's `folder` that marks it as finished; other evaluations make another file."""
    return folder / f"result-{study.evaluations_identity(quick=quick)}.json"


def origin_of(study: Study, arm: str) -> tuple[str, ...]:
    """(study, arm) or (study, arm, step) whose run of the same seed made `start_of`; () if none did."""
    chosen = study.arm(arm)
    return () if chosen.weights else chosen.weights_of or study.init_of


def start_of(study: Study, arm: str, seed: int, *, quick: bool = False) -> Path:
    """The weights that a run starts from or, where nothing is trained, evaluates."""
    if not (origin := origin_of(study, arm)):
        return Path(study.arms[arm].weights or study.init_from)
    other, name, *step = origin
    source = study.other(other)
    return trained_weights(source, name, folder_of(source, name, seed, quick=quick), *step)


def trained_weights(study: Study, arm: str, folder: Path, step: str = "") -> Path:
    """The result of a run in `folder`, or of a `step` of its chain."""
    if not study.arm(arm).trained:
        raise UserError(f"{study.name} {arm} trains nothing; name the arm that does")
    chain = study.recipe_of(arm).get("chain")
    return folder / "fit" / (step or chain[-1]["name"]) / "weights" if chain else folder / "fit" / "weights"


def _whole(study: Study, arm: str, *, quick: bool = False) -> dict[str, Any]:
    """Recipes and settings as one."""
    return merged(merged_files(study.recipes_of(arm)), study.settings_of(arm, 0, quick=quick))


def check_evaluations(study: Study, arms: Sequence[str], *, quick: bool = False) -> None:
    """Raises `UserError` if an evaluation does not apply to one of `arms`."""
    for arm in arms:
        chosen = study.arm(arm)
        if chosen.weights or chosen.untrained:
            continue  # known when the weights are read
        origin, name, *step = chosen.weights_of or (study.name, arm)
        settings = last_step(_whole(study.other(origin), name, quick=quick), *step)["model"].get("init_args", {})
        bridge = settings.get("bridge") if settings.get("mask_sampling") else None
        for key, evaluation in study.evaluations.items():
            evaluation.check(bridge, f"{study.name} {arm}, evaluations.{key}")


def command_line(study: Study, arm: str, seed: int, folder: Path, *, quick: bool = False) -> list[str]:
    """The `fit` command that trains a run."""
    # As text: of a chain every step reads them again, and a file may be edited in the meantime.
    recipes = [part for recipe in study.recipes_of(arm) for part in ("--config", read_text(Path(recipe)))]
    overlay = json.dumps(study.settings_of(arm, seed, quick=quick))
    origin = start_of(study, arm, seed, quick=quick)
    tail = ["--model.init_args.init_from", str(origin), "--output_dir", str(folder / "fit")]
    return ["fit", *recipes, "--config", overlay, *tail]


def prepare(study: Study, fit: Fit) -> None:
    """Runs the recipes that the study builds on; a finished one returns at once."""
    for recipes in study.prepare:
        whole = merged_files(tuple(recipes.split()))
        folder = Path(whole["output_dir"])
        command = ["fit", *(part for recipe in recipes.split() for part in ("--config", recipe))]
        weights = folder / whole["chain"][-1]["name"] / "weights"
        train(fit, command, whole, folder, weights, arguments=study.overrides.fit)


def check_folder(study: Study, arm: str, folder: Path, *, quick: bool = False) -> None:
    """`training.check_start` of an arm's `folder`."""
    if study.arms[arm].trained:
        check_start(_whole(study, arm, quick=quick), folder)


def run(study: Study, arm: str, seed: int, *, fit: Fit, quick: bool = False, expected: Path | None = None) -> Path:
    """Trains what is to be trained, evaluates, writes the result; returns its file. An interrupted run resumes.

    Args:
        study: as read.
        arm: its name.
        seed: of the run.
        fit: the verb.
        quick: see `Study.quick`.
        expected: the result's file as the caller knows it.

    Raises:
        UserError: it would be another file than `expected`; or see `train` and `Evaluator.evaluate`.
    """
    import torch

    if study.threads:
        torch.set_num_threads(study.threads)
    folder = folder_of(study, arm, seed, quick=quick)
    file = result_file(study, folder, quick=quick)
    if expected is not None and file != expected:
        raise UserError(f"{study.name} {arm}: recipes, evaluations or code changed since the start; start it again")
    if file.is_file():
        return file
    weights = start_of(study, arm, seed, quick=quick)
    if study.arms[arm].trained:
        weights = trained_weights(study, arm, folder)
        command = command_line(study, arm, seed, folder, quick=quick)
        train(fit, command, _whole(study, arm, quick=quick), folder, weights, arguments=study.overrides.fit)
    reports = reports_of(study, arm, seed, quick=quick)
    made = {
        name: _evaluated(one, weights, reports, folder / "evaluations" / name)
        for name, one in study.evaluations_of(quick=quick).items()
    }
    versions_of = [one["versions"] for one in made.values()]
    result = {
        "study": study.name,
        "arm": arm,
        "seed": seed,
        "quick": quick,
        "settings": study.settings_of(arm, seed, quick=quick),
        "recipes": list(study.recipes_of(arm)),
        "fit": list(study.overrides.fit),
        "weights": str(weights),
        "training": _training_of(weights),
        "trained": starts_of(weights),
        "evaluations": {name: one["report"] for name, one in made.items()},
        "seconds": {"training": _training_seconds(folder), "evaluation": sum(one["seconds"] for one in made.values())},
        "commit": ", ".join(dict.fromkeys(one["commit"] for one in made.values())),
        "versions": {
            name: ", ".join(dict.fromkeys(one[name] for one in versions_of if name in one))
            for name in dict.fromkeys(name for one in versions_of for name in one)
        },
    }
    write_json(result, file)
    return file


def reports_of(study: Study, arm: str, seed: int, *, quick: bool = False) -> Path:
    """Folder of the reports on the weights of a run: studies that evaluate the same ones share them.

    A study that compares costs has its own, since those depend on what else the machine does.
    """
    run = (study, arm)
    if not study.arm(arm).trained and (origin := origin_of(study, arm)) and not study.frontier:
        run = (study.other(origin[0]), origin[1])
    return folder_of(*run, seed, quick=quick) / "evaluations"


def _evaluated(evaluation: Evaluator, weights: Path, reports: Path, folder: Path) -> dict[str, Any]:
    """`report` of an evaluation, the `seconds` it took, `commit` and `versions` that made it; kept in `reports`.

    So an interrupted run goes on with the next evaluation, and a study that gains one makes only that. The evaluation
    itself works in `folder`. Weights that were trained again are evaluated again.
    """
    from scone_pl.training.runs import weights_identity

    file = reports / f"report-{digest([evaluation.identity, weights_identity(weights)])}.json"
    if file.is_file():
        return read_json(file, dict)
    began, made_by = time.perf_counter(), {"commit": commit(), "versions": versions()}
    report = evaluation.evaluate(weights, folder)
    made = {"report": report, "seconds": time.perf_counter() - began, **made_by}
    write_json(made, file)
    return made


def _training_seconds(folder: Path) -> float:
    """Of all starts; of a run from before they were recorded, as its first result says."""
    if starts := read_starts(folder):
        return float(sum(start["seconds"] for start in starts))
    results = [read_json(file, dict) for file in folder.glob("result-*.json")]
    return max((result["seconds"]["training"] for result in results), default=0.0)


def _training_of(weights: Path) -> Mapping[str, Any]:
    file = weights / "training.json"
    return read_json(file, dict) if file.is_file() else {}
