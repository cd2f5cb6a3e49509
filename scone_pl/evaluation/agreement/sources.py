"""Ratings of images from a judge's scores, from a table of people's ratings, or from DreamBench++'s files."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.records import Record, read_records
from scone_pl.files import read_json, read_text

CSV_FIELDS = ("rater", "task_type", "key", "sampling", "column", "value")
_COLUMN = re.compile(r"\w[\w -]{0,39}")
_DREAMBENCH_KEY = re.compile(r"(live_subject_animal|live_subject_human|object|style)_")
_DREAMBENCH_COLUMNS = ("CP", "PF")


class Image(NamedTuple):
    """A generated image that was rated."""

    system: str
    """The model that made it; empty if the source does not say."""
    task: str
    key: str
    sampling: int

    def __str__(self) -> str:
        return f"{self.task}/{self.key}, sampling {self.sampling}"


Ratings = dict[str, dict[Image, dict[str, float]]]
"""Column -> image -> rater (a scoring, or a person) -> value."""


@dataclass
class Source:
    """All ratings of one side."""

    name: str
    ratings: Ratings = field(default_factory=dict)
    answers: dict[Image, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    """Image -> rater -> 0/1 answers."""
    digests: dict[Image, str] = field(default_factory=dict)
    """SHA-256 of the image files, where known."""
    reasons: dict[Image, dict[str, str]] = field(default_factory=dict)
    """Image -> column -> reason of the first scoring."""
    folders: dict[str, Path] = field(default_factory=dict)
    """System -> folder of its evaluation."""
    incomplete: int = 0
    """Records or values that were left out."""

    def add(self, column: str, image: Image, rater: str, value: float) -> None:
        """Adds one value."""
        self.ratings.setdefault(column, {}).setdefault(image, {})[rater] = value

    @property
    def systems(self) -> list[str]:
        """Names in order of appearance."""
        return list(dict.fromkeys(image.system for images in self.ratings.values() for image in images))


def read_source(files: Sequence[str], systems: Sequence[str], benchmark: Benchmark | None, title: str) -> Source:
    """Reads all files of one side.

    Args:
        files: `scores.jsonl` (one system each), CSV tables, or folders of DreamBench++.
        systems: names of the systems of the `scores.jsonl`, in order.
        benchmark: of the scores.
        title: of this side, for messages.

    Raises:
        UserError: a file cannot be read or has invalid values; scores without a benchmark; nothing is left.
    """
    source = Source(title)
    names = list(systems)
    for file in map(Path, files):
        if file.is_dir():
            _read_dreambench(source, file)
        elif is_table(file):
            _read_csv(source, file)
        elif benchmark is None:
            raise UserError(f"{file}: --benchmark: say which benchmark these scores are of")
        else:
            _add_records(source, read_records(file, benchmark), benchmark, names.pop(0), file)
    if not source.ratings:
        raise UserError(f"{files[0]}: has no complete rating")
    return source


def is_table(file: Path) -> bool:
    """Whether a file is a table of ratings by its name."""
    return file.suffix.lower() == ".csv"


def _add_records(source: Source, records: Sequence[Record], benchmark: Benchmark, system: str, file: Path) -> None:
    source.folders[system] = file.parent
    for record in sorted(records, key=lambda record: record["scoring"]):
        image = Image(system, record["task_type"], str(record["key"]), record["sampling"])
        digest = record.get("picture")
        if not isinstance(digest, str):
            raise UserError(
                f"{file}: the record of {image} has no `picture` (hash of the image); run the verb judge again, which "
                "asks nothing twice and writes it"
            )
        source.digests[image] = digest
        if not benchmark.is_complete(record):
            source.incomplete += 1
            continue
        rater = str(record["scoring"])
        for column, value in benchmark.item_scores(record).items():
            source.add(column, image, rater, value)
        if answers := benchmark.binary(record):
            source.answers.setdefault(image, {})[rater] = tuple(answers)
        reasons = {k.removesuffix("_reason"): v for k, v in record.items() if k.endswith("_reason") and v}
        source.reasons.setdefault(image, {str(name): str(text) for name, text in reasons.items()})


def _read_csv(source: Source, file: Path) -> None:
    """A table with `CSV_FIELDS`, and optionally `system`; an empty value or NaN is left out."""
    reader = csv.DictReader(io.StringIO(read_text(file)))
    try:
        heads = reader.fieldnames or ()
        rows = list(enumerate(reader, 2))
    except csv.Error as error:
        raise UserError(f"{file}: not CSV ({error})") from None
    if missing := [name for name in CSV_FIELDS if name not in heads]:
        raise UserError(f"{file}: has no column {missing[0]}; it needs {','.join(CSV_FIELDS)}, optionally system")
    for number, row in rows:
        where = f"{file}: row {number}"
        if any(row[name] is None for name in CSV_FIELDS) or None in row:
            raise UserError(f"{where}: has not as many cells as the head")
        sampling = row["sampling"].strip()
        if not re.fullmatch(r"[1-9][0-9]{0,8}", sampling):
            raise UserError(f"{where}: `sampling` must be a whole number from 1, not {sampling!r:.40}")
        image = Image((row.get("system") or "").strip(), row["task_type"].strip(), row["key"].strip(), int(sampling))
        column, rater = row["column"].strip(), row["rater"].strip()
        if not (image.task and image.key and column and rater):
            raise UserError(f"{where}: rater, task_type, key and column must not be empty")
        if not _COLUMN.fullmatch(column):
            raise UserError(f"{where}: `column` {column!r:.40} must be a short name of letters and digits, such as SC")
        value = _number(row["value"], where)
        if rater in source.ratings.get(column, {}).get(image, {}):
            raise UserError(f"{where}: {rater} has already rated {column} of {image}")
        if value is None:
            source.incomplete += 1
        else:
            source.add(column, image, rater, value)


def _number(text: str, where: str) -> float | None:
    try:
        value = float(text) if text.strip() else math.nan
    except ValueError:
        raise UserError(f"{where}: `value` {text!r:.40} is no number") from None
    if math.isinf(value) or abs(value) > 1e6:
        raise UserError(f"{where}: `value` {text!r:.40} is too large")
    return None if math.isnan(value) else value


def _read_dreambench(source: Source, folder: Path) -> None:
    """The ratings of one group of people, or of one metric: a file `*-METHOD.json` for each method.

    A file maps the name of an image to [concept preservation, prompt following]; NaN is left out.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"{folder}: no JSON files; give a folder of DreamBench++'s raw ratings (*-METHOD.json)")
    stems = [file.stem for file in files]
    # Methods have dashes, too. A single file tells no common prefix.
    prefix = os.path.commonprefix(stems) if len(stems) > 1 else stems[0].partition("-")[0] + "-"  # noqa: RUF071
    start = prefix.rfind("-") + 1
    for file in files:
        for key, values in read_json(file, dict).items():
            if not isinstance(values, list) or len(values) != len(_DREAMBENCH_COLUMNS):
                raise UserError(f"{file}: {key!r:.60} must have two numbers")
            match = _DREAMBENCH_KEY.match(key)
            image = Image(file.stem[start:], match[1] if match else "all", key, 1)
            for column, value in zip(_DREAMBENCH_COLUMNS, values, strict=True):
                if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
                    raise UserError(f"{file}: {key!r:.60} must have two numbers")
                if math.isnan(value):
                    source.incomplete += 1
                else:
                    source.add(column, image, folder.name, float(value))


