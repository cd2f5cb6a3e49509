"""The samples that a comparison of layers reads, and the rows of its figure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from scone_pl.analysis.drawing import MapRow
from scone_pl.analysis.measures import subjects_of
from scone_pl.analysis.similarity import READ, ImageMaps
from scone_pl.data.decoding import ExifOrientation, decode_rgb
from scone_pl.data.inputs import open_input
from scone_pl.data.sample import BrokenSampleError, Sample
from scone_pl.data.selection import check_images
from scone_pl.errors import UserError
from scone_pl.messages import warn
from scone_pl.progress import Progress

SHOWN = 8
"""Maximum rows of maps.png."""
Pair = tuple[ImageMaps, ImageMaps | None]


def choose_samples(data: str, count: int) -> list[Sample]:
    """The first `count` whole samples of a source that have references and an instruction.

    Raises:
        UserError: there is no such source, or no such sample in it.
    """
    if "://" not in data and not Path(data).exists():
        raise UserError(f"{data}: no such file or folder; give a shard set, a JSONL file, a folder of them or parquet")
    source = open_input(data, require_target=False)
    chosen: list[Sample] = []
    broken: list[BrokenSampleError] = []
    for _, sample in source.read(0, len(source)):
        if isinstance(sample, BrokenSampleError):
            broken.append(sample)
        elif sample.references and sample.instruction.strip():
            try:
                chosen.append(_checked(sample))
            except BrokenSampleError as error:
                broken.append(error)
        if len(chosen) == count:
            break
    if not chosen:
        why = f"; {len(broken)} are broken, the first: {broken[0]}" if broken else ""
        raise UserError(f"{data}: no sample with reference images and an instruction{why}")
    if broken:
        warn(f"{data}: {len(broken)} broken samples are skipped, the first: {broken[0]}")
    return chosen


def _checked(sample: Sample) -> Sample:
    if sample.candidates is not None and len(sample.candidates) != len(sample.references):
        raise BrokenSampleError("wrong candidates", f"{sample.key}: candidates must be one list per reference")
    check_images(sample)
    return sample


def collecting_maps(
    pairs: Iterator[Pair], samples: Sequence[Sample], rows: list[MapRow], exif_orientation: ExifOrientation
) -> Iterator[Pair]:
    """Passes `pairs` through with a progress bar, and appends the rows of maps.png to `rows`.

    One reference per sample is shown, one with boxes if there is any.
    """
    labelled = [
        (i, next((j for j in range(len(s.references)) if subjects_of(s, j)), None)) for i, s in enumerate(samples)
    ]
    positions = [position for position in labelled if position[1] is not None] or [(i, 0) for i in range(len(samples))]
    shown = set(positions[:SHOWN])
    with Progress("reading layers", len(samples), unit="samples") as bar:
        for maps, changed in pairs:
            if (maps.sample, maps.image) in shown:
                rows.append(_row(samples[maps.sample], maps, exif_orientation))
            yield maps, changed
            bar.update(maps.sample + 1)


def _row(sample: Sample, maps: ImageMaps, exif_orientation: ExifOrientation) -> MapRow:
    image = decode_rgb(sample.references[maps.image], exif_orientation=exif_orientation)
    image.thumbnail((256, 256))
    lines = textwrap.wrap(sample.instruction, 40, max_lines=5, placeholder=" ...")
    return MapRow(
        label="\n".join(lines),
        image=np.asarray(image),
        maps={expert: own for expert in READ if (own := getattr(maps, expert)) is not None},
        targets=[s.box for s in subjects_of(sample, maps.image) if s.is_target],
    )
