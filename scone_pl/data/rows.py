"""Validates a row (a JSON object, or a parquet row) and converts it to the parts of a sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from scone_pl.data.decoding import read_encoded
from scone_pl.data.fields import FieldNames, advice, known_names, look_up, shortened_list, unused_images
from scone_pl.data.sample import BrokenSampleError, Candidate, Kind, Sample, parse_candidates
from scone_pl.errors import UserError, printable_line

Image = Path | bytes
"""An encoded image, or the path of its file."""
_TYPES = {bool: "a boolean", str: "a string", dict: "an object", list: "a list", bytes: "bytes", type(None): "null"}


@dataclass(frozen=True, kw_only=True)
class RowRules:
    """How rows are read."""

    names: FieldNames = field(default_factory=FieldNames)
    """Names of the fields."""
    require_target: bool = True
    """Whether a row needs a target or an answer."""
    require_references: bool = True
    """Whether a row needs reference images or an empty list of them."""
    allow_unused_images: bool = False
    """Whether a row without references may have unread fields that look like images."""
    has_field_options: bool = False
    """Whether the command has options that name fields, for messages."""
    prompts: bool = False
    """Whether rows are prompts: only references and the instruction, which may be empty, are read."""


@dataclass(frozen=True)
class Row:
    """The parts of a sample."""

    instruction: str
    references: tuple[Image, ...]
    target: Image | None
    answer: str
    kind: Kind | None
    """None = not stated by the row."""
    candidates: tuple[tuple[Candidate, ...], ...] | None

    def load(self, key: str, where: str, metadata: dict[str, Any], kind: Kind = "single") -> Sample:
        """Reads the images; the result is a sample, of the kind `kind` if the row does not state one.

        Raises:
            BrokenSampleError: an image file cannot be read.
        """
        return Sample(
            key=key,
            references=tuple(_load(image, where) for image in self.references),
            instruction=self.instruction,
            target=b"" if self.target is None else _load(self.target, where),
            kind=self.kind or kind,
            candidates=self.candidates,
            metadata=metadata,
            answer=self.answer,
        )


def read_row(row: Mapping[str, Any], rules: RowRules, where: str, folder: Path) -> Row:
    """Validates a row.

    Args:
        row: field name -> value.
        rules: how to read it.
        where: its file and line, for messages.
        folder: base of relative image paths.

    Raises:
        BrokenSampleError: a field is missing or of a wrong type. Whether image files exist is not checked.
    """
    names = rules.names
    instruction = _text(row, names, "instruction", where)
    if not instruction.strip() and not (rules.prompts and names.find(row, "instruction")[1] == ""):
        raise _missing(row, rules, "instruction", where)
    name, value = names.find(row, "references")
    references = _images(value, name, where, folder)
    if name is None and (rules.require_references or (not rules.allow_unused_images and unused_images(row, names))):
        raise _missing(row, rules, "references", where)
    if rules.prompts:
        return Row(instruction, references, target=None, answer="", kind=None, candidates=None)
    name, value = names.find(row, "target")
    targets = _images(value, name, where, folder)
    if len(targets) > 1:
        raise BrokenSampleError("wrong field", f"{where}: `{name}` holds {len(targets)} images; a row has one target")
    answer = _text(row, names, "answer", where)
    if not targets and not answer and rules.require_target:
        raise _missing(row, rules, "target", where)
    candidates = _candidates(row, names, len(references), where)
    return Row(
        instruction=instruction,
        references=references,
        target=targets[0] if targets else None,
        answer=answer,
        kind=_kind(row, names, candidates, where),
        candidates=candidates,
    )


def check_rows(rows: Iterable[Mapping[str, Any]], rules: RowRules, source: str) -> RowRules:
    """Checks a source for fields that all rows lack, before any image is read.

    Args:
        rows: the valid rows of the source, consumed as far as needed.
        rules: how rows are read.
        source: its file or folder, for messages.

    Returns:
        The rules to apply: references are not required if no row has any, nor any field that looks like images.

    Raises:
        UserError: no row has a field named in `rules`; or none has references, but a field that looks like images is
            unread.
    """
    names, requested = rules.names, rules.names.requested()
    missing, first, row_with_images = dict(requested), None, None
    no_references = True
    for row in rows:
        first = row if first is None else first
        missing = {role: name for role, name in missing.items() if look_up(row, name) is None}
        if names.find(row, "references")[0] is not None:
            no_references = False
        elif row_with_images is None and unused_images(row, names):
            row_with_images = row
        if not missing and not no_references:
            return rules
    if first is None:
        return rules
    if missing:
        role, name = next(iter(missing.items()))
        hint = _hint(row_with_images or first, rules, role)
        raise UserError(f"{source}: no row has the field {name!r} (--fields.{role}); {hint}")
    if no_references and rules.require_references:
        if row_with_images is not None and not rules.allow_unused_images:
            hint = advice(row_with_images, names, "references", has_field_options=rules.has_field_options)
            option = "; --require_references false reads rows without them" if rules.has_field_options else ""
            raise UserError(f"{source}: no row has reference images; {hint}{option}")
        return replace(rules, require_references=False)
    return rules


def describe(row: Mapping[str, Any], names: FieldNames) -> str:
    """Which fields of a row are read as what, and which are unread, for the log."""
    roles = ("references", "target", "instruction", "answer", "kind", "candidates", "key")
    read = {role: name for role in roles if (name := names.find(row, role)[0]) is not None}
    unused = sorted(row.keys() - known_names(names) - {name.split(".")[0] for name in read.values()})
    text = ", ".join(role if role == name else f"{role} from {name}" for role, name in read.items()) or "nothing"
    return printable_line(text + (f"; not used: {shortened_list(unused)}" if unused else ""))


def remaining(row: Mapping[str, Any], names: FieldNames) -> dict[str, Any]:
    """The unread fields of a row."""
    roles = ("references", "target", "instruction", "answer", "kind", "candidates", "key")
    read = {names.find(row, role)[0] for role in roles}
    known = known_names(names)
    return {name: v for name, v in row.items() if name not in read and not (v is None and name in known)}


def _hint(row: Mapping[str, Any], rules: RowRules, role: str) -> str:
    if role == "key":
        return f"fields: {shortened_list(sorted(row))}"
    other_names = replace(rules.names, **{role: None})
    if (name := other_names.find(row, role)[0]) is not None:
        return f"the rows have {name!r}, which is read without that option"
    return advice(row, rules.names, role, has_field_options=rules.has_field_options)


def _missing(row: Mapping[str, Any], rules: RowRules, role: str, where: str) -> BrokenSampleError:
    hint = advice(row, rules.names, role, has_field_options=rules.has_field_options)
    return BrokenSampleError(f"missing {role}", f"{where}: no {role}; {hint}")


def _text(row: Mapping[str, Any], names: FieldNames, role: str, where: str) -> str:
    name, value = names.find(row, role)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BrokenSampleError("wrong field", f"{where}: `{name}` must be a string, not {_type_of(value)}")
    return value


def _images(value: Any, name: str | None, where: str, folder: Path) -> tuple[Image, ...]:
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    return tuple(_image(item, name, where, folder) for item in values)


def _image(value: Any, name: str | None, where: str, folder: Path) -> Image:
    if isinstance(value, Mapping):  # Hugging Face `datasets`' representation of an image
        content, path = value.get("bytes"), value.get("path")
        if not isinstance(content, bytes | None):
            raise BrokenSampleError("wrong field", f"{where}: `{name}.bytes` must be bytes, not {_type_of(content)}")
        value = path if content is None else content
    if value is None:
        raise BrokenSampleError("missing image", f"{where}: `{name}` holds null instead of an image")
    if isinstance(value, bytes):
        if not value:
            raise BrokenSampleError("missing image", f"{where}: `{name}` holds an empty image")
        return value
    if not isinstance(value, str):
        raise BrokenSampleError("wrong field", f"{where}: `{name}` must hold paths of images, not {_type_of(value)}")
    if not value.strip():
        raise BrokenSampleError("missing image", f"{where}: `{name}` holds an empty path")
    if "://" in value or value.startswith("data:"):
        raise BrokenSampleError("missing image", f"{where}: `{name}` holds a URL, {value[:80]!r}; download the image")
    return folder / value


def _kind(
    row: Mapping[str, Any], names: FieldNames, candidates: tuple[tuple[Candidate, ...], ...] | None, where: str
) -> Kind | None:
    name, value = names.find(row, "kind")
    groups: Any = candidates if candidates is not None else row.get("subject_list")
    is_multi = isinstance(groups, list | tuple) and any(isinstance(g, list | tuple) and len(g) > 1 for g in groups)
    if value is None:
        return "multi" if is_multi else None
    if value not in get_args(Kind):
        raise BrokenSampleError("wrong field", f"{where}: `{name}` must be one of {get_args(Kind)}, not {value!r:.80}")
    if value == "single" and is_multi:
        raise BrokenSampleError("wrong field", f"{where}: `{name}` is 'single', but a reference has several candidates")
    kind: Kind = value
    return kind


def _candidates(
    row: Mapping[str, Any], names: FieldNames, references: int, where: str
) -> tuple[tuple[Candidate, ...], ...] | None:
    name, value = names.find(row, "candidates")
    try:
        groups = parse_candidates(value)
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenSampleError("wrong candidates", f"{where}: `{name}`: {error!r}") from None
    if groups is not None and len(groups) != references:
        message = f"{where}: `{name}` has {len(groups)} lists for {references} references; give one per reference"
        raise BrokenSampleError("wrong candidates", message)
    return groups


def _load(image: Image, where: str) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return read_encoded(image)
    except UserError as error:
        text = str(error)
        text = text if len(text) <= 400 else f"{text[:200]}...{text[-100:]}"
        raise BrokenSampleError("missing image", f"{where}: {text}") from None


def _type_of(value: Any) -> str:
    return _TYPES.get(type(value), f"{value!r:.40}")