def paired(reference: Source, candidate: Source) -> dict[str, list[Image]]:
    """Column -> images that both have rated, sorted.

    Raises:
        UserError: an image of the same name has other content, or there is none in common.
    """
    for image, digest in reference.digests.items():
        if candidate.digests.get(image, digest) != digest:
            raise UserError(
                f"{image} of {image.system or 'the system'} is not the same image on both sides; name the systems in "
                "the same order, and judge the same images (judge --images FOLDER)"
            )
    if not reference.ratings.keys() & candidate.ratings.keys():
        listed = (", ".join(side.ratings) for side in (reference, candidate))
        raise UserError("the two sides have no column in common: {}, and {}".format(*listed))
    common = {
        column: sorted(images.keys() & candidate.ratings.get(column, {}).keys())
        for column, images in reference.ratings.items()
    }
    common = {column: images for column, images in common.items() if images}
    if not common:
        one, other = (
            sorted({i for images in side.ratings.values() for i in images}) for side in (reference, candidate)
        )
        raise UserError(
            "the two sides have no rated image in common (compared by system, task, key and sampling), such as "
            f"{one[0]} of system {one[0].system!r:.60}, and {other[0]} of system {other[0].system!r:.60}"
        )
    return common


def with_system(source: Source, other: Source) -> Source:
    """`source` with the one system of `other`, if it does not name its own.

    Raises:
        UserError: `other` has several systems.
    """
    if source.systems != [""] or other.systems == [""]:
        return source
    if len(other.systems) != 1:
        raise UserError("the table of ratings has no column system, but there are several systems; add one")
    (system,) = other.systems

    def named(images: Mapping[Image, dict[str, float]]) -> dict[Image, dict[str, float]]:
        return {image._replace(system=system): values for image, values in images.items()}

    ratings = {column: named(images) for column, images in source.ratings.items()}
    return Source(source.name, ratings, incomplete=source.incomplete)
