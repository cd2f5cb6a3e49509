"""A strict jsonargparse parser whose errors are one line: which key, what is wrong, what to write."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import io
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader
from yaml import YAMLError

from scone_pl import deprecated
from scone_pl.cli.help import stage_names
from scone_pl.errors import UserError
from scone_pl.files import check_yaml, read_yaml

_WRAPPERS = (
    re.compile(r"- Expected a path but .*? either not accessible or invalid - (?P<rest>.*)"),
    re.compile(r'Parser key "(?P<key>[^"]+)": (?P<rest>.*)'),
    re.compile(r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - (?P<rest>.*)"),
    re.compile(r"Problem with given class_path '(?P<path>[^']+)': (?P<rest>.*)"),
)
_TAIL = re.compile(r" - Expected a <class 'NoneType'>| Given value")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)|module '.*' has no attribute '(\w+)'")
_LITERAL = re.compile(r"Expected a typing\.Literal\[(.*?)\]")
_CLASS = re.compile(r"\ba <class '([\w.]+)'>")
_UNKNOWN = re.compile(r"Option '(?P<name>[^']+)' is not accepted|does not accept option '(?P<dotted>[^']+)'")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (?P<option>--[^\s=]+)")
_DIGITS = re.compile(r"\d{300,}")
_LONGEST_PATH = 4096
_SECTIONS = {
    "trainer": "lightning.pytorch.Trainer",
    "data": "scone_pl.data.datamodule.PackedDataModule",
    "checkpoint": "scone_pl.training.saving.Saving",
}


def read_renamed_keys() -> None:
    """Makes YAML recipes with deprecated keys load under their present names, wherever jsonargparse reads one."""
    load = get_loader("yaml")
    if getattr(load, "__name__", "") != "_load_renamed":

        def _load_renamed(text: str) -> Any:
            return deprecated.rename_keys(load(text))

        set_loader("yaml", _load_renamed, (YAMLError,))


class StrictParser(ArgumentParser):
    """Takes options by their whole names only: an abbreviation may be a mistyped other option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Arguments: see jsonargparse's `ArgumentParser`."""
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})


def parse_quietly(
    parser: ArgumentParser, args: list[str], subcommands: Mapping[str, ArgumentParser] | None = None
) -> Namespace:
    """Parses; raises a `UserError` of one line where jsonargparse would print a page and exit.

    Args:
        parser: what parses.
        args: as typed.
        subcommands: parsers of the subcommands, from whose options a misspelled one is corrected.
    """
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return parser.parse_args(args)
    except OverflowError as error:
        raise UserError(f"a number in a configuration is too large ({error})") from None
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        message = one_line(messages.getvalue())
        chosen = next((word for word in args if word in (subcommands or {})), None)
        raise UserError(
            message + close_option(message, subcommands[chosen] if subcommands and chosen else parser)
        ) from None


def instantiate(parser: ArgumentParser, settings: Namespace) -> Namespace:
    """Arguments by name, dataclasses built.

    Raises:
        UserError: a section is no mapping, which jsonargparse lets pass.
    """
    try:
        built: Namespace = parser.instantiate_classes(settings)
        return built
    except TypeError as error:
        if "must be a mapping" not in str(error):
            raise
        lists = [name for name, value in vars(settings).items() if isinstance(value, list)]
        raise UserError(f"{' or '.join(lists) or 'a section'}: must be a mapping (`key: value` lines)") from None


def check_typed(args: Sequence[str]) -> None:
    """Checks what must not even be parsed.

    Raises:
        UserError: half a surrogate pair, which no file, log or tokenizer can hold; a number of more digits than any
            option takes, which Python may refuse to convert; or a pipe or device in place of a file, which reading
            might never end.
    """
    for i, arg in enumerate(args):
        name = next((a for a in reversed(args[: i + 1]) if a.startswith("-")), arg).partition("=")[0]
        try:
            os.fsencode(arg)
        except UnicodeEncodeError:
            raise UserError(f"{name:.80}: half a surrogate pair; write characters whole") from None
        if "\0" in arg:
            raise UserError(f"{name:.80}: a null byte, which no path can hold")
        if name == "--instruction":
            continue
        if match := _DIGITS.search(arg):
            raise UserError(f"{name:.80}: a number of {len(match[0])} digits is out of every range")
        value = arg.partition("=")[2] if arg.startswith("-") else arg
        if _is_special(value):
            raise UserError(f"{name:.80}: {value} is not a regular file")
        if "&" in value and "*" in value:  # jsonargparse reads it as YAML
            with contextlib.suppress(YAMLError, RecursionError):
                _check_inline(value, name)
        if name in ("--config", "-c") and os.path.isfile(value):
            _check_recipe(Path(value))


