"""Maps the columns of a parquet table to fields and checks their types before any row is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow
from pyarrow import types

from scone_pl.data.fields import USUAL_NAMES, FieldNames, advice, shortened_list, unused_images
from scone_pl.data.rows import RowRules, check_rows
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError

IMAGE_COLUMN = "image"
"""Column of the published layout: the reference images followed by the target."""
_KIND_COLUMNS = ("subject_list",)
"""Columns from which the kind of a row is derived."""
_IMAGE_TYPES = "an image is bytes, a path, or a struct of bytes and path as `datasets` writes; or a list of these"


@dataclass(frozen=True)
class Columns:
    """The columns that are read from a file."""

    names: tuple[str, ...]
    """Names of top-level columns."""
    has_image_column: bool
    """Whether `IMAGE_COLUMN` holds references and target."""
    image_is_list: bool = True
    """Whether `IMAGE_COLUMN` is a list; else it holds the target only."""

    @property
    def image_description(self) -> str:
        """Description of `IMAGE_COLUMN` for the log."""
        if self.image_is_list:
            return f"references and target from {IMAGE_COLUMN}"
        return f"target from {IMAGE_COLUMN}, no references"

    def row(self, values: dict[str, Any], where: str) -> dict[str, Any]:
        """The row with `IMAGE_COLUMN` split into references and target.

        Raises:
            BrokenSampleError: there is no image; the message begins with `where`.
        """
        if not self.has_image_column:
            return values
        images = values[IMAGE_COLUMN] if isinstance(values[IMAGE_COLUMN], list) else [values[IMAGE_COLUMN]]
        if not images or images[-1] is None:
            raise BrokenSampleError("missing image", f"{where}: {IMAGE_COLUMN} holds no image")
        rest = {name: value for name, value in values.items() if name != IMAGE_COLUMN}
        return {**rest, "references": images[:-1], "target": images[-1]}


def columns_of(schema: pyarrow.Schema, rules: RowRules, source: str, first: Mapping[str, Any]) -> Columns:
    """Selects the columns to read.

    Args:
        schema: the file's schema.
        rules: how rows are read.
        source: the file, for messages.
        first: its first row; empty if it has none.

    Raises:
        UserError: a column is missing, is duplicated or has an unsupported type; or references are missing while
            columns that look like images are unused.
    """
    names = rules.names
    used = {role: name for role in (*USUAL_NAMES, "key") if (name := _column(schema, names, role)) is not None}
    for role, name in used.items():
        _check_type(schema, role, name, source)
    has_image_column = _has_image_column(schema, names, used, source)
    if has_image_column:
        _check_type(schema, "references", IMAGE_COLUMN, source)
        fields = {**first, "references": [], "target": None}
        unused = [name for name in unused_images(fields, names) if name != IMAGE_COLUMN]
        if unused and not rules.allow_unused_images:
            raise UserError(
                f"{source}: column {IMAGE_COLUMN} is read as references and, last, the target, but there are images in "
                f"{shortened_list(unused)}, too; name columns with --fields.references and --fields.target, or ignore "
                "these with --require_references false"
            )
    if "instruction" not in used:
        missing = [] if has_image_column or "target" in used else [IMAGE_COLUMN]
        hint = advice(dict.fromkeys(schema.names, "") | dict(first), names, "instruction", has_field_options=True)
        raise UserError(f"{source}: no column {', '.join(['instruction', *missing])}; {hint}")
    if not has_image_column and not used.keys() & {"references", "target", "answer"}:
        hint = advice(dict.fromkeys(schema.names) | dict(first), names, "references", has_field_options=True)
        raise UserError(f"{source}: no column {IMAGE_COLUMN}, nor columns of references and target; {hint}")
    if not has_image_column and "references" not in used:
        check_rows([first] if first else [], rules, source)
    read = [
        *used.values(),
        *((IMAGE_COLUMN,) if has_image_column else ()),
        *(name for name in _KIND_COLUMNS if name in schema.names),
    ]
    top = tuple(dict.fromkeys(name if name in schema.names else name.split(".")[0] for name in read))
    if twice := [name for name in top if schema.names.count(name) > 1]:
        raise UserError(f"{source}: column {twice[0]} occurs {schema.names.count(twice[0])} times; rename one")
    image_is_list = has_image_column and _is_list(schema.field(schema.names.index(IMAGE_COLUMN)).type)
    return Columns(top, has_image_column, image_is_list)


def _column(schema: pyarrow.Schema, names: FieldNames, role: str) -> str | None:
    """Name of the column for a field; None if there is none."""
    named: str | None = getattr(names, role)
    if named is not None:
        return named
    return next((name for name in USUAL_NAMES.get(role, ()) if name in schema.names), None)


def _has_image_column(schema: pyarrow.Schema, names: FieldNames, used: Mapping[str, str], source: str) -> bool:
    if IMAGE_COLUMN not in schema.names or IMAGE_COLUMN in used.values() or used.keys() >= {"references", "target"}:
        return False
    for role in ("references", "target"):
        if role in used:
            other = "target" if role == "references" else "references"
            raise UserError(
                f"{source}: {role} are in column {used[role]}, but there is a column {IMAGE_COLUMN}, too; give "
                f"--fields.{other} {IMAGE_COLUMN} if it holds that"
            )
    return True


def _check_type(schema: pyarrow.Schema, role: str, name: str, source: str) -> None:
    type_ = _type_of(schema, name)
    if type_ is None:
        raise UserError(f"{source}: no column {name!r} (--fields.{role}); columns are {shortened_list(schema.names)}")
    checks: dict[str, tuple[Callable[[pyarrow.DataType], bool], str]] = {
        "references": (_is_image, _IMAGE_TYPES),
        "target": (_is_image, _IMAGE_TYPES),
        "candidates": (_is_list, "it must be a list for each reference"),
        "key": (lambda column: _is_text(column) or types.is_integer(column), "it must hold strings or integers"),
    }
    is_valid, requirement = checks.get(role, (_is_text, "it must hold strings"))
    if not is_valid(type_) and not types.is_null(type_):
        text = str(type_)
        text = text if len(text) <= 120 else f"{text[:117]}..."
        raise UserError(f"{source}: column {name} ({role}) has the type {text}; {requirement}")


def _type_of(schema: pyarrow.Schema, name: str) -> pyarrow.DataType | None:
    if name in schema.names:
        return schema.field(schema.names.index(name)).type
    first, *parts = name.split(".")
    if first not in schema.names:
        return None
    type_ = schema.field(schema.names.index(first)).type
    for part in parts:
        if _is_list(type_) and part.isdecimal():
            type_ = type_.value_type
        elif types.is_struct(type_) and type_.get_field_index(part) >= 0:
            type_ = type_.field(part).type
        else:
            return None
    return type_


def _is_list(type_: pyarrow.DataType) -> bool:
    kinds = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
    return any(getattr(types, kind)(type_) for kind in kinds if hasattr(types, kind))


def _is_text(type_: pyarrow.DataType) -> bool:
    type_ = type_.value_type if types.is_dictionary(type_) else type_
    kinds = ("is_string", "is_large_string", "is_string_view")
    return any(getattr(types, kind)(type_) for kind in kinds if hasattr(types, kind))


def _is_bytes(type_: pyarrow.DataType) -> bool:
    type_ = type_.value_type if types.is_dictionary(type_) else type_
    kinds = ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view")
    return any(getattr(types, kind)(type_) for kind in kinds if hasattr(types, kind))


def _is_image(type_: pyarrow.DataType) -> bool:
    if _is_list(type_):
        type_ = type_.value_type
    if types.is_struct(type_):
        parts = {field.name: field.type for field in type_}
        fields = [(check, parts[name]) for name, check in (("bytes", _is_bytes), ("path", _is_text)) if name in parts]
        return bool(fields) and all(check(field) or types.is_null(field) for check, field in fields)
    return _is_bytes(type_) or _is_text(type_)
