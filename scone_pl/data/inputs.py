"""What a conversion reads: a source of numbered items, any range of which can be read by any process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from scone_pl.data.image_lists import FieldNames, ImageLists
from scone_pl.data.manifest import MANIFEST
from scone_pl.data.parquet import ParquetInput, find_parquet
from scone_pl.data.sample import BrokenSampleError, Sample, usable
from scone_pl.data.shards import ShardSet
from scone_pl.data.storage import LocalFolder, StorageConfig, sha256_of
from scone_pl.errors import UserError

Format = Literal["auto", "parquet", "jsonl", "shards"]


class Input(Protocol):
    """A source; sent to every worker process once."""

    def __len__(self) -> int:
        """Items, good or not."""
        ...

    def keys(self) -> Iterator[str]:
        """Key of every item, in order, without reading images."""
        ...

    def read(self, start: int, stop: int) -> Iterator[tuple[str, Sample | BrokenSampleError]]:
        """Key of each item in a range, with its sample or what is wrong with it."""
        ...

    def identity(self) -> list[Any]:
        """Changes when the source does; JSON."""
        ...


class ShardInput:
    """Another data set."""

    def __init__(self, path: str, storage: StorageConfig | None = None) -> None:
        self.shards = ShardSet(path, storage)
        self._sound: dict[int, bool] = {}
        """Whether a shard has its checksum, per number."""

    def __len__(self) -> int:
        return len(self.shards)

    def keys(self) -> Iterator[str]:
        return (entry.key for entry in self.shards.entries())

    def read(self, start: int, stop: int) -> Iterator[tuple[str, Sample | BrokenSampleError]]:
        return ((self.shards.index[i].key, usable(self._checked, i)) for i in range(start, stop))

    def identity(self) -> list[Any]:
        sums = [shard.sha256 for shard in self.shards.manifest.shards]
        return ["shards", self.shards.storage.name, self.shards.manifest.index_sha256, *sums]

    @property
    def folder(self) -> Path | None:
        """Absolute path, if it is local."""
        storage = self.shards.storage
        return storage.path.resolve() if isinstance(storage, LocalFolder) else None

    def _checked(self, i: int) -> Sample:
        """A sample whose bytes are those that were written: what is damaged must not get new checksums."""
        sample, shard = self.shards.read(i), self.shards.shard_of(i)
        if self.shards.index[i].crc32 is None and not self._is_sound(shard):
            file = f"{self.shards.storage.name}/{self.shards.manifest.shards[shard].file}"
            raise BrokenSampleError(
                "wrong checksum", f"{file} differs from its checksum; in format 1 that leaves all its samples in doubt"
            )
        return sample

    def _is_sound(self, shard: int) -> bool:
        if shard not in self._sound:
            try:
                self._sound[shard] = sha256_of(self.shards.fetch(shard)) == self.shards.manifest.shards[shard].sha256
            except OSError as error:
                raise BrokenSampleError("unreadable shard", str(error)) from None
        return self._sound[shard]


def open_input(
    source: str,
    format: Format = "auto",
    *,
    subset: str | None = None,
    fields: FieldNames | None = None,
    image_root: str | None = None,
    require_target: bool = True,
    storage: StorageConfig | None = None,
) -> Input:
    """Opens a source of any format.

    Raises:
        UserError: nothing there, or options that its format does not have.
    """
    format = _format_of(source) if format == "auto" else format
    for name, value, wanted in (("subset", subset, "parquet"), ("image_root", image_root, "jsonl")):
        if value is not None and format != wanted:
            raise UserError(f"--{name} is for {wanted} sources, but {source} is read as {format}; leave it out")
    if format == "shards":
        return ShardInput(source, storage)
    if format == "jsonl":
        return ImageLists.open(source, fields or FieldNames(), image_root, require_target)
    return ParquetInput(find_parquet(source, subset))


def _format_of(source: str) -> Format:
    path = Path(source)
    if "://" in source or (path / MANIFEST).is_file():
        return "shards"
    if path.suffix in (".jsonl", ".json") or (path.is_dir() and any(path.glob("*.jsonl"))):
        return "jsonl"
    return "parquet"
