"""Sources of a conversion: numbered items, any range of which can be read by any process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from scone_pl.data.fields import FieldNames
from scone_pl.data.image_lists import ImageLists
from scone_pl.data.json_rows import SUFFIXES
from scone_pl.data.manifest import MANIFEST
from scone_pl.data.parquet import ParquetInput, find_parquet
from scone_pl.data.rows import RowRules
from scone_pl.data.sample import BrokenSampleError, Sample, sample_or_error
from scone_pl.data.shards import ShardSet
from scone_pl.data.storage import LocalFolder, StorageConfig, stream_sha256
from scone_pl.errors import UserError
from scone_pl.files import readable

Format = Literal["auto", "parquet", "jsonl", "shards"]


class Input(Protocol):
    """A source; pickled once per worker process."""

    def __len__(self) -> int:
        """Number of items, valid or not."""
        ...

    def keys(self) -> Iterator[str]:
        """Key of every item, in order, without reading images."""
        ...

    def read(self, start: int, stop: int) -> Iterator[tuple[str, Sample | BrokenSampleError]]:
        """Key of each item in a range, with its sample or the error."""
        ...

    def identity(self) -> list[Any]:
        """JSON that changes whenever the source does."""
        ...

    def describe(self) -> str:
        """Which fields are read as what, for the log."""
        ...


class ShardInput:
    """Another data set."""

    def __init__(self, path: str, storage: StorageConfig | None = None) -> None:
        self.shards = ShardSet(path, storage)
        self._intact: dict[int, bool] = {}
        """Shard index -> whether the file matches its checksum."""

    def __len__(self) -> int:
        return len(self.shards)

    def keys(self) -> Iterator[str]:
        return (entry.key for entry in self.shards.entries())

    def read(self, start: int, stop: int) -> Iterator[tuple[str, Sample | BrokenSampleError]]:
        return ((self.shards.index[i].key, sample_or_error(self._checked, i)) for i in range(start, stop))

    def identity(self) -> list[Any]:
        sums = [shard.sha256 for shard in self.shards.manifest.shards]
        return ["shards", self.shards.storage.name, self.shards.manifest.index_sha256, *sums]

    @property
    def folder(self) -> Path | None:
        """Absolute path; None if it is remote."""
        storage = self.shards.storage
        return storage.path.resolve() if isinstance(storage, LocalFolder) else None

    def _checked(self, i: int) -> Sample:
        """A sample whose checksum was verified: damaged data must not get new checksums."""
        sample, shard = self.shards.read(i), self.shards.shard_of(i)
        if self.shards.index[i].crc32 is None and not self._is_intact(shard):
            file = f"{self.shards.storage.name}/{self.shards.manifest.shards[shard].file}"
            raise BrokenSampleError(
                "wrong checksum", f"{file} differs from its checksum; format 1 has no checksums per sample"
            )
        return sample

    def _is_intact(self, shard: int) -> bool:
        if shard not in self._intact:
            try:
                with self.shards.open(shard) as stream:
                    self._intact[shard] = stream_sha256(stream) == self.shards.manifest.shards[shard].sha256
            except OSError as error:
                raise BrokenSampleError("unreadable shard", str(error)) from None
        return self._intact[shard]

    def describe(self) -> str:
        return "shards"


def open_input(
    source: str,
    format: Format = "auto",
    *,
    subset: str | None = None,
    fields: FieldNames | None = None,
    image_root: str | None = None,
    require_target: bool = True,
    require_references: bool = True,
    has_field_options: bool = False,
    storage: StorageConfig | None = None,
) -> Input:
    """Opens a source of any format.

    Args:
        source: file, folder or URL.
        format: auto = detected from name and content.
        subset: folder name of a parquet subset.
        fields: names of fields or columns.
        image_root: base of relative image paths.
        require_target: whether a row without target and answer is an error.
        require_references: whether a row without references is an error in a source that has some, and whether a
            source without any must not have unread fields that look like images.
        has_field_options: whether the command has options that name fields, for messages.
        storage: for shards at a URL.

    Raises:
        UserError: the source does not exist, or an option does not apply to its format.
    """
    format = format_of(source) if format == "auto" else format
    fields = fields or FieldNames()
    root, named = image_root, next(iter(fields.requested()), None)
    options = [("subset", subset, ("parquet",)), ("image_root", root, ("jsonl", "parquet"))]
    options.append((f"fields.{named}", named, ("jsonl", "parquet")))
    for name, value, formats in options:
        if value is not None and format not in formats:
            raise UserError(
                f"--{name} is for {' and '.join(formats)} sources, but {source} is read as {format}; leave it out"
            )
    if format == "shards":
        return ShardInput(source, storage)
    rules = RowRules(
        names=fields,
        require_target=require_target,
        require_references=require_references,
        allow_unused_images=not require_references,
        has_field_options=has_field_options,
    )
    if format == "jsonl":
        return ImageLists.open(source, rules, image_root)
    return ParquetInput(find_parquet(source, subset, rules), rules, image_root)


def format_of(source: str) -> Format:
    """The format of a source, by what is there."""
    path = Path(source)
    if "://" in source or (path / MANIFEST).is_file():
        return "shards"
    if path.is_dir():
        files = [file for file in path.iterdir() if not file.name.startswith(".")]
        lines = [file.name for file in files if file.suffix == SUFFIXES[0]]
        tables = [file.name for file in files if file.suffix == ".parquet"]
        if lines and tables:
            raise UserError(
                f"{source}: holds {lines[0]} and {tables[0]}; say which are read with --format jsonl or parquet"
            )
        other = any(file.suffix in SUFFIXES for file in files) and not any(path.rglob("*.parquet"))
        return "jsonl" if lines or other else "parquet"
    if path.suffix in SUFFIXES:
        return "jsonl"
    if path.suffix == ".parquet" or not path.exists():
        return "parquet"
    with readable(path), path.open("rb") as stream:
        return "parquet" if stream.read(4) == b"PAR1" else "jsonl"
