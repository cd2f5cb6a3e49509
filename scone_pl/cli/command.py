"""Turns a typed function into a command: options from its signature, help from its docstring, one line per error.

The same for every verb: whole option names only, a suggestion for a misspelled one, `--config FILE` with any of the
options, switches without a value, lists by repetition or several words, deprecated names with a warning.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from scone_pl import deprecated
from scone_pl.cli.help import short_help
from scone_pl.errors import UserError

if TYPE_CHECKING:
    from scone_pl.cli.parsing import StrictParser

PROG = "python -m scone_pl"
HELP = ("--help", "-h")


@dataclass(frozen=True)
class Command:
    """A function and how its arguments are typed."""

    function: str
    """`module:name`; the module is imported when the command runs, not for its short help."""
    positional: tuple[str, ...] = ()
    """Parameters that may be typed without their names, in this order."""
    flat: str = ""
    """Parameter of a dataclass whose fields are options of the command itself."""
    rest: str = ""
    """`list[str]` parameter that receives every option which the function does not have."""
    behind: str = ""
    """`list[str]` parameter that receives what is typed after a lone `--`."""
    presets: tuple[tuple[str, str], ...] = ()
    """Parameters of a dataclass, each with `module:name` of a function from the name of a preset to its settings."""

    @property
    def skipped(self) -> set[str | int]:
        """Parameters that are no options."""
        return {name for name in (self.flat, self.rest, self.behind) if name}

    def load(self) -> Callable[..., int | None]:
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]  # by name


def run_command(command: Command, name: str, args: Sequence[str]) -> int:
    """Parses what was typed after a verb and calls its function.

    Args:
        command: the verb.
        name: as typed after `python -m scone_pl`.
        args: after the name.

    Returns:
        The exit status; 0 if the function returns None.

    Raises:
        UserError: what was typed does not fit the function's signature.
    """
    typed, behind = _split(args)
    help_form = help_wanted(typed)
    if help_form == "short":
        print(short_help(command, f"{PROG} {name}"))
        return 0
    from scone_pl.cli.parsing import check_typed, instantiate, parse_quietly  # not for short help: imports jsonargparse

    check_typed(args)
    function = command.load()
    parser, flat = _parser(command, function, f"{PROG} {name}")
    if help_form == "all":
        print(parser.format_help(), end="")
        return 0
    if behind is not None and not command.behind:
        raise UserError(f"{name}: nothing is passed on, so nothing may follow --")
    typed = deprecated.rename_options(typed, name)
    spelled, rest = _spell(_with_presets(typed, command), _kinds(parser), command)
    settings = vars(instantiate(parser, parse_quietly(parser, spelled)))
    settings.pop("config", None)
    if flat is not None:
        names = [f.name for f in dataclasses.fields(flat) if f.name in settings and f.name not in _parameters(function)]
        settings[command.flat] = flat(**{field: settings.pop(field) for field in names})
    if command.rest:
        settings[command.rest] = rest
    if command.behind:
        settings[command.behind] = behind or []
    return function(**settings) or 0


def help_wanted(args: Sequence[str]) -> str:
    """`short`, `all` (after --help) or nothing."""
    for position, arg in enumerate(args):
        if arg in HELP:
            return "all" if list(args[position + 1 : position + 2]) == ["all"] else "short"
        if arg == "--help=all":
            return "all"
    return ""


def separated(words: list[str] | None) -> list[str] | None:
    """Names that are typed as several words or with commas: `a,b c` is three."""
    return None if words is None else [name for word in words for name in word.split(",") if name]


def _split(args: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """What comes before and after a lone --; None = there is none."""
    if "--" not in args:
        return list(args), None
    at = list(args).index("--")
    return list(args[:at]), list(args[at + 1 :])


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(get_type_hints(function)) - {"return"}


@functools.cache
def _parser(command: Command, function: Callable[..., Any], prog: str) -> tuple[StrictParser, Any]:
    """The parser, and the class of `command.flat`."""
    from jsonargparse import set_parsing_settings

    from scone_pl.cli.parsing import StrictParser

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = StrictParser(prog=prog, description=(function.__doc__ or "").split("\n")[0])
    if not command.rest:
        parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_function_arguments(function, as_group=False, as_positional=False, skip=command.skipped)
    if not command.flat:
        return parser, None
    flat = get_type_hints(function)[command.flat]
    parser.add_class_arguments(
        flat, as_group=False, skip={f.name for f in dataclasses.fields(flat) if f.name in _parameters(function)}
    )
    return parser, flat


def _kinds(parser: StrictParser) -> dict[str, str]:
    """Option -> `switch`, `list` or `value`."""
    kinds: dict[str, str] = {}
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        kind = "switch" if hint is bool else "list" if any(get_origin(one) is list for one in options) else "value"
        kinds |= dict.fromkeys(action.option_strings, kind)
    return kinds


def _with_presets(args: Sequence[str], command: Command) -> list[str]:
    """`--judge NAME` as the settings that it stands for, before everything else, so that what is typed wins.

    Raises:
        UserError: no name, or an unknown one.
    """
    words, first = list(args), []
    for parameter, function in command.presets:
        option = f"--{parameter}"
        while at := next((i + 1 for i, word in enumerate(words) if word.partition("=")[0] == option), 0):
            _, equals, name = words.pop(at - 1).partition("=")
            if not equals:
                if at > len(words) or words[at - 1].startswith("--"):
                    raise UserError(f"{option}: give the name of a preset, or a YAML file")
                name = words.pop(at - 1)
            module, _, attribute = function.partition(":")
            settings = getattr(importlib.import_module(module), attribute)(name)
            first += [f"{option}.{key}={_as_word(value)}" for key, value in settings.items()]
    return [*first, *words]


def _as_word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _with_underscores(option: str, kinds: dict[str, str]) -> str:
    """An option that was typed with dashes within its name, as it is defined."""
    spelled = f"--{option[2:].replace('-', '_')}" if option.startswith("--") else option
    return spelled if option not in kinds and spelled in kinds else option


def _spell(args: Sequence[str], kinds: dict[str, str], command: Command) -> tuple[list[str], list[str]]:
    """What jsonargparse expects: a switch has a value, a list is one JSON text, everything has a name.

    Returns:
        The function's options, and all others where the command passes them on.
    """
    spelled: list[str] = []
    rest: list[str] = []
    lists: dict[str, list[str]] = {}
    positional = list(command.positional)
    words = list(args)
    while words:
        option, equals, value = words.pop(0).partition("=")
        option = _with_underscores(option, kinds)
        if not option.startswith("--"):
            name = f"--{positional.pop(0)}=" if positional else ""
            spelled.append(f"{name}{option}{equals}{value}")
            continue
        values = [value] if equals else []
        kind = kinds.get(option, "other")
        passed_on = kind == "other" and command.rest and option.partition(".")[0] not in kinds
        if not equals and words and kind == "switch":
            values = [words.pop(0)] if words[0] in ("true", "false") else []
        elif not equals and words and not words[0].startswith("--"):
            values = [words.pop(0)]
            while kind == "list" and not positional and words and not words[0].startswith("--"):
                values.append(words.pop(0))
        if kind == "list":
            if "" in values:
                raise UserError(f"{option}: one of its values is empty")
            lists.setdefault(option, []).extend(values)
        elif kind == "switch":
            spelled.append(f"{option}={values[0] if values else 'true'}")
        else:
            joined = equals or (kind == "value" and bool(values) and values[0].startswith("-"))
            one = [f"{option}={values[0]}"] if joined else [option, *values]
            (rest if passed_on else spelled).extend(one)
    for option, values in lists.items():
        whole = len(values) == 1 and values[0].lstrip().startswith("[")
        spelled.append(f"{option}={values[0] if whole else json.dumps(values)}" if values else option)
    return spelled, rest
