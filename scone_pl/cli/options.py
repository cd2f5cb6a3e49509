"""A verb's arguments, from the signature of its function."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import set_parsing_settings

from scone_pl.cli.parsing import StrictParser, instantiate, parse_quietly

_LISTS = ("--tasks", "--pictures", "--compare")
_SWITCHES = ("--json", "--dry_run")


def parse(verb: str, function: Callable[..., int], args: Sequence[str]) -> dict[str, Any]:
    """What to call `function` with.

    Args:
        verb: for messages.
        function: parameters with a docstring; `extra` is left out.
        args: as typed.

    Raises:
        UserError: an unknown option, a wrong type, something required that is missing.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    summary = (function.__doc__ or "").split("\n")[0]
    parser = StrictParser(prog=f"python -m scone_pl {verb}", description=summary)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_function_arguments(function, as_group=False, skip={"extra"})
    settings = instantiate(parser, parse_quietly(parser, _spelled_out(args)))
    given = settings.as_dict()
    given.pop("config", None)
    return given | ({"judge": settings.judge} if "judge" in given else {})


def _spelled_out(args: Sequence[str]) -> list[str]:
    """As jsonargparse spells it: a list is one JSON text, a switch has a value."""
    spelled: list[str] = []
    rest = list(args)
    while rest:
        arg, equals, value = rest.pop(0).partition("=")
        if arg in _LISTS:
            words = [value] if equals else []
            while rest and not equals and not rest[0].startswith("--"):
                words.append(rest.pop(0))
            if len(words) == 1 and words[0].startswith("["):
                spelled += [arg, words[0]]
            else:
                parts = [part for word in words for part in (word.split(",") if arg == "--tasks" else [word]) if part]
                spelled += [arg, json.dumps(parts)]
        elif arg in _SWITCHES and not equals and (not rest or rest[0] not in ("true", "false")):
            spelled.append(f"{arg}=true")
        else:
            spelled.append(arg + equals + value)
    return spelled
