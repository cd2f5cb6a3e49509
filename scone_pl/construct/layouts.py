"""Readers of pools in their published layouts; each row is one or more entries, or the reason why it is none."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet

from scone_pl.construct.placeholders import in_words
from scone_pl.construct.where import Condition
from scone_pl.data.image_lists import ImageLists, find_json
from scone_pl.data.inputs import ShardInput
from scone_pl.data.json_rows import JsonRows
from scone_pl.data.parquet import ParquetFile, find_parquet, iter_rows
from scone_pl.data.rows import Row, RowRules, read_row, remaining
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError
from scone_pl.files import read_text, readable

MAX_SCORE = 4
"""Of UNO-1M's `score_final`; the label files have numbers beyond it, which a parser read from something else."""
_DIFFERENT = re.compile(
    r"\s*(?:(?:no|false)\b(?! diff).*|0|different(?: subjects?)?\W*|not (?:the )?same\b.*)", re.IGNORECASE | re.DOTALL
)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
_REFERENCE = re.compile(r"(?:ref|reference|input|image|img)[_\- ]?(\d{1,4})", re.IGNORECASE)
_TARGET = re.compile(r"(?:target|output|result)", re.IGNORECASE)
_TEXTS = ("instruction.txt", "prompt.txt", "caption.txt")


@dataclass(frozen=True)
class Entry:
    """A sample as a pool has it."""

    row: Row
    metadata: dict[str, Any] = field(default_factory=dict)


Read = Iterator[Entry | BrokenSampleError]


class Reader(Protocol):
    """A pool; pickled for worker processes."""

    def __len__(self) -> int:
        """Number of entries, valid or not."""
        ...

    def read(self, start: int, stop: int) -> Read:
        """Each entry in a range, or the reason why it is none."""
        ...

    def identity(self) -> list[Any]:
        """JSON that changes whenever the pool does."""
        ...


def _check(row: Mapping[str, Any], conditions: Sequence[Condition]) -> None:
    for condition in conditions:
        condition.check(row)


def _or_error(make: Any, *args: Any) -> Entry | BrokenSampleError:
    try:
        return make(*args)  # type: ignore[no-any-return]  # make is a registered class
    except BrokenSampleError as error:
        return error


def _inside(row: Row, folder: Path) -> Row:
    """The row; text from elsewhere must not make us read, or send to a server, files outside of the pool."""
    root = os.path.abspath(folder)
    for image in (*row.references, row.target):
        if isinstance(image, Path) and os.path.commonpath((root, os.path.abspath(image))) != root:
            raise BrokenSampleError("image outside the pool", f"{image} is not below {folder}; set image_root")
    return row


