"""The index of a data set: location and sizes of every sample (see docs/shards.md)."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, overload

import numpy as np

from scone_pl.data.decoding import MAX_DECODED_PIXELS
from scone_pl.data.members import is_key
from scone_pl.data.sample import Kind
from scone_pl.data.seeding import seed_of
from scone_pl.errors import UserError
from scone_pl.files import decode, parse_json

INDEX = "index.jsonl"

Size = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True)
class IndexEntry:
    """A line of `index.jsonl`: location and sizes of a sample."""

    key: str
    shard: int
    """Index of its tar in the manifest."""
    offset: int
    """First byte of its tar members."""
    length: int
    """Size of its tar members in bytes."""
    kind: Kind
    instruction: str
    references: tuple[Size, ...]
    """Sizes of the reference images, with or without EXIF orientation applied, see `Manifest.exif_orientation`."""
    target: Size | None
    """Size of the target image; None = the sample has none (understanding only, or a prompt)."""
    answer: str = ""
    """See `Sample.answer`."""
    crc32: int | None = None
    """Checksum of its members, see `members.checksum`; None in sets of format 1."""

    def to_json(self) -> str:
        """A line of the index, without the newline."""
        content = asdict(self)
        if not self.answer:
            del content["answer"]  # indices of sets without answers keep their checksum
        if self.crc32 is None:
            del content["crc32"]
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str | bytes, source: str = "an index line") -> IndexEntry:
        """Parses a line.

        Args:
            line: JSON.
            source: file and line, for messages.

        Raises:
            UserError: it is damaged or has an invalid value.
        """
        content = parse_json(decode(line, source) if isinstance(line, bytes) else line, source, dict)
        content.pop("tokens", None)  # a count in older sets that nothing reads
        if missing := _REQUIRED - content.keys():
            raise UserError(f"{source} is damaged: it has no {', '.join(sorted(missing))}")
        if unknown := content.keys() - _NAMES:
            raise UserError(f"{source} is damaged: the key {min(unknown)!r} is unknown")
        for name, (test, expected) in _CHECKS.items():
            if name in content and not test(content[name]):
                raise UserError(f"{source} is damaged: {name} must be {expected}, not {_shortened(content[name])}")
        content["references"] = tuple(map(tuple, content["references"]))
        if content["target"] is not None:
            content["target"] = tuple(content["target"])
        return cls(**content)


_NAMES = {field.name for field in fields(IndexEntry)}
_REQUIRED = _NAMES - {"answer", "crc32"}


def _is_number(value: Any, minimum: int, maximum: int = 2**63 - 1) -> bool:
    return type(value) is int and minimum <= value <= maximum


def _is_size(value: Any) -> bool:
    return (
        type(value) is list
        and len(value) == 2
        and all(_is_number(side, 1) for side in value)
        and value[0] * value[1] <= MAX_DECODED_PIXELS
    )


_SIZE = f"[width, height] of at most {MAX_DECODED_PIXELS} pixels"
_CHECKS = {
    "key": (is_key, "1 to 80 letters, digits, _ or -"),
    "shard": (lambda value: _is_number(value, 0), "a whole number, at least 0"),
    "offset": (lambda value: _is_number(value, 0), "a whole number, at least 0"),
    "length": (lambda value: _is_number(value, 1), "a whole number, at least 1"),
    "kind": (lambda value: value in get_args(Kind), " or ".join(get_args(Kind))),
    "instruction": (lambda value: type(value) is str, "text"),
    "references": (lambda value: type(value) is list and all(map(_is_size, value)), f"a list of {_SIZE}"),
    "target": (lambda value: value is None or _is_size(value), f"null or {_SIZE}"),
    "answer": (lambda value: type(value) is str, "text"),
    "crc32": (lambda value: value is None or _is_number(value, 0, 2**32 - 1), "a whole number below 2 ** 32"),
}
"""Key -> (validator, description of valid values)."""


def _shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


class Index(Sequence[IndexEntry]):
    """The lines of `index.jsonl`, memory-mapped and parsed on access."""

    def __init__(self, file: Path, name: str | None = None) -> None:
        """Opens `file`; messages call it `name`, such as the URL of a cached copy.

        Raises:
            UserError: it cannot be read.
        """
        self.file = file
        self.name = name or str(file)
        try:
            with file.open("rb") as stream:
                empty = os.fstat(stream.fileno()).st_size == 0
                self._lines = b"" if empty else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f"{self.name}: cannot be read ({error.strerror or error})") from error
        ends = np.flatnonzero(np.frombuffer(self._lines, dtype=np.uint8) == ord("\n")) + 1
        self._bounds = np.concatenate([[0], ends]).astype(np.int64)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, item: int) -> IndexEntry: ...
    @overload
    def __getitem__(self, item: slice) -> list[IndexEntry]: ...
    def __getitem__(self, item: int | slice) -> IndexEntry | list[IndexEntry]:
        if isinstance(item, slice):
            return [self[i] for i in range(*item.indices(len(self)))]
        number = range(len(self))[item]
        line = self._lines[self._bounds[number] : self._bounds[number + 1]]
        try:
            return IndexEntry.from_json(line, f"{self.name}: line {number + 1}")
        except UserError as error:
            raise UserError(f"{error}; copy or convert the data set again") from None

    @property
    def is_complete(self) -> bool:
        """Whether the last line ends with a newline."""
        return int(self._bounds[-1]) == len(self._lines)

    def __reduce__(self) -> tuple[type[Index], tuple[Path, str]]:
        return Index, (self.file, self.name)


def duplicates(keys: Iterable[str], count: int) -> list[int]:
    """Indices of the items whose key an earlier item has, ascending; holds a 64-bit hash per item.

    Args:
        keys: keys of all items, in order.
        count: their number.
    """
    hashes = np.fromiter(map(seed_of, keys), dtype=np.int64, count=count)
    _, first = np.unique(hashes, return_index=True)
    repeated: list[int] = np.setdiff1d(np.arange(count), first).tolist()
    return repeated
