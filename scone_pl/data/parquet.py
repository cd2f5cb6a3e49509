"""Reading the published Scone-S2I parquet layout (SPEC 9), a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from scone_pl.data.members import plain_key
from scone_pl.data.sample import BrokenSampleError, Kind, Sample, usable
from scone_pl.errors import UserError

COLUMNS = ["image", "instruction"]
_ROWS_AT_A_TIME = 8


@dataclass(frozen=True)
class ParquetFile:
    """One file of a subset."""

    path: Path
    subset: str
    rows: int

    @property
    def kind(self) -> Kind:
        """Kind of its samples, told by the subset's name."""
        return "multi" if "multi" in self.subset else "single"


def find_parquet(source: str | Path, subset: str | None = None) -> list[ParquetFile]:
    """The parquet files under `source`: the data set's root, its `parquet_data`, one subset's folder, or one file.

    Args:
        source: where to look.
        subset: only this subset (a folder's name).

    Raises:
        UserError: nothing found, an unreadable file, or missing columns.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; give the root of the parquet data set")
    paths = [source] if source.is_file() else sorted(source.rglob("*.parquet"))
    if not paths:
        raise UserError(f"{source}: no *.parquet file in it; give the root of the parquet data set")
    names = sorted({path.parent.name for path in paths})
    if subset is not None:
        paths = [path for path in paths if path.parent.name == subset]
        if not paths:
            raise UserError(f"{source}: no subset named {subset!r}; there are: {', '.join(names)}")
    return [_check(path) for path in paths]


def _check(path: Path) -> ParquetFile:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            missing = set(COLUMNS) - set(file.schema_arrow.names)
            rows = file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({_one_line(error)}); fetch it again") from None
    if missing:
        raise UserError(f"{path}: no column {', '.join(sorted(missing))}; the Scone-S2I layout has {COLUMNS}")
    return ParquetFile(path, path.parent.name, rows)


class ParquetInput:
    """Files one after the other; see `inputs.Input`."""

    def __init__(self, files: list[ParquetFile]) -> None:
        self.files = files

    def __len__(self) -> int:
        return sum(file.rows for file in self.files)

    def identity(self) -> list[Any]:
        stats = [file.path.stat() for file in self.files]
        return ["parquet", *([str(f.path), s.st_size, s.st_mtime_ns] for f, s in zip(self.files, stats, strict=True))]

    def keys(self) -> Iterator[str]:
        return (key_of(file, row) for file in self.files for row in range(file.rows))

    def read(self, start: int, stop: int) -> Iterator[tuple[str, Sample | BrokenSampleError]]:
        before = 0
        for file in self.files:
            first, last = max(start - before, 0), min(stop - before, file.rows)
            for number, row in enumerate(iter_rows(file, first, last), first):
                key = key_of(file, number)
                metadata = {"source": {"file": file.path.name, "subset": file.subset, "row": number}}
                yield key, usable(row_to_sample, row, key, file.kind, metadata)
            before += file.rows


def iter_rows(file: ParquetFile, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
    """Rows as {"image": list of bytes, "instruction": str}; memory is bounded by a few rows, not by a row group.

    Raises:
        UserError: the file is damaged within.
    """
    stop = file.rows if stop is None else stop
    if start >= stop:
        return
    try:
        # Without a pre-buffer pages are read as needed instead of a whole row group at once.
        with pyarrow.parquet.ParquetFile(file.path, buffer_size=1 << 20, pre_buffer=False) as reader:
            groups, before = _groups(reader, start, stop)
            number = before
            for batch in reader.iter_batches(_ROWS_AT_A_TIME, row_groups=groups, columns=COLUMNS, use_threads=False):
                wanted = batch[max(start - number, 0) : max(stop - number, 0)]
                number += len(batch)
                yield from wanted.to_pylist()
                if number >= stop:
                    return
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file.path}: damaged ({_one_line(error)}); fetch it again") from None


def _groups(reader: pyarrow.parquet.ParquetFile, start: int, stop: int) -> tuple[list[int], int]:
    """Row groups that hold the rows from `start` to `stop`, and the number of the first row in them."""
    groups, first, row = [], start, 0
    for group in range(reader.num_row_groups):
        rows = reader.metadata.row_group(group).num_rows
        if row < stop and row + rows > start:
            first = first if groups else row
            groups.append(group)
        row += rows
    return groups, first


def row_to_sample(row: dict[str, Any], key: str, kind: Kind, metadata: dict[str, Any]) -> Sample:
    """The sample in a row; the last image is the target.

    Raises:
        BrokenSampleError: no image or no instruction.
    """
    images, instruction = row["image"], row["instruction"]
    if not images or any(not image for image in images):
        raise BrokenSampleError("missing image", f"{key}: the image list is empty or holds an empty image")
    if not isinstance(instruction, str) or not instruction.strip():
        raise BrokenSampleError("missing instruction", f"{key}: no instruction")
    return Sample(
        key=key,
        references=tuple(images[:-1]),
        target=images[-1],
        instruction=instruction,
        kind=kind,
        metadata=metadata,
    )


def key_of(file: ParquetFile, row: int) -> str:
    """`<subset>-<file>-<row>`, in the letters that a key may hold."""
    return plain_key(f"{file.subset}-{file.path.stem}-{row:06d}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
