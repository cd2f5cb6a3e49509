"""Help on one screen, read from the source of a verb without importing it: torch alone takes seconds to import.

`--help all` shows every option with its type, from jsonargparse.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import scone_pl

if TYPE_CHECKING:
    from scone_pl.cli.command import Command

ROOT = Path(scone_pl.__file__).parent
WIDTH = 110
STAGES = "scone_pl.training.stages"
RECIPE_KEYS = {
    "output_dir": "Folder for all that a run writes.",
    "chain": "Stages that run one after the other, each in a folder of its own under output_dir.",
    "model": "The stage, by its name or class path, and its settings: --model BridgeGuidance.",
    "data": "Training, validation and prediction data, packing, workers.",
    "trainer": "Lightning's Trainer: max_steps, devices, precision, strategy, ...",
    "checkpoint": "When to save a snapshot and which to keep.",
    "previews": "An image grid at each validation.",
    "monitoring": "What TensorBoard shows of the run itself.",
    "ckpt_path": "Snapshot to start from, or of which state to run.",
}
"""Sections of a recipe, the options of fit, validate, test and predict."""


@dataclass(frozen=True)
class Option:
    """A line of help."""

    name: str
    text: str
    default: str | None = None
    """As written in the source; None = required."""

    def line(self, width: int) -> str:
        default = "" if self.default in (None, "None", "False", "") else f" [{self.default}]"
        text = textwrap.shorten(first_sentence(self.text), WIDTH - width - len(default), placeholder=" ...")
        return f"  {self.name:<{width}}  {text}{default}".rstrip()


def short_help(command: Command, prog: str) -> str:
    """Usage, summary and a line for each option of a command."""
    function = _definition(*command.function.split(":"))
    assert isinstance(function, ast.FunctionDef)
    summary = (ast.get_docstring(function) or "").partition("\n\nArgs:")[0]
    options = list(_options(command, function))
    required = [option for option in options if option.default is None]
    others = [option for option in options if option.default is not None]
    names = [
        option.name.removeprefix("--").upper()
        if option.name.removeprefix("--") in command.positional
        else f"{option.name} {option.name.removeprefix('--').upper()}"
        for option in required
    ]
    passed_on = " [-- ARGUMENTS]" if command.behind else " [fit's options]" if command.rest else ""
    lines = [
        f"usage: {' '.join([prog, *names])} [options]{passed_on}",
        "",
        textwrap.fill(" ".join(summary.split()), WIDTH),
    ]
    general = [Option("--config FILE", "YAML file with any of these options."), Option("--help all", "All details.")]
    width = max(len(option.name) for option in (*options, *general))
    for title, shown in (("required", required), ("options", [*others, *general])):
        if shown:
            lines += ["", f"{title}:", *(option.line(width) for option in shown)]
    return "\n".join(lines)


def group_help(prog: str, commands: dict[str, Command]) -> str:
    """The commands of a verb that has several."""
    width = max(map(len, commands))
    lines = [
        f"  {name:<{width}}  {first_sentence(ast.get_docstring(_definition(*command.function.split(':'))) or '')}"
        for name, command in commands.items()
    ]
    return "\n".join([f"usage: {prog} COMMAND [--help] ...", "", *lines])


def recipe_help(verb: str, summary: str) -> str:
    """Help of fit, validate, test and predict: the stages, then the sections of a recipe."""
    stages = [Option(name, text) for name, text in stage_names().items()]
    width = max(map(len, (*RECIPE_KEYS, "--print_config", "--model.help STAGE"))) + 2
    sections = [Option(f"--{key}", text) for key, text in RECIPE_KEYS.items()]
    more = [
        Option("--config FILE", "A recipe; later files override earlier ones, and typed options override both."),
        Option("--model.help STAGE", "Settings of a stage."),
        Option("--print_config", "Print the whole configuration, and stop."),
        Option("--help all", "Every option with its type and default."),
    ]
    return "\n".join(
        [
            f"usage: python -m scone_pl {verb} --config experiments/... [--KEY VALUE] ...",
            "",
            f"{summary[0].upper()}{summary[1:]}. Any key of a recipe is an option: --trainer.max_steps 100.",
            *("", "stages:", *(option.line(width) for option in stages)),
            *("", "sections of a recipe:", *(option.line(width) for option in sections)),
            *("", "options:", *(option.line(width) for option in more)),
        ]
    )


def stage_names() -> dict[str, str]:
    """The stages and what each says of itself, read from the source."""
    classes = [node for node in _tree(STAGES).body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    return {node.name: ast.get_docstring(node) or "" for node in classes}


def first_sentence(text: str) -> str:
    """Without its full stop."""
    text = " ".join(text.split())
    end = re.search(r"(?<!\.)\.(?= |$)", text)
    return text[: end.start()] if end else text


def _options(command: Command, function: ast.FunctionDef) -> Iterator[Option]:
    texts = documented(ast.get_docstring(function) or "")
    arguments = [*function.args.args, *function.args.kwonlyargs]
    first = len(function.args.args) - len(function.args.defaults)
    defaults = [None] * first + [*function.args.defaults, *function.args.kw_defaults]
    own = {argument.arg for argument in arguments}
    for argument, default in zip(arguments, defaults, strict=True):
        shown = None if default is None else _shown(command.function.partition(":")[0], default)
        if argument.arg in (command.rest, command.behind):
            continue
        if argument.arg == command.flat and argument.annotation is not None:
            yield from _fields(command.function.partition(":")[0], ast.unparse(argument.annotation), own)
        elif shown is not None and shown.endswith("()"):
            yield Option(f"--{argument.arg}.KEY", texts.get(argument.arg, ""), "")
        else:
            yield Option(f"--{argument.arg}", texts.get(argument.arg, ""), shown)


def _shown(module: str, default: ast.expr) -> str:
    """A default as text; a constant of the module by its value, what is computed not at all."""
    if isinstance(default, ast.Constant) and isinstance(default.value, str):
        return default.value
    if isinstance(default, ast.Name):
        for node in _tree(_origin(module, default.id)).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == default.id:
                return str(node.value.value) if isinstance(node.value, ast.Constant) else ""
        return ""
    if isinstance(default, ast.Call) and (default.args or default.keywords):
        first = default.args[0] if default.args else None
        return str(first.value) if isinstance(first, ast.Constant) else ""
    return "" if isinstance(default, ast.BinOp) else ast.unparse(default)


def _fields(module: str, name: str, skipped: set[str]) -> Iterator[Option]:
    """The fields of a dataclass that `module` imports."""
    definition = _definition(_origin(module, name), name)
    for node, following in zip(definition.body, [*definition.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id not in skipped:
            text = following.value.value if _is_string(following) else ""  # type: ignore[union-attr]  # a string literal's node
            yield Option(f"--{node.target.id}", str(text), _shown(module, node.value) if node.value else None)


def _is_string(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def documented(docstring: str) -> dict[str, str]:
    """Argument -> text, of a docstring's `Args:`."""
    texts: dict[str, str] = {}
    name, inside = "", False
    for line in docstring.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() and not indent:
            inside = line.strip() == "Args:"
        elif inside and indent == 4 and ": " in line:
            name, _, text = line.strip().partition(": ")
            texts[name] = text
        elif inside and name and line.strip():
            texts[name] += f" {line.strip()}"
    return texts


def _origin(module: str, name: str) -> str:
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            return node.module
    return module


def _definition(module: str, name: str) -> ast.FunctionDef | ast.ClassDef:
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    origin = _origin(module, name)
    if origin == module:
        raise LookupError(f"{module} has no {name}")
    return _definition(origin, name)


@cache
def _tree(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))
