"""Parquet sources, read a few rows at a time: the published Scone-S2I layout, or columns named like JSON fields."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from scone_pl.data.members import plain_key
from scone_pl.data.parquet_columns import IMAGE_COLUMN, Columns, columns_of
from scone_pl.data.rows import RowRules, describe, read_row
from scone_pl.data.sample import BrokenSampleError, Kind, Sample, sample_or_error
from scone_pl.errors import UserError
from scone_pl.files import readable

_ROWS_AT_A_TIME = 8


@dataclass(frozen=True)
class ParquetFile:
    """One file of a subset."""

    path: Path
    subset: str
    rows: int
    columns: Columns

    @property
    def kind(self) -> Kind:
        """Kind of its samples by the subset's name, for rows without a column for it."""
        return "multi" if "multi" in self.subset else "single"


def find_parquet(source: str | Path, subset: str | None = None, rules: RowRules | None = None) -> list[ParquetFile]:
    """The parquet files under `source`: the data set's root, its `parquet_data`, one subset's folder, or one file.

    Args:
        source: where to look; hidden files and folders are ignored.
        subset: only this subset (a folder name).
        rules: how rows are read.

    Raises:
        UserError: no file, an unreadable file, or invalid columns (see `columns_of`).
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; give the root of the parquet data set")
    if source.is_dir():
        files = (path for path in source.rglob("*.parquet") if not path.is_dir())
        paths = sorted(path for path in files if not _is_hidden(path.relative_to(source)))
    else:
        paths = [source]
    if not paths:
        raise UserError(f"{source}: no *.parquet file in it; give the root of the parquet data set")
    names = sorted({path.parent.name for path in paths})
    if subset is not None:
        paths = [path for path in paths if path.parent.name == subset]
        if not paths:
            raise UserError(f"{source}: no subset named {subset!r}; there are: {', '.join(names)}")
    return [_open_file(path, rules or RowRules()) for path in paths]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _open_file(path: Path, rules: RowRules) -> ParquetFile:
    first: dict[str, Any] = {}
    try:
        with readable(path), pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            for batch in file.iter_batches(1, use_threads=False):
                with suppress(UnicodeDecodeError):  # reported when that row is read
                    first = _values(batch) if batch.num_rows else {}
                break
            columns = columns_of(schema, rules, str(path), first)
    except UnicodeDecodeError:
        raise UserError(f"{path}: the name of a column is not UTF-8; fetch the file again") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({_one_line(error)}); fetch it again") from None
    return ParquetFile(path, path.parent.name, rows, columns)


class ParquetInput:
    """Parquet files in sequence; see `inputs.Input`."""

    def __init__(self, files: list[ParquetFile], rules: RowRules | None = None, root: str | None = None) -> None:
        """`root`: base of relative image paths; None = the file's folder."""
        self.files = files
        self.rules = rules or RowRules()
        self.root = root and Path(root)
        if root is not None and not Path(root).is_dir():
            raise UserError(f"{root}: no such folder; --image_root is the base of relative image paths")

    def __len__(self) -> int:
        return sum(file.rows for file in self.files)

    def identity(self) -> list[Any]:
        stats = [file.path.stat() for file in self.files]
        files = [[str(f.path), s.st_size, s.st_mtime_ns] for f, s in zip(self.files, stats, strict=True)]
        return ["parquet", *files, asdict(self.rules), str(self.root)]

    def describe(self) -> str:
        """Which columns of the first file are read as what."""
        columns = self.files[0].columns
        nested = [name for name in self.rules.names.requested().values() if name.split(".")[0] in columns.names]
        row = {name: "?" for name in (*columns.names, *nested) if name != IMAGE_COLUMN}
        description = describe(row, self.rules.names)
        return f"{columns.image_description}, {description}" if columns.has_image_column else description

    def keys(self) -> Iterator[str]:
        if self.rules.names.key is None:
            return (key_of(file, row) for file in self.files for row in range(file.rows))
        return (key for file in self.files for key, _ in self._rows(file, 0, file.rows, keys_only=True))

    def read(self, start: int, stop: int) -> Iterator[tuple[str, Sample | BrokenSampleError]]:
        before = 0
        for file in self.files:
            first, last = max(start - before, 0), min(stop - before, file.rows)
            for number, (key, row) in enumerate(self._rows(file, first, last), first):
                yield key, sample_or_error(self._sample, row, file, number, key)
            before += file.rows

    def _rows(
        self, file: ParquetFile, start: int, stop: int, *, keys_only: bool = False
    ) -> Iterator[tuple[str, dict[str, Any] | BrokenSampleError]]:
        name = self.rules.names.key
        columns = (name if name in file.columns.names else name.split(".")[0],) if name and keys_only else None
        for number, row in enumerate(iter_rows(file, start, stop, columns), start):
            key = key_of(file, number)
            if name is not None and isinstance(row, dict):
                _, own = self.rules.names.find(row, "key")
                if own is None or not str(own).strip():
                    row = BrokenSampleError("missing key", f"{file.path}: row {number}: no {name!r}")
                else:
                    key = plain_key(str(own))
            yield key, row

    def _sample(self, row: dict[str, Any] | BrokenSampleError, file: ParquetFile, number: int, key: str) -> Sample:
        if isinstance(row, BrokenSampleError):
            raise row
        where = f"{file.path}: row {number}"
        metadata = {"source": {"file": file.path.name, "subset": file.subset, "row": number}}
        parts = read_row(file.columns.row(row, where), self.rules, where, self.root or file.path.parent)
        return parts.load(key, where, metadata, file.kind)


