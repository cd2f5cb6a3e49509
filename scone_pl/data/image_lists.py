"""JSON rows and image files: each row holds the instruction and the image paths of a sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scone_pl.data.json_rows import SUFFIXES, JsonRows
from scone_pl.data.members import plain_key
from scone_pl.data.rows import RowRules, check_rows, describe, read_row, remaining
from scone_pl.data.sample import BrokenSampleError, Sample, sample_or_error
from scone_pl.errors import UserError


@dataclass(frozen=True)
class _ParsedRow:
    """A row, or the reason why it cannot be read."""

    key: str
    file: Path
    where: str
    content: dict[str, Any] | BrokenSampleError


class ImageLists:
    """Rows of one or more JSON files. Unread fields of a row become metadata."""

    def __init__(self, files: list[JsonRows], rules: RowRules, root: Path | None) -> None:
        self.files = files
        self.rules = rules
        self.root = root

    @classmethod
    def open(cls, source: str, rules: RowRules, image_root: str | None) -> ImageLists:
        """Opens the files and checks the rows.

        Args:
            source: a JSON file (one object per line, or one list), or a folder of them.
            rules: how rows are read.
            image_root: base of image paths; None = the JSON file's folder.

        Raises:
            UserError: no such file, or not JSON; see also `check_rows`.
        """
        files = [JsonRows.open(file) for file in find_json(source)]
        if not sum(map(len, files)):
            raise UserError(f"{source}: has no rows; there is nothing to convert")
        if image_root is not None and not Path(image_root).is_dir():
            raise UserError(f"{image_root}: no such folder; --image_root is the base of relative image paths")
        lists = cls(files, rules, Path(image_root) if image_root else None)
        lists.rules = check_rows(lists._valid_rows(), rules, source)
        return lists

    def __len__(self) -> int:
        return sum(map(len, self.files))

    def identity(self) -> list[Any]:
        stats = [rows.file.stat() for rows in self.files]
        files = [[str(f.file), s.st_size, s.st_mtime_ns] for f, s in zip(self.files, stats, strict=True)]
        return ["jsonl", *files, asdict(self.rules), str(self.root)]

    def describe(self) -> str:
        """Which fields of the first valid row are read as what."""
        return next((describe(row, self.rules.names) for row in self._valid_rows()), "nothing")

    def keys(self) -> Iterator[str]:
        if self.rules.names.key is None:
            return (_key(rows.file, int(number)) for rows in self.files for number in rows.numbers)
        return (row.key for row in self._rows(0, len(self)))

    def read(self, start: int, stop: int) -> Iterator[tuple[str, Sample | BrokenSampleError]]:
        return ((row.key, sample_or_error(self._sample, row)) for row in self._rows(start, stop))

    def _valid_rows(self) -> Iterator[dict[str, Any]]:
        return (row for rows in self.files for _, row in rows.read() if isinstance(row, dict))

    def _rows(self, start: int, stop: int) -> Iterator[_ParsedRow]:
        before = 0
        for rows in self.files:
            first, last = max(start - before, 0), min(stop - before, len(rows))
            if first < last:
                for number, content in rows.read(first, last):
                    yield self._parsed_row(rows, number, content)
            before += len(rows)

    def _parsed_row(self, rows: JsonRows, number: int, content: dict[str, Any] | UserError) -> _ParsedRow:
        where, key = rows.where(number), _key(rows.file, int(rows.numbers[number]))
        if isinstance(content, UserError):
            return _ParsedRow(key, rows.file, where, BrokenSampleError("wrong JSON", str(content)))
        if self.rules.names.key is not None:
            _, name = self.rules.names.find(content, "key")
            if not isinstance(name, str | int) or isinstance(name, bool) or not str(name).strip():
                message = f"{where}: {self.rules.names.key!r} is not a string or a number"
                return _ParsedRow(key, rows.file, where, BrokenSampleError("missing key", message))
            key = plain_key(str(name))
        return _ParsedRow(key, rows.file, where, content)

    def _sample(self, parsed: _ParsedRow) -> Sample:
        if isinstance(parsed.content, BrokenSampleError):
            raise parsed.content
        row = read_row(parsed.content, self.rules, parsed.where, self.root or parsed.file.parent)
        metadata = remaining(parsed.content, self.rules.names)
        metadata.setdefault("source", {"file": parsed.file.name})
        return row.load(parsed.key, parsed.where, metadata)


def find_json(source: str | Path) -> list[Path]:
    """A JSON file, or the sorted JSON files of a folder: `*.jsonl` if there are any, else `*.json`.

    Raises:
        UserError: there is none.
    """
    path = Path(source)
    if not path.is_dir():
        return [path]
    for suffix in SUFFIXES:
        files = sorted(file for file in path.glob(f"*{suffix}") if not file.name.startswith("."))
        if files:
            return files
    raise UserError(f"{source}: no JSON file in it; give a file with one sample per line, or a folder of such files")


def _key(file: Path, number: int) -> str:
    return plain_key(f"{plain_key(file.stem, 60)}-{number:09d}")
