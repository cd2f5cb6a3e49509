"""What the fields of people's records are called: one table for JSON rows and parquet columns, and for every command.

Where a row has several of the names of a field, the first of the table that is not empty is read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

KNOWN: dict[str, tuple[str, ...]] = {
    "references": ("references", "image_paths", "input_images", "image_path", "input_image", "images"),
    "target": ("target", "image_tgt_path", "output_image", "target_image", "target_path"),
    "instruction": ("instruction", "prompt", "text", "caption"),
    "answer": ("answer",),
    "kind": ("kind",),
    "candidates": ("candidates",),
}
"""Usual names of each field, those of UNO and X2I among them."""
_IMAGE_FILE = re.compile(r"\.(avif|bmp|gif|heic|heif|jfif|jpe?g|png|tiff?|webp)$|^data:image/", re.IGNORECASE)
_LIKE = {
    "references": re.compile(
        r"(?<![a-z])(refs?|references?|imgs?|images?|inputs?|sources?|controls?|cond|subjects?)", re.I
    ),
    "target": re.compile(r"(?<![a-z])(tgt|targets?|outputs?|out|results?|edited|gt|ground_?truth)(?![a-z])", re.I),
    "instruction": re.compile(r"instr|prompt|caption|text|descri|question|query", re.I),
}
_LIKE_IMAGES = re.compile(r"(?<![a-z])(refs?|references?|imgs?|images?|pictures?|photos?)(?![a-z])", re.IGNORECASE)
_NO_IMAGES = re.compile(r"(^|_)(ids?|sizes?|captions?|texts?|types?|licen[cs]es?|hash|category|source)$", re.IGNORECASE)


@dataclass(frozen=True)
class FieldNames:
    """What the fields of a row are called; null = the first of the usual names that has a value.

    A dot leads into an object: caption.en is the field en of the object in caption.
    """

    references: str | None = None
    """Path of a reference image, or a list of them (UNO: image_paths, X2I: input_images)."""
    target: str | None = None
    """Path of the target image (UNO: image_tgt_path, X2I: output_image)."""
    instruction: str | None = None
    """The text (UNO: prompt, X2I: instruction)."""
    answer: str | None = None
    """Text to be said after the instruction; such a row needs no target."""
    key: str | None = None
    """A name of the sample, unique; null = file and line number."""
    kind: str | None = None
    """`single` or `multi`; null = the field kind, or else what the candidates say."""
    candidates: str | None = None
    """Per reference the subjects in it, as boxes (see the shard format)."""

    def requested(self) -> dict[str, str]:
        """Those that are named, by their roles."""
        return {field.name: name for field in fields(self) if (name := getattr(self, field.name)) is not None}

    def find(self, row: Mapping[str, Any], role: str) -> tuple[str | None, Any]:
        """Name and value of a field in a row; (None, None) = the row has none but nulls.

        Args:
            row: name -> value.
            role: a key of `KNOWN`, or `key`.
        """
        named = getattr(self, role)
        names = KNOWN.get(role, ()) if named is None else (named,)
        found = [(name, value) for name in names if (value := look_up(row, name)) is not None]
        return next(((n, v) for n, v in found if not _is_empty(v)), found[0] if found else (None, None))


def look_up(row: Mapping[str, Any], name: str) -> Any:
    """Value of a field, null if there is none; a dot leads into an object, a number into a list."""
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
    """Every name of a row that may be read; of dotted names the part before the dot, too."""
    known = {name for role, usual in KNOWN.items() if getattr(names, role) is None for name in usual}
    requested = names.requested().values()
    return known | set(requested) | {name.split(".")[0] for name in requested}


def unused_images(row: Mapping[str, Any], names: FieldNames) -> list[str]:
    """Fields of a row that nothing reads and that look like images: by file extensions, by bytes, or by their names."""
    unused = row.keys() - known_names(names)
    return sorted(name for name in unused if _is_image_like(name, row[name]))


def advice(row: Mapping[str, Any], names: FieldNames, role: str, *, can_be_named: bool) -> str:
    """What a row has in place of a missing field, and what to do: the rest of a message.

    Args:
        row: name -> value.
        names: what the fields are called.
        role: a key of `KNOWN`.
        can_be_named: whether the command has options `--fields.ROLE`.
    """
    unused = sorted(row.keys() - known_names(names))
    like = _LIKE.get(role)
    if role == "instruction":
        close = [name for name in unused if isinstance(row[name], str) and like and like.search(name)]
    else:
        close = [name for name in unused_images(row, names) if like and like.search(name)]
        close = close or unused_images(row, names)
    usual = KNOWN[role]
    close = close or [name for name in unused if difflib.get_close_matches(name, usual, 1, 0.75)]
    has = f"unused fields: {short_list(unused)}" if unused else "no field is unused"
    if close and can_be_named:
        return f"{has}; is it {short_list(close, 3)}? Then give --fields.{role} {close[0]}"
    if close:
        return f"{has}; is it {short_list(close, 3)}? Then call it {usual[0]}"
    return f"{has}; usual names: {short_list(usual)}" + (f", others by --fields.{role}" if can_be_named else "")


def short_list(names: Iterable[str], most: int = 8) -> str:
    """Names for a message, cut if they are many or long."""
    names = [name if len(name) <= 60 else f"{name[:57]}..." for name in names]
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _is_empty(value: Any) -> bool:
    return isinstance(value, str | bytes | list | dict) and not value


def _is_image_like(name: str, value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and _is_image_like(name, value[0])
    if isinstance(value, Mapping):  # as `datasets` writes an image
        return any(_is_image_like(name, value[part]) for part in ("path", "bytes") if value.get(part))
    if isinstance(value, bytes):
        return bool(value)
    if not isinstance(value, str):
        return False
    like_a_path = bool(value) and not re.search(r"\s", value)
    named = _LIKE_IMAGES.search(name) and not _NO_IMAGES.search(name)
    return bool(_IMAGE_FILE.search(value.split("?")[0].strip()) or (like_a_path and named))
