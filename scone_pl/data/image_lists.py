"""JSONL + image folders: a line names the reference images, the target and the instruction of a sample."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from scone_pl.data.decoding import read_encoded
from scone_pl.data.members import plain_key
from scone_pl.data.sample import BrokenSampleError, Candidate, Kind, Sample, parse_candidates, usable
from scone_pl.errors import UserError

REFERENCES = ("references", "image_paths", "input_images", "image_path", "input_image", "images")
TARGET = ("target", "image_tgt_path", "output_image", "target_image", "target_path")
INSTRUCTION = ("instruction", "prompt", "text", "caption")
ANSWER = ("answer",)


@dataclass(frozen=True)
class FieldNames:
    """What the fields of a line are called; null = the first of the usual names that the line has."""

    references: str | None = None
    """Path of a reference image, or a list of them (UNO: image_paths, X2I: input_images)."""
    target: str | None = None
    """Path of the target image (UNO: image_tgt_path, X2I: output_image)."""
    instruction: str | None = None
    """The text (UNO: prompt, X2I: instruction)."""
    answer: str | None = None
    """Text to be said after the instruction; such a line needs no target."""
    key: str | None = None
    """A name of the sample, unique; null = file and line number."""


@dataclass(frozen=True)
class _Line:
    key: str
    file: Path
    number: int
    content: dict[str, Any] | BrokenSampleError

    @property
    def where(self) -> str:
        return f"{self.file}: line {self.number + 1}"


class ImageLists:
    """Lines of one or more JSONL files. All other fields of a line become metadata."""

    def __init__(
        self, files: list[Path], offsets: list[np.ndarray], fields: FieldNames, root: Path | None, require_target: bool
    ) -> None:
        self.files = files
        self.offsets = offsets
        """Per file (lines + 1,) int64: where each line begins; 8 bytes a sample is all that is held."""
        self.fields = fields
        self.root = root
        self.require_target = require_target

    @classmethod
    def open(cls, source: str, fields: FieldNames, image_root: str | None, require_target: bool) -> ImageLists:
        """Finds the lines.

        Args:
            source: a JSONL file, or a folder of them.
            fields: names of the fields.
            image_root: what image paths are relative to; None = the JSONL file's folder.
            require_target: whether a line without a target is a fault.

        Raises:
            UserError: no such file, or one that is no JSONL.
        """
        path = Path(source)
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not path.exists() or not files:
            raise UserError(f"{source}: no such JSONL file or folder; give a .jsonl file with one sample a line")
        if image_root is not None and not Path(image_root).is_dir():
            raise UserError(f"{image_root}: no such folder; --image_root is what image paths are relative to")
        offsets = [_line_starts(file) for file in files]
        if not sum(len(starts) - 1 for starts in offsets):
            raise UserError(f"{source}: holds no line; there is nothing to convert")
        return cls(files, offsets, fields, Path(image_root) if image_root else None, require_target)

    def __len__(self) -> int:
        return sum(len(starts) - 1 for starts in self.offsets)

    def identity(self) -> list[Any]:
        stats = [file.stat() for file in self.files]
        return ["jsonl", *([str(f), s.st_size, s.st_mtime_ns] for f, s in zip(self.files, stats, strict=True))]

    def keys(self) -> Iterator[str]:
        if self.fields.key is None:
            return (_key(file, line) for file, _, line in self._places(0, len(self)))
        return (line.key for line in self._lines(0, len(self)))

    def read(self, start: int, stop: int) -> Iterator[tuple[str, Sample | BrokenSampleError]]:
        return ((line.key, usable(self._sample, line)) for line in self._lines(start, stop))

    def _places(self, start: int, stop: int) -> Iterator[tuple[Path, int, int]]:
        """File, first byte and number of each line."""
        before = 0
        for file, starts in zip(self.files, self.offsets, strict=True):
            lines = len(starts) - 1
            for line in range(max(start - before, 0), min(stop - before, lines)):
                yield file, int(starts[line]), line
            before += lines

    def _lines(self, start: int, stop: int) -> Iterator[_Line]:
        opened, stream = None, None
        try:
            for file, offset, line in self._places(start, stop):
                if file != opened:
                    if stream is not None:
                        stream.close()
                    opened, stream = file, file.open("rb")
                stream.seek(offset)
                yield self._parse(stream.readline(), file, line)
        finally:
            if stream is not None:
                stream.close()

    def _parse(self, text: bytes, file: Path, number: int) -> _Line:
        key, where = _key(file, number), f"{file}: line {number + 1}"
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            return _Line(key, file, number, BrokenSampleError("wrong JSON", f"{where}: {error}"))
        if not isinstance(content, dict):
            return _Line(key, file, number, BrokenSampleError("wrong JSON", f"{where}: not an object"))
        if self.fields.key is not None:
            name = content.get(self.fields.key)
            if not isinstance(name, (str, int)) or name == "":
                error = BrokenSampleError("missing key", f"{where}: no {self.fields.key!r}")
                return _Line(key, file, number, error)
            key = plain_key(str(name))
        return _Line(key, file, number, content)

    def _sample(self, line: _Line) -> Sample:
        if isinstance(line.content, BrokenSampleError):
            raise line.content
        content, where, root = dict(line.content), line.where, self.root or line.file.parent
        instruction = _take(content, self.fields.instruction, INSTRUCTION)
        if not isinstance(instruction, str) or not instruction.strip():
            raise BrokenSampleError("missing instruction", f"{where}: no text; fields are {_names(content)}")
        paths = _take(content, self.fields.references, REFERENCES)
        paths = [paths] if isinstance(paths, str) else paths or []
        target = _take(content, self.fields.target, TARGET)
        answer = _take(content, self.fields.answer, ANSWER) or ""
        if not isinstance(answer, str):
            raise BrokenSampleError("wrong JSON", f"{where}: the answer must be a text")
        if not target and not answer and self.require_target:
            raise BrokenSampleError("missing target", f"{where}: no target; fields are {_names(content)}")
        if not isinstance(paths, list) or not all(isinstance(p, str) for p in [*paths, target or ""]):
            raise BrokenSampleError("wrong JSON", f"{where}: image paths must be strings")
        content.pop(self.fields.key, None)
        return Sample(
            key=line.key,
            references=tuple(_image(root / path, where) for path in paths),
            instruction=instruction,
            target=_image(root / target, where) if target else b"",
            kind=_kind(content.pop("kind", "single"), where),
            candidates=_candidates(content.pop("candidates", None), where),
            metadata={**content, "source": content.get("source", {"file": line.file.name})},
            answer=answer,
        )


def _line_starts(file: Path) -> np.ndarray:
    """(lines + 1,) int64: where each line begins, and the end."""
    try:
        with file.open("rb") as stream:
            if stream.read(1) == b"[":
                raise UserError(
                    f"{file}: a JSON list, not JSONL; run: jq -c '.[]' {file} > {file.with_suffix('')}.jsonl"
                )
            starts, position = [np.zeros(1, dtype=np.int64)], 0
            stream.seek(0)
            ended = True
            while piece := stream.read(1 << 20):
                starts.append(np.flatnonzero(np.frombuffer(piece, np.uint8) == ord("\n")) + (position + 1))
                position += len(piece)
                ended = piece.endswith(b"\n")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; check the path") from None
    if not ended:
        starts.append(np.array([position]))
    return np.concatenate(starts)


def _key(file: Path, line: int) -> str:
    return plain_key(f"{plain_key(file.stem, 60)}-{line:09d}")


def _take(content: dict[str, Any], name: str | None, usual: tuple[str, ...]) -> Any:
    name = name or next((name for name in usual if name in content), None)
    return content.pop(name, None)


def _image(path: Path, where: str) -> bytes:
    try:
        return read_encoded(path)
    except UserError as error:
        raise BrokenSampleError("missing image", f"{where}: {error}") from None


def _kind(kind: Any, where: str) -> Kind:
    if kind not in get_args(Kind):
        raise BrokenSampleError("wrong JSON", f"{where}: kind {kind!r} is none of {get_args(Kind)}")
    return kind


def _candidates(groups: Any, where: str) -> tuple[tuple[Candidate, ...], ...] | None:
    try:
        return parse_candidates(groups)
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenSampleError("wrong JSON", f"{where}: candidates: {error!r}") from None


def _names(content: dict[str, Any]) -> str:
    return ", ".join(sorted(content)) or "none left"
