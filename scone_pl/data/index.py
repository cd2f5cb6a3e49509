"""The index of a data set: where each sample lies, and all that planning needs (see data_shards/README.md)."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import overload

import numpy as np

from scone_pl.data.sample import Kind
from scone_pl.errors import UserError

INDEX = "index.jsonl"

Size = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True)
class IndexEntry:
    """What is known of a sample without opening it: a line of `index.jsonl`."""

    key: str
    shard: int
    """Number of its tar in the manifest."""
    offset: int
    """First byte of its tar members."""
    length: int
    """Bytes of its tar members."""
    kind: Kind
    instruction: str
    references: tuple[Size, ...]
    """Sizes of the reference images, as stored."""
    target: Size | None
    """Size of the target image; None = the sample has none (understanding only, or a prompt)."""
    answer: str = ""
    """See `Sample.answer`."""
    tokens: int | None = None
    """Its tokens at the settings that the manifest names; None = not counted when the set was made."""

    def to_json(self) -> str:
        """A line of the index, without its end."""
        fields = asdict(self)
        if not self.answer:
            del fields["answer"]  # a set without answers reads and hashes as ever
        if self.tokens is None:
            del fields["tokens"]
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> IndexEntry:
        """The entry in a line.

        Raises:
            KeyError, TypeError, ValueError: it is damaged.
        """
        fields = json.loads(line)
        fields["references"] = tuple(tuple(size) for size in fields["references"])
        fields["target"] = tuple(fields["target"]) if fields["target"] else None
        entry = cls(**fields)
        sizes = entry.references if entry.target is None else (*entry.references, entry.target)
        if min(entry.shard, entry.offset, entry.length - 1) < 0 or any(
            min(size) < 1 or len(size) != 2 for size in sizes
        ):
            raise ValueError("a place or size that can not be")
        if (
            not isinstance(entry.key, str)
            or not isinstance(entry.instruction, str)
            or not isinstance(entry.answer, str)
        ):
            raise TypeError("key, instruction or answer that is no text")
        return entry


class Index(Sequence[IndexEntry]):
    """The lines of `index.jsonl`, parsed when asked for: memory does not grow with the number of samples."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with file.open("rb") as stream:
            empty = os.fstat(stream.fileno()).st_size == 0
            self._lines = b"" if empty else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
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
            return IndexEntry.from_json(line)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.file}: line {number + 1} is damaged ({error!r}); convert the data set again"
            ) from None

    def first_repeated(self, hashes: np.ndarray) -> str | None:
        """The key of a sample that an earlier one has too, given a hash of every key; 8 bytes a sample are enough."""
        order = np.argsort(hashes, kind="stable")
        for place in np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]).tolist():
            one, two = self[int(order[place])].key, self[int(order[place + 1])].key
            if one == two:
                return one
        return None

    def __reduce__(self) -> tuple[type[Index], tuple[Path]]:
        return Index, (self.file,)
