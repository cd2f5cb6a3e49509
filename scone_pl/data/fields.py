"""Names of the fields in users' records: one table for JSON rows and parquet columns, shared by all commands.

If a row has several names of one field, the first in the table with a non-empty value is read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "references": ("references", "image_paths", "input_images", "image_path", "input_image", "images"),
    "target": ("target", "image_tgt_path", "output_image", "target_image", "target_path"),
    "instruction": ("instruction", "prompt", "text", "caption"),
    "answer": ("answer",),
    "kind": ("kind",),
    "candidates": ("candidates",),
}
"""Usual names of each field, including those of UNO and X2I."""
_IMAGE_FILE = re.compile(r"\.(avif|bmp|gif|heic|heif|jfif|jpe?g|png|tiff?|webp)$|^data:image/", re.IGNORECASE)
_SIMILAR = {
    "references": re.compile(
        r"(?<![a-z])(refs?|references?|imgs?|images?|inputs?|sources?|controls?|cond|subjects?)", re.I
    ),
    "target": re.compile(r"(?<![a-z])(tgt|targets?|outputs?|out|results?|edited|gt|ground_?truth)(?![a-z])", re.I),
    "instruction": re.compile(r"instr|prompt|caption|text|descri|question|query", re.I),
}
_IMAGE_NAMES = re.compile(r"(?<![a-z])(refs?|references?|imgs?|images?|pictures?|photos?)(?![a-z])", re.IGNORECASE)
_NOT_IMAGE_NAMES = re.compile(
    r"(^|_)(ids?|sizes?|captions?|texts?|types?|licen[cs]es?|hash|category|source)$", re.IGNORECASE
)


@dataclass(frozen=True)
class FieldNames:
    """Names of the fields of a row; null = the first of the usual names that has a value.

    A dot addresses a nested field: caption.en is the field en of the object in caption.
    """

    references: str | None = None
    """Path of a reference image, or a list of them (UNO: image_paths, X2I: input_images)."""
    target: str | None = None
    """Path of the target image (UNO: image_tgt_path, X2I: output_image)."""
    instruction: str | None = None
    """The instruction (UNO: prompt, X2I: instruction)."""
    answer: str | None = None
    """Target text after the instruction; a row with an answer needs no target image."""
    key: str | None = None
    """A unique name of the sample; null = file and line number."""
    kind: str | None = None
    """`single` or `multi`; null = the field kind, else derived from the candidates."""
    candidates: str | None = None
    """Per reference the subjects in it, as boxes (see the shard format)."""

    def requested(self) -> dict[str, str]:
        """Role -> name of the fields that are set."""
        return {field.name: name for field in fields(self) if (name := getattr(self, field.name)) is not None}

    def find(self, row: Mapping[str, Any], role: str) -> tuple[str | None, Any]:
        """Name and value of a field in a row; (None, None) if it is missing or null.

        Args:
            row: field name -> value.
            role: a key of `USUAL_NAMES`, or `key`.
        """
        named = getattr(self, role)
        names = USUAL_NAMES.get(role, ()) if named is None else (named,)
        values = [(name, value) for name in names if (value := look_up(row, name)) is not None]
        return next(((n, v) for n, v in values if not _is_empty(v)), values[0] if values else (None, None))


def look_up(row: Mapping[str, Any], name: str) -> Any:
    """Value of a field, None if it is missing; a dot addresses a nested field, a number a list item."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def known_names(names: FieldNames) -> set[str]:
    """Every field name that may be read, including the first part of dotted names."""
    known = {name for role, usual in USUAL_NAMES.items() if getattr(names, role) is None for name in usual}
    requested = names.requested().values()
    return known | set(requested) | {name.split(".")[0] for name in requested}


def unused_images(row: Mapping[str, Any], names: FieldNames) -> list[str]:
    """Unread fields of a row that look like images, judged by file extension, type or field name.

    Images in an unread object are named with a dot, as in `FieldNames`.
    """
    found = []
    for name in row.keys() - known_names(names):
        value = row[name]
        if _is_image_like(name, value):
            found.append(name)
        elif isinstance(value, Mapping):  # here names alone prove nothing: metadata are full of them
            found += [f"{name}.{part}" for part, inner in value.items() if _is_image_like("", inner)]
    return sorted(found)


def advice(row: Mapping[str, Any], names: FieldNames, role: str, *, has_field_options: bool) -> str:
    """The end of a message about a missing field: which unread fields the row has, and the fix.

    Args:
        row: field name -> value.
        names: names of the fields.
        role: the missing field, a key of `USUAL_NAMES`.
        has_field_options: whether the command has options `--fields.ROLE`.
    """
    unused = sorted(row.keys() - known_names(names))
    similar = _SIMILAR.get(role)
    if role == "instruction":
        close = [name for name in unused if isinstance(row[name], str) and similar and similar.search(name)]
    else:
        close = [name for name in unused_images(row, names) if similar and similar.search(name)]
        close = close or unused_images(row, names)
    usual = USUAL_NAMES[role]
    close = close or [name for name in unused if difflib.get_close_matches(name, usual, 1, 0.75)]
    has = f"unused fields: {shortened_list(unused)}" if unused else "no field is unused"
    if close and has_field_options:
        return f"{has}; is it {shortened_list(close, 3)}? Then give --fields.{role} {close[0]}"
    if close:
        return f"{has}; is it {shortened_list(close, 3)}? Then call it {usual[0]}"
    return f"{has}; usual names: {shortened_list(usual)}" + (
        f", others by --fields.{role}" if has_field_options else ""
    )


def shortened_list(names: Iterable[str], limit: int = 8) -> str:
    """Comma-separated names for a message, truncated if they are many or long."""
    names = [name if len(name) <= 60 else f"{name[:57]}..." for name in names]
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _is_empty(value: Any) -> bool:
    return isinstance(value, str | bytes | list | dict) and not value


def _is_image_like(name: str, value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and _is_image_like(name, value[0])
    if isinstance(value, Mapping):  # Hugging Face `datasets`' representation of an image
        return any(_is_image_like(name, value[part]) for part in ("path", "bytes") if value.get(part))
    if isinstance(value, bytes):
        return bool(value)
    if not isinstance(value, str):
        return False
    like_a_path = bool(value) and not re.search(r"\s", value)
    named = _IMAGE_NAMES.search(name) and not _NOT_IMAGE_NAMES.search(name)
    return bool(_IMAGE_FILE.search(value.split("?")[0].strip()) or (like_a_path and named))