class JsonReader:
    """Rows of JSON files: any fields that `shards convert` reads, and X2I's placeholders."""

    per_row = 1

    def __init__(self, path: str, rules: RowRules, root: str | None, conditions: Sequence[Condition] = ()) -> None:
        lists = self._open(path, rules, root)
        self.files, self.rules, self.root, self.conditions = lists.files, lists.rules, lists.root, conditions
        self._ends = list(accumulate(self.per_row * len(rows) for rows in self.files))
        for condition in conditions:
            if not any(_has_number(content, condition) for rows in self.files for _, content in rows.read()):
                raise UserError(f"{path}: no row has a number {condition.field}, which `where` asks for")

    def _open(self, path: str, rules: RowRules, root: str | None) -> ImageLists:
        return ImageLists.open(path, rules, root)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def identity(self) -> list[Any]:
        stats = [rows.file.stat() for rows in self.files]
        files = [[str(f.file), s.st_size, s.st_mtime_ns] for f, s in zip(self.files, stats, strict=True)]
        return [type(self).__name__, *files, repr(self.rules), str(self.root), *map(str, self.conditions)]

    def read(self, start: int, stop: int) -> Read:
        per_row, position = self.per_row, start
        while position < stop:
            file = bisect_right(self._ends, position)
            before = self._ends[file - 1] if file else 0
            last = min(stop, self._ends[file])
            rows = self.files[file]
            for number, content in rows.read((position - before) // per_row, -(-(last - before) // per_row)):
                for part in range(per_row):
                    if position <= before + number * per_row + part < last:
                        yield _or_error(self._entry, rows, number, content, part)
            position = last

    def _entry(self, rows: JsonRows, number: int, content: dict[str, Any] | UserError, part: int) -> Entry:
        if isinstance(content, UserError):
            raise BrokenSampleError("wrong JSON", str(content))
        self._check_usable(content, rows.where(number))
        _check(content, self.conditions)
        return self._parse(content, rows.where(number), self.root or rows.file.parent, rows.file.name, part)

    def _check_usable(self, content: dict[str, Any], where: str) -> None:
        """Raises `BrokenSampleError` for what no condition can judge."""

    def _parse(self, content: dict[str, Any], where: str, folder: Path, file: str, part: int) -> Entry:
        row = _inside(read_row(content, self.rules, where, folder), folder)
        text = in_words(row.instruction, len(row.references))
        metadata = remaining(content, self.rules.names)
        metadata.setdefault("source", {"file": file})
        return Entry(Row(**{**vars(row), "instruction": text}), metadata)


def _has_number(content: Any, condition: Condition) -> bool:
    try:
        condition.check(content if isinstance(content, dict) else {})
    except BrokenSampleError as error:
        return not error.reason.startswith("no number")
    return True


class UnoReader(JsonReader):
    """UNO-1M: a pair is two entries, each picture once the reference of the other."""

    per_row = 2

    def _open(self, path: str, rules: RowRules, root: str | None) -> ImageLists:
        files = [JsonRows.open(file) for file in find_json(path)]
        if root is not None and not Path(root).is_dir():
            raise UserError(f"{root}: no such folder; image_root is the base of relative image paths")
        return ImageLists(files, rules, Path(root) if root else None)

    def _check_usable(self, content: dict[str, Any], where: str) -> None:
        scores = content.get("vlm_filter_cot")
        if scores is None:
            return
        score = scores.get("score_final") if isinstance(scores, Mapping) else None
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= MAX_SCORE:
            raise BrokenSampleError("unusable score", f"{where}: score_final is {score!r:.60}")

    def _parse(self, content: dict[str, Any], where: str, folder: Path, file: str, part: int) -> Entry:
        caption, scores = content.get("caption"), content.get("vlm_filter_cot")
        if not isinstance(caption, Mapping):
            raise BrokenSampleError("missing instruction", f"{where}: caption is no mapping")
        judgment = caption.get("judgment")
        if judgment is False or (isinstance(judgment, str) and _DIFFERENT.fullmatch(judgment)):
            raise BrokenSampleError("judged different", f"{where}: judgment is {judgment!r:.60}")
        reference, target = ("img_path1", "img_path2") if part == 0 else ("img_path2", "img_path1")
        fields = {"references": content.get(reference), "target": content.get(target)}
        if any(value is not None and not isinstance(value, str) for value in fields.values()):
            raise BrokenSampleError("wrong field", f"{where}: img_path1 and img_path2 must be paths")
        if fields["references"] is not None and fields["references"] == fields["target"]:
            raise BrokenSampleError("target is a reference", f"{where}: both images are {fields['target']!r:.120}")
        rules = RowRules()
        row = _inside(read_row({**fields, "instruction": caption.get(target)}, rules, where, folder), folder)
        subject = caption.get("subject")
        metadata: dict[str, Any] = {"source": {"file": file, "layout": "uno"}, "identity": where}
        if isinstance(subject, str) and subject.strip():
            metadata["subjects"] = [subject.strip()]
        if scores is not None:
            metadata["score_final"] = scores["score_final"]
        return Entry(row, metadata)


class ParquetReader:
    """Parquet files, with images as bytes, paths or `datasets`' structs of both."""

    def __init__(
        self, path: str, rules: RowRules, root: str | None, subset: str | None, conditions: Sequence[Condition] = ()
    ) -> None:
        self.files = find_parquet(path, subset, rules)
        self.rules, self.root, self.conditions = rules, root, conditions
        self._ends = list(accumulate(file.rows for file in self.files))
        for condition in conditions:
            for file in self.files:
                if self._column(file, condition) is None:
                    raise UserError(f"{file.path}: no column {condition.field.split('.')[0]}, which `where` asks for")

    def _column(self, file: ParquetFile, condition: Condition) -> str | None:
        names = pyarrow.parquet.read_schema(file.path).names
        return next((name for name in (condition.field, condition.field.split(".")[0]) if name in names), None)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def identity(self) -> list[Any]:
        stats = [file.path.stat() for file in self.files]
        files = [[str(f.path), s.st_size, s.st_mtime_ns] for f, s in zip(self.files, stats, strict=True)]
        return ["parquet", *files, repr(self.rules), str(self.root), *map(str, self.conditions)]

    def read(self, start: int, stop: int) -> Read:
        position = start
        while position < stop:
            number = bisect_right(self._ends, position)
            before, file = self._ends[number - 1] if number else 0, self.files[number]
            last = min(stop, self._ends[number])
            more = [name for c in self.conditions if (name := self._column(file, c)) is not None]
            columns = tuple(dict.fromkeys((*file.columns.names, *more)))
            rows = iter_rows(file, position - before, last - before, columns)
            for row, values in enumerate(rows, position - before):
                yield _or_error(self._entry, file, row, values)
            position = last

    def _entry(self, file: ParquetFile, number: int, values: dict[str, Any] | BrokenSampleError) -> Entry:
        if isinstance(values, BrokenSampleError):
            raise values
        _check(values, self.conditions)
        where, folder = f"{file.path}: row {number}", Path(self.root) if self.root else file.path.parent
        row = _inside(read_row(file.columns.row(values, where), self.rules, where, folder), folder)
        text = in_words(row.instruction, len(row.references))
        source = {"file": file.path.name, "subset": file.subset, "row": number}
        return Entry(Row(**{**vars(row), "instruction": text, "kind": row.kind or file.kind}), {"source": source})


class ShardReader:
    """A data set of ours."""

    def __init__(self, path: str, conditions: Sequence[Condition] = ()) -> None:
        self.input, self.conditions = ShardInput(path), conditions

    def __len__(self) -> int:
        return len(self.input)

    def identity(self) -> list[Any]:
        return [*self.input.identity(), *map(str, self.conditions)]

    def read(self, start: int, stop: int) -> Read:
        for _, sample in self.input.read(start, stop):
            if isinstance(sample, BrokenSampleError):
                yield sample
                continue
            try:
                _check(sample.metadata, self.conditions)
            except BrokenSampleError as error:
                yield error
                continue
            row = Row(
                sample.instruction,
                sample.references,
                sample.target or None,
                sample.answer,
                sample.kind,
                sample.candidates,
            )
            yield Entry(row, sample.metadata)


class FolderReader:
    """A folder a sample: `ref_1.png, ref_2.png, ..., target.png, instruction.txt`."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.folders = _folders(path)

    def __len__(self) -> int:
        return len(self.folders)

    def identity(self) -> list[Any]:
        stats = [(self.path / name).stat() for name in self.folders]
        return ["folders", str(self.path), [[n, s.st_mtime_ns] for n, s in zip(self.folders, stats, strict=True)]]

    def read(self, start: int, stop: int) -> Read:
        return (_or_error(self._entry, name) for name in self.folders[start:stop])

    def _entry(self, name: str) -> Entry:
        folder = self.path / name
        references: dict[int, Path] = {}
        targets: list[Path] = []
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() not in _SUFFIXES or file.name.startswith("."):
                continue
            if _TARGET.fullmatch(file.stem):
                targets.append(file)
            elif match := _REFERENCE.fullmatch(file.stem):
                if int(match[1]) in references:
                    raise BrokenSampleError("wrong references", f"{folder}: reference {int(match[1])} comes twice")
                references[int(match[1])] = file
        numbers = sorted(references)
        if not numbers or numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1:
            raise BrokenSampleError("wrong references", f"{folder}: references are numbered {numbers[:10]}")
        if len(targets) != 1:
            raise BrokenSampleError("missing target", f"{folder}: {len(targets)} files are named target")
        text = next((folder / one for one in _TEXTS if (folder / one).is_file()), None)
        try:
            instruction = read_text(text).strip() if text else ""
        except UserError as error:
            raise BrokenSampleError("wrong text", str(error)) from None
        if not instruction:
            raise BrokenSampleError("missing instruction", f"{folder}: no text in {_TEXTS[0]}")
        instruction = in_words(instruction, len(references))
        row = Row(instruction, tuple(references[n] for n in numbers), targets[0], "", None, None)
        return Entry(row, {"source": {"folder": name}})


class SubjectReader:
    """A folder a subject with photographs of it, as DreamBooth has them: the reference is one, the target the next."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.photos = []
        for name in _folders(path):
            files = (self.path / name).iterdir()
            photos = [f.name for f in sorted(files) if f.suffix.lower() in _SUFFIXES and not f.name.startswith(".")]
            self.photos += [(name, photo, photos[(i + 1) % len(photos)]) for i, photo in enumerate(photos)]

    def __len__(self) -> int:
        return len(self.photos)

    def identity(self) -> list[Any]:
        stats = [(self.path / name / photo).stat() for name, photo, _ in self.photos]
        return ["subjects", str(self.path), self.photos, [s.st_mtime_ns for s in stats]]

    def read(self, start: int, stop: int) -> Read:
        for name, photo, following in self.photos[start:stop]:
            if photo == following:
                yield BrokenSampleError("missing target", f"{self.path / name}: has one photograph, so no target")
                continue
            subject = " ".join(re.sub(r"\d+$", "", name).replace("_", " ").replace("-", " ").split()) or name
            folder = self.path / name
            row = Row(f"A photo of the {subject} of image 1.", (folder / photo,), folder / following, "", None, None)
            yield Entry(row, {"source": {"folder": name}, "subjects": [subject], "identity": name})


def _folders(path: str) -> list[str]:
    if not Path(path).is_dir():
        raise UserError(f"{path}: no such folder")
    names = sorted(f.name for f in Path(path).iterdir() if f.is_dir() and not f.name.startswith("."))
    if not names:
        raise UserError(f"{path}: has no folder in it; each sample or subject is one")
    return names


def looks_like_uno(path: str) -> bool:
    """Whether the first rows of a JSON file or folder have UNO-1M's fields."""
    try:
        file = find_json(path)[0]
        with readable(file), file.open("rb") as stream:
            head = stream.read(1 << 16)
    except UserError:
        return False
    return b'"img_path1"' in head and b'"img_path2"' in head
