"""Which columns of a parquet table are read as what, checked by their types before any row is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow
from pyarrow import types

from scone_pl.data.fields import KNOWN, FieldNames, advice, short_list, unused_images
from scone_pl.data.rows import RowRules, check_rows
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError

JOINED = "image"
"""Column of the published layout: the reference images and, last, the target."""
_OTHERS = ("subject_list",)
"""Columns that say something about the kind of a row."""
_READABLE = "an image is bytes, a path, or a struct of bytes and path as `datasets` writes; or a list of such"


@dataclass(frozen=True)
class Columns:
    """What is read of a file."""

    names: tuple[str, ...]
    """Top-level columns."""
    joined: bool
    """Whether `JOINED` holds references and target."""
    several: bool = True
    """Whether `JOINED` is a list; else it holds the target alone."""

    @property
    def image_words(self) -> str:
        """What `JOINED` holds, in words."""
        return f"references and target from {JOINED}" if self.several else f"target from {JOINED}, no references"

    def row(self, values: dict[str, Any], where: str) -> dict[str, Any]:
        """The row with references and target apart.

        Raises:
            BrokenSampleError: there is no image; the message begins with `where`.
        """
        if not self.joined:
            return values
        images = values[JOINED] if isinstance(values[JOINED], list) else [values[JOINED]]
        if not images or images[-1] is None:
            raise BrokenSampleError("missing image", f"{where}: {JOINED} holds no image")
        rest = {name: value for name, value in values.items() if name != JOINED}
        return {**rest, "references": images[:-1], "target": images[-1]}


def columns_of(schema: pyarrow.Schema, rules: RowRules, source: str, first: Mapping[str, Any]) -> Columns:
    """Decides what to read.

    Args:
        schema: of the file.
        rules: as asked for.
        source: the file, for messages.
        first: its first row, or nothing.

    Raises:
        UserError: a column is missing, is there twice, or has a type that cannot be read; or columns that look like
            images would stay unused while references are missing.
    """
    names = rules.names
    used = {role: name for role in (*KNOWN, "key") if (name := _column(schema, names, role)) is not None}
    for role, name in used.items():
        _check_type(schema, role, name, source)
    joined = _is_joined(schema, names, used, source)
    if joined:
        _check_type(schema, "references", JOINED, source)
        known = {**first, "references": [], "target": None}
        unused = [name for name in unused_images(known, names) if name != JOINED]
        if unused and not rules.allow_unused_images:
            raise UserError(
                f"{source}: column {JOINED} is read as references and, last, the target, but there are images in "
                f"{short_list(unused)}, too; name columns with --fields.references and --fields.target, or leave that "
                "unused with --require_references false"
            )
    if "instruction" not in used:
        missing = [] if joined or "target" in used else [JOINED]
        told = advice(dict.fromkeys(schema.names, "") | dict(first), names, "instruction", can_be_named=True)
        raise UserError(f"{source}: no column {', '.join(['instruction', *missing])}; {told}")
    if not joined and not used.keys() & {"references", "target", "answer"}:
        told = advice(dict.fromkeys(schema.names) | dict(first), names, "references", can_be_named=True)
        raise UserError(f"{source}: no column {JOINED}, nor columns of references and target; {told}")
    if not joined and "references" not in used:
        check_rows([first] if first else [], rules, source)
    read = [*used.values(), *((JOINED,) if joined else ()), *(name for name in _OTHERS if name in schema.names)]
    top = tuple(dict.fromkeys(name if name in schema.names else name.split(".")[0] for name in read))
    if twice := [name for name in top if schema.names.count(name) > 1]:
        raise UserError(f"{source}: column {twice[0]} is there {schema.names.count(twice[0])} times; rename one")
    several = joined and _is_list(schema.field(schema.names.index(JOINED)).type)
    return Columns(top, joined, several)


def _column(schema: pyarrow.Schema, names: FieldNames, role: str) -> str | None:
    """Name of the column for a field, None if there is none."""
    named = getattr(names, role)
    if named is not None:
        return named
    return next((name for name in KNOWN.get(role, ()) if name in schema.names), None)


def _is_joined(schema: pyarrow.Schema, names: FieldNames, used: Mapping[str, str], source: str) -> bool:
    if JOINED not in schema.names or JOINED in used.values() or used.keys() >= {"references", "target"}:
        return False
    for role in ("references", "target"):
        if role in used:
            other = "target" if role == "references" else "references"
            raise UserError(
                f"{source}: {role} are in column {used[role]}, but there is a column {JOINED}, too; give "
                f"--fields.{other} {JOINED} if it holds that"
            )
    return True


def _check_type(schema: pyarrow.Schema, role: str, name: str, source: str) -> None:
    found = _type_of(schema, name)
    if found is None:
        raise UserError(f"{source}: no column {name!r} (--fields.{role}); columns are {short_list(schema.names)}")
    checks: dict[str, tuple[Callable[[pyarrow.DataType], bool], str]] = {
        "references": (_holds_images, _READABLE),
        "target": (_holds_images, _READABLE),
        "candidates": (_is_list, "it must be a list for each reference"),
        "key": (lambda one: _is_text(one) or types.is_integer(one), "it must hold texts or whole numbers"),
    }
    fits, what = checks.get(role, (_is_text, "it must hold texts"))
    if not fits(found) and not types.is_null(found):
        text = str(found)
        text = text if len(text) <= 120 else f"{text[:117]}..."
        raise UserError(f"{source}: column {name} ({role}) has the type {text}; {what}")


def _type_of(schema: pyarrow.Schema, name: str) -> pyarrow.DataType | None:
    if name in schema.names:
        return schema.field(schema.names.index(name)).type
    first, *parts = name.split(".")
    if first not in schema.names:
        return None
    found = schema.field(schema.names.index(first)).type
    for part in parts:
        if _is_list(found) and part.isdecimal():
            found = found.value_type
        elif types.is_struct(found) and found.get_field_index(part) >= 0:
            found = found.field(part).type
        else:
            return None
    return found


def _is_list(found: pyarrow.DataType) -> bool:
    kinds = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
    return any(getattr(types, kind)(found) for kind in kinds if hasattr(types, kind))


def _is_text(found: pyarrow.DataType) -> bool:
    found = found.value_type if types.is_dictionary(found) else found
    kinds = ("is_string", "is_large_string", "is_string_view")
    return any(getattr(types, kind)(found) for kind in kinds if hasattr(types, kind))


def _is_bytes(found: pyarrow.DataType) -> bool:
    found = found.value_type if types.is_dictionary(found) else found
    kinds = ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view")
    return any(getattr(types, kind)(found) for kind in kinds if hasattr(types, kind))


def _holds_images(found: pyarrow.DataType) -> bool:
    if _is_list(found):
        found = found.value_type
    if types.is_struct(found):
        parts = {field.name: field.type for field in found}
        known = [(fits, parts[name]) for name, fits in (("bytes", _is_bytes), ("path", _is_text)) if name in parts]
        return bool(known) and all(fits(one) or types.is_null(one) for fits, one in known)
    return _is_bytes(found) or _is_text(found)
