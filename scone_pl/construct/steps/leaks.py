"""Samples that would leak a benchmark into the training data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import datasketch

from scone_pl.construct.items import Item, Rejected
from scone_pl.construct.pools import Images
from scone_pl.construct.steps.base import Facts, Outcome, Step
from scone_pl.construct.steps.duplicates import fingerprints
from scone_pl.construct.steps.fingerprints import PERMUTATIONS, HashIndex, minhash_of, mirrored_print, print_of
from scone_pl.data.decoding import decode_rgb, read_encoded
from scone_pl.data.json_rows import JsonRows
from scone_pl.data.parquet import find_parquet, iter_rows
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError
from scone_pl.files import read_json, read_text
from scone_pl.ranges import check_number, check_whole

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
_TEXT_FIELDS = ("instruction", "prompt", "caption", "text")
_MIN_WORDS = 6
"""Shorter texts, such as `a dog`, say nothing about where a sample is from."""


@dataclass(frozen=True, kw_only=True)
class Decontaminate(Step):
    """Rejects samples with an image, mirrored or not, or an instruction that is nearly one of a benchmark."""

    benchmarks: tuple[str, ...] = ()
    """Folders or files: images, JSON, parquet and text, as deep as they are."""
    max_distance: int = 8
    """Bits of 64 in which perceptual hashes may differ."""
    max_colour: float = 20.0
    """Mean difference of colours (0 to 255)."""
    min_text: float = 0.7
    """Least similarity (Jaccard, of word triples) of instructions."""

    version: ClassVar[int] = 1
    expected: ClassVar[float] = 0.99

    def __post_init__(self) -> None:
        check_whole("max_distance", self.max_distance, maximum=16)
        check_number("max_colour", self.max_colour, minimum=0, maximum=255)
        check_number("min_text", self.min_text, above=0, maximum=1)
        if not self.benchmarks:
            raise UserError("benchmarks: give the folders of the benchmarks that training data must not hold")

    @property
    def facts_name(self) -> str:
        return "fingerprints"

    @property
    def settings(self) -> list[str]:
        stats = [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in _files(self.benchmarks)]
        return [*super().settings, repr(stats)]

    def check(self) -> None:
        for folder in self.benchmarks:
            if not os.path.exists(folder):
                raise UserError(f"decontaminate: benchmarks: {folder}: no such folder")
        if not _files(self.benchmarks):
            raise UserError(f"decontaminate: there are no files in {', '.join(self.benchmarks)}")

    def measure(self, item: Item, images: Images) -> Facts:
        return fingerprints(item, images)

    def decide(self, item: Item, facts: Mapping[str, Any]) -> Outcome:
        names, index, texts = _read(self.benchmarks, self.max_distance, self.max_colour, self.min_text)
        for number, image in enumerate(facts["images"], 1):
            for owner in index.near(image):
                which = f"reference {number}" if number <= len(item.references) else "the target"
                return Rejected("image of a benchmark", f"{which} is nearly {names[owner]}")
        if len(item.instruction.split()) >= _MIN_WORDS:
            for name in texts.query(minhash_of(item.instruction)):
                return Rejected("text of a benchmark", f"the instruction is nearly that of {name}")
        return [item]


def _files(folders: tuple[str, ...]) -> list[Path]:
    found: list[Path] = []
    for folder in folders:
        path = Path(folder)
        if path.is_file():
            found.append(path)
        for root, _, names in os.walk(path):
            found += [Path(root, name) for name in sorted(names) if not name.startswith(".")]
    return found


@lru_cache(maxsize=2)
def _read(
    folders: tuple[str, ...], max_distance: int, max_colour: float, min_text: float
) -> tuple[list[str], HashIndex, datasketch.MinHashLSH]:
    """Names of the images, their index, and that of the texts."""
    names: list[str] = []
    index = HashIndex(max_distance, max_colour)
    texts = datasketch.MinHashLSH(threshold=min_text, num_perm=PERMUTATIONS)
    with texts.insertion_session() as session:
        for file in _files(folders):
            for number, content in enumerate(_contents(file)):
                name = f"{file}" if number == 0 else f"{file} ({number})"
                if isinstance(content, str):
                    if len(content.split()) >= _MIN_WORDS:
                        session.insert(name, minhash_of(content), check_duplication=False)
                    continue
                try:
                    image = decode_rgb(content)
                except BrokenSampleError:
                    continue
                index.add(print_of(image), len(names))
                index.add(mirrored_print(image), len(names))
                names.append(name)
    return names, index, texts


def _contents(file: Path) -> Iterator[str | bytes]:
    """Images and texts in a file."""
    suffix = file.suffix.lower()
    try:
        if suffix in _IMAGES:
            yield read_encoded(file)
        elif suffix in (".json", ".jsonl", ".ndjson"):
            yield from _json_texts(file)
        elif suffix == ".txt":
            yield from read_text(file).splitlines()
        elif suffix == ".parquet":
            for parquet in find_parquet(file):
                for values in iter_rows(parquet):
                    yield from _values(values if isinstance(values, dict) else {})
    except UserError:
        return  # not a file of the benchmark's


def _json_texts(file: Path) -> Iterator[str]:
    try:
        rows: list[Any] = [row for _, row in JsonRows.open(file).read()]
    except UserError:
        rows = [read_json(file, dict)]  # one object over several lines
    while rows:
        row = rows.pop()
        if isinstance(row, dict):
            yield from (row[name] for name in _TEXT_FIELDS if isinstance(row.get(name), str))
            rows += [value for value in row.values() if isinstance(value, dict | list)]
        elif isinstance(row, list):
            rows += [value for value in row if isinstance(value, dict | list)]


def _values(value: Any) -> Iterator[str | bytes]:
    """Bytes and texts anywhere in a row."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _values(one)
    elif isinstance(value, str | bytes) and value:
        yield value
