"""From the published parquet layout to shards."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from scone_pl.data.parquet import ParquetFile, find_parquet, iter_rows, key_of, row_to_sample
from scone_pl.data.sample import BrokenSampleError, Kind, Sample
from scone_pl.data.shard_writer import write_shards
from scone_pl.data.shards import Manifest
from scone_pl.data.transforms import decode_rgb

_EXAMPLES_KEPT = 20


@dataclass
class Faults:
    """Samples that could not be used, counted per reason."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    """The first few, with reason, key and details."""

    def add(self, key: str, error: BrokenSampleError) -> None:
        """Counts one."""
        self.counts[error.reason] += 1
        if len(self.examples) < _EXAMPLES_KEPT:
            self.examples.append(f"{key}: {error.reason}: {error}")

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common()) or "none"


def convert_parquet(
    source: str | Path,
    output: str | Path,
    *,
    subset: str | None = None,
    kind: Kind | None = None,
    samples_per_shard: int = 1000,
    limit: int | None = None,
    shrink: int | None = None,
    decode: bool = True,
    progress: bool = True,
) -> tuple[Manifest, Faults]:
    """Converts the parquet files under `source` to a data set in `output`.

    Args:
        source: see `find_parquet`.
        output: folder of the data set; must not hold one yet.
        subset: only this subset; otherwise all, one after the other.
        kind: kind of all samples; otherwise `multi` for subsets with "multi" in their name.
        samples_per_shard: samples of a tar.
        limit: stop after so many good samples.
        shrink: re-encode images to JPEG with at most so many pixels on the long side (for tiny test sets).
        decode: decode every image to find damaged ones now; otherwise only headers are read.
        progress: whether to show a progress bar.

    Raises:
        UserError: see `find_parquet`, `iter_rows` and `write_shards`.
    """
    files = find_parquet(source, subset)
    faults = Faults()
    rows = sum(file.rows for file in files)
    samples = itertools.islice(_good_samples(files, kind, shrink, decode, faults), limit)
    manifest = write_shards(
        samples,
        output,
        samples_per_shard=samples_per_shard,
        total=rows if limit is None else min(rows, limit),
        progress=progress,
    )
    return manifest, faults


def _good_samples(
    files: list[ParquetFile], kind: Kind | None, shrink: int | None, decode: bool, faults: Faults
) -> Iterator[Sample]:
    for file in files:
        for number, row in enumerate(iter_rows(file)):
            key = key_of(file, number)
            try:
                source = {"file": file.path.name, "subset": file.subset, "row": number}
                sample = row_to_sample(row, key, file.kind(kind), {"source": source})
                if shrink is not None:
                    sample = _shrunk(sample, shrink)
                elif decode:
                    check_images(sample)
            except BrokenSampleError as error:
                faults.add(key, error)
                continue
            yield sample


def check_images(sample: Sample) -> None:
    """Decodes every image of `sample`.

    Raises:
        BrokenSampleError: one of them cannot be decoded.
    """
    for data in sample.references:
        decode_rgb(data)
    if sample.target:
        decode_rgb(sample.target)


def _shrunk(sample: Sample, side: int) -> Sample:
    references = tuple(_shrink_image(data, side) for data in sample.references)
    return dataclasses.replace(sample, references=references, target=_shrink_image(sample.target, side))


def _shrink_image(data: bytes, side: int) -> bytes:
    image = decode_rgb(data)
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return encoded.getvalue()
