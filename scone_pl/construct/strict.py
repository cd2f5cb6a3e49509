"""Mappings from YAML as dataclasses: every key is known and of its type, or refused in one line."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from scone_pl.errors import UserError

T = TypeVar("T")


def build(kind: type[T], content: Any, where: str) -> T:
    """An instance of a dataclass.

    Args:
        kind: the dataclass.
        content: its fields.
        where: file and key, for messages.

    Raises:
        UserError: no mapping; an unknown or missing key, or a value of another type.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: must be a mapping of settings, not {content!r:.60}")
    hints = get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]  # kind is a dataclass
    for name in content:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}"
            raise UserError(f"{where}: unknown key {name!s:.60}; {hint}")
    missing = dataclasses.MISSING
    for name, f in known.items():
        if name not in content and f.default is missing and f.default_factory is missing:
            raise UserError(f"{where}: {name} is missing")
    values = {name: converted(value, hints[name], f"{where}: {name}") for name, value in content.items()}
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def converted(value: Any, hint: Any, where: str) -> Any:
    """A value as the type `hint`: a YAML list as a tuple, a whole number as a float, a mapping as a dataclass.

    Raises:
        UserError: it is of another type.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else converted(value, next(h for h in inner if h is not type(None)), where)
    if origin is Literal:
        if value not in inner:
            raise UserError(f"{where} is {value!r:.60}; choose from {', '.join(map(str, inner))}")
        return value
    if origin is tuple:
        values = [value] if isinstance(value, str | int | float) else value
        if not isinstance(values, list | tuple):
            raise UserError(f"{where} is {value!r:.60}; it must be a list")
        return tuple(converted(one, inner[0], where) for one in values)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else build(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return value
    plain = origin or hint
    if plain is Any:
        return value
    if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
        names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}
        raise UserError(f"{where} is {value!r:.60}; it must be {names.get(plain, plain.__name__)}")
    return value
