"""From a row (a JSON object, or the columns of a parquet row) to a sample's parts, each checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from scone_pl.data.decoding import read_encoded
from scone_pl.data.fields import FieldNames, advice, known_names, look_up, short_list, unused_images
from scone_pl.data.sample import BrokenSampleError, Candidate, Kind, Sample, parse_candidates
from scone_pl.errors import UserError, printable_line

Image = Path | bytes
"""An encoded image, or the file that holds it."""
_TYPES = {bool: "true or false", str: "a text", dict: "an object", list: "a list", bytes: "bytes", type(None): "null"}


@dataclass(frozen=True, kw_only=True)
class RowRules:
    """How rows are read."""

    names: FieldNames = field(default_factory=FieldNames)
    """What the fields are called."""
    require_target: bool = True
    """Whether a row needs a target or an answer."""
    require_references: bool = True
    """Whether a row needs reference images or an empty list of them."""
    allow_unused_images: bool = False
    """Whether a row without references may have fields that look like images and that nothing reads."""
    can_be_named: bool = False
    """Whether the command has options that name fields, for messages."""
    prompts: bool = False
    """Whether only instruction, which may be empty, and references are read, to generate from."""


@dataclass(frozen=True)
class Row:
    """The parts of a sample."""

    instruction: str
    references: tuple[Image, ...]
    target: Image | None
    answer: str
    kind: Kind | None
    """None = the row does not tell."""
    candidates: tuple[tuple[Candidate, ...], ...] | None

    def load(self, key: str, where: str, metadata: dict[str, Any], kind: Kind = "single") -> Sample:
        """The sample, images read; `kind` where the row does not tell.

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
    """Checks a row.

    Args:
        row: name -> value.
        rules: how to read it.
        where: its file and line, for messages.
        folder: what image paths are relative to.

    Raises:
        BrokenSampleError: a part is missing or of a wrong type. Whether image files exist is not looked at.
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
    """Looks for what all rows lack, before any image is read.

    Args:
        rows: those of a source that can be parsed; no more are taken than it needs.
        rules: as asked for.
        source: its file or folder, for messages.

    Returns:
        The rules for each row: where no row has references nor anything like them, none needs them.

    Raises:
        UserError: no row has a field that was asked for; or none has references, but a field that looks like images
            is unused.
    """
    names, requested = rules.names, rules.names.requested()
    missing, first, suspect = dict(requested), None, None
    no_references = True
    for row in rows:
        first = row if first is None else first
        missing = {role: name for role, name in missing.items() if look_up(row, name) is None}
        if names.find(row, "references")[0] is not None:
            no_references = False
        elif suspect is None and unused_images(row, names):
            suspect = row
        if not missing and not no_references:
            return rules
    if first is None:
        return rules
    if missing:
        role, name = next(iter(missing.items()))
        told = suspect or first
        raise UserError(f"{source}: no row has the field {name!r} (--fields.{role}); {_rest(told, rules, role)}")
    if no_references and rules.require_references:
        if suspect is not None and not rules.allow_unused_images:
            told = advice(suspect, names, "references", can_be_named=rules.can_be_named)
            without = "; --require_references false reads rows without" if rules.can_be_named else ""
            raise UserError(f"{source}: no row has reference images; {told}{without}")
        return replace(rules, require_references=False)
    return rules


def describe(row: Mapping[str, Any], names: FieldNames) -> str:
    """Which fields of a row are read as what, and which are not."""
    roles = ("references", "target", "instruction", "answer", "kind", "candidates", "key")
    read = {role: name for role in roles if (name := names.find(row, role)[0]) is not None}
    unused = sorted(row.keys() - known_names(names) - {name.split(".")[0] for name in read.values()})
    told = ", ".join(role if role == name else f"{role} from {name}" for role, name in read.items()) or "nothing"
    return printable_line(told + (f"; not used: {short_list(unused)}" if unused else ""))


def remaining(row: Mapping[str, Any], names: FieldNames) -> dict[str, Any]:
    """What is left of a row when the fields that were read are taken out."""
    roles = ("references", "target", "instruction", "answer", "kind", "candidates", "key")
    read = {names.find(row, role)[0] for role in roles}
    known = known_names(names)
    return {name: v for name, v in row.items() if name not in read and not (v is None and name in known)}


def _rest(row: Mapping[str, Any], rules: RowRules, role: str) -> str:
    if role == "key":
        return f"fields: {short_list(sorted(row))}"
    without = replace(rules.names, **{role: None})
    if (name := without.find(row, role)[0]) is not None:
        return f"the rows have {name!r}, which is read without that option"
    return advice(row, rules.names, role, can_be_named=rules.can_be_named)


def _missing(row: Mapping[str, Any], rules: RowRules, role: str, where: str) -> BrokenSampleError:
    told = advice(row, rules.names, role, can_be_named=rules.can_be_named)
    return BrokenSampleError(f"missing {role}", f"{where}: no {role}; {told}")


def _text(row: Mapping[str, Any], names: FieldNames, role: str, where: str) -> str:
    name, value = names.find(row, role)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BrokenSampleError("wrong field", f"{where}: `{name}` must be a text, not {_type_of(value)}")
    return value


def _images(value: Any, name: str | None, where: str, folder: Path) -> tuple[Image, ...]:
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    return tuple(_image(one, name, where, folder) for one in values)


def _image(value: Any, name: str | None, where: str, folder: Path) -> Image:
    if isinstance(value, Mapping):  # as `datasets` writes an image
        content, path = value.get("bytes"), value.get("path")
        if not isinstance(content, bytes | None):
            raise BrokenSampleError("wrong field", f"{where}: `{name}`: bytes of an image as {_type_of(content)}")
        value = path if content is None else content
    if value is None:
        raise BrokenSampleError("missing image", f"{where}: `{name}` holds a null for an image")
    if isinstance(value, bytes):
        if not value:
            raise BrokenSampleError("missing image", f"{where}: `{name}` holds an image of no bytes")
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
    several = isinstance(groups, list | tuple) and any(isinstance(g, list | tuple) and len(g) > 1 for g in groups)
    if value is None:
        return "multi" if several else None
    if value not in get_args(Kind):
        raise BrokenSampleError("wrong field", f"{where}: `{name}` must be one of {get_args(Kind)}, not {value!r:.80}")
    if value == "single" and several:
        raise BrokenSampleError("wrong field", f"{where}: `{name}` is 'single', but a reference has several candidates")
    return value


def _candidates(
    row: Mapping[str, Any], names: FieldNames, references: int, where: str
) -> tuple[tuple[Candidate, ...], ...] | None:
    name, value = names.find(row, "candidates")
    try:
        groups = parse_candidates(value)
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenSampleError("wrong candidates", f"{where}: `{name}`: {error!r}") from None
    if groups is not None and len(groups) != references:
        message = f"{where}: `{name}` has {len(groups)} lists for {references} references; give one a reference"
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