def iter_rows(
    file: ParquetFile, start: int = 0, stop: int | None = None, columns: tuple[str, ...] | None = None
) -> Iterator[dict[str, Any] | BrokenSampleError]:
    """Rows as {column: value}, or the error of a row; memory is bounded by a few rows, not by a row group.

    Args:
        file: the opened file.
        start: first row.
        stop: end of the range, exclusive; None = all rows.
        columns: columns to read; None = those of `file`.

    Raises:
        UserError: the file is damaged.
    """
    stop = file.rows if stop is None else stop
    if start >= stop:
        return
    names = list(columns or file.columns.names)
    number = start
    try:
        # Without pre-buffering pages are read on demand instead of a whole row group at once.
        with (
            readable(file.path),
            pyarrow.parquet.ParquetFile(file.path, buffer_size=1 << 20, pre_buffer=False) as reader,
        ):
            groups, before = _groups(reader, start, stop)
            for batch in reader.iter_batches(_ROWS_AT_A_TIME, row_groups=groups, columns=names, use_threads=False):
                for row in range(max(start - before, 0), min(stop - before, len(batch))):
                    try:
                        values: dict[str, Any] | BrokenSampleError = _values(batch.slice(row, 1))
                    except UnicodeDecodeError as error:
                        text = f"{file.path}: row {number}: a string is not UTF-8 ({error.reason})"
                        values = BrokenSampleError("wrong text", text)
                    yield values
                    number += 1
                before += len(batch)
                if number >= stop:
                    return
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file.path}: damaged ({_one_line(error)}); fetch it again") from None
    raise UserError(f"{file.path}: ends after row {number}, but claims {file.rows} rows; fetch it again")


def _values(batch: pyarrow.RecordBatch) -> dict[str, Any]:
    """The first row of a batch as {column: value}."""
    return {name: column[0].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _groups(reader: pyarrow.parquet.ParquetFile, start: int, stop: int) -> tuple[list[int], int]:
    """Row groups that hold the rows from `start` to `stop`, and the index of their first row."""
    groups: list[int] = []
    first, row = start, 0
    for group in range(reader.num_row_groups):
        rows = reader.metadata.row_group(group).num_rows
        if row < stop and row + rows > start:
            first = first if groups else row
            groups.append(group)
        row += rows
    return groups, first


def key_of(file: ParquetFile, row: int) -> str:
    """`<subset>-<file>-<row>` as a valid key."""
    return plain_key(f"{file.subset}-{file.path.stem}-{row:06d}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