def _check_inline(text: str, name: str) -> None:
    try:
        check_yaml(text)
    except UserError as error:
        raise UserError(f"{name:.80}: {error}") from None


def _check_recipe(file: Path, above: tuple[Path, ...] = ()) -> None:
    """Checks a file of `--config`, and those that its key `config` names.

    Raises:
        UserError: with the file's name, for what jsonargparse takes silently, waits for, or reports without it.
    """
    content = read_yaml(file, dict)
    if not content:
        raise UserError(f"{file}: holds no settings; give `key: value` lines")
    if odd := [key for key in content if not isinstance(key, str)]:
        raise UserError(f"{file}: the key {odd[0]!r} is not a name; write it in quotes if it is one")
    for value in _texts(content):
        for path in (Path(value), file.parent / value):
            if _is_special(str(path)):
                raise UserError(f"{file}: {value} is not a regular file")
    named = content.get("config")
    for name in named if isinstance(named, list) else [named]:
        other = file.parent / name if isinstance(name, str) else None
        if other is not None and other.is_file():
            if other.resolve() in (*above, file.resolve()):
                raise UserError(f"{file}: its `config` {name} includes itself")
            _check_recipe(other, (*above, file.resolve()))


def _texts(content: Any) -> Iterator[str]:
    """All texts in nested lists and mappings that might be paths."""
    if isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _texts(part)
    elif isinstance(content, str) and len(content) < _LONGEST_PATH:
        yield content


def _is_special(path: str) -> bool:
    """Whether there is a pipe, device or socket."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def close_option(message: str, parser: ArgumentParser) -> str:
    """Suggests the option closest to one that the parser does not have."""
    match = _UNRECOGNIZED.search(message)
    options = [option for action in parser._actions for option in action.option_strings]
    close = difflib.get_close_matches(match["option"], options, n=1) if match else []
    return f"; did you mean {close[0]}?" if close else ""


def one_line(report: str) -> str:
    """The innermost error message of a report, with the likeliest key where one is unknown."""
    rest = " ".join(report.rsplit("error: ", 1)[-1].split())
    keys, class_path = [], ""
    while match := next((m for w in _WRAPPERS if (m := w.match(rest))), None):
        parts = match.groupdict()
        keys += [parts["key"]] if "key" in parts else []
        class_path = parts.get("path", class_path)
        rest = parts["rest"]
    rest = _plain_types(_TAIL.split(rest)[0])
    where = f"{'.'.join(keys)}: " if keys else ""
    if missing := _NO_CLASS.match(rest):
        if keys[-1:] and keys[-1].removeprefix("data.") in ("train", "val", "test", "predict"):
            return f"{where}a data set is written {{path: {missing[1] or missing[2]}}}"
        return f"{where}{_no_class(missing[1] or missing[2], is_stage=keys[-1:] == ['model'])}"
    return f"{where}{rest}{_suggestion(rest, class_path)}"


def _no_class(name: str, *, is_stage: bool) -> str:
    if not is_stage:
        return f"no class {name}; give its class path, package.module.Class"
    stages = list(stage_names())
    close = difflib.get_close_matches(name.rpartition(".")[2], stages, n=1, cutoff=0.5)
    return f"no stage {name}; {f'did you mean {close[0]}?' if close else 'choose from ' + ', '.join(stages)}"


def _plain_types(message: str) -> str:
    """Python's spelling of types in plain words."""
    message = _LITERAL.sub(r"Must be one of \1", message)
    return _CLASS.sub(lambda match: f"{'an' if match[1][0] in 'aeiou' else 'a'} {match[1]}", message)


def _suggestion(message: str, class_path: str) -> str:
    match = _UNKNOWN.search(message)
    if not match:
        return ""
    name = match["name"] or match["dotted"]
    section, _, inner = name.partition(".")
    if match["dotted"] and section in _SECTIONS and inner:
        class_path, name = _SECTIONS[section], inner
    close = difflib.get_close_matches(name, _parameters(class_path), n=1)
    return f"; did you mean '{close[0]}'?" if close else "; --help and --model.help CLASS list what there is"


def _parameters(class_path: str) -> list[str]:
    if not class_path:
        return [
            "trainer",
            "model",
            "data",
            "output_dir",
            "chain",
            "checkpoint",
            "previews",
            "monitoring",
            "ckpt_path",
            "seed_everything",
        ]
    module, _, name = class_path.rpartition(".")
    module = module or "scone_pl.training.stages"  # a stage by its short name
    described = getattr(importlib.import_module(module), name)
    names: list[str] = []
    for owner in described.__mro__:
        if "__init__" in vars(owner):
            names += list(inspect.signature(owner.__init__).parameters)
    return names
