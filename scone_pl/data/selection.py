"""Filters and re-encoding of samples in a conversion."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from functools import partial
from typing import Literal

from PIL import Image

from scone_pl.data.decoding import ExifOrientation, decode_rgb, open_image, orientation_exif, orientation_of
from scone_pl.data.members import MAX_SAMPLE_BYTES, sample_json
from scone_pl.data.sample import BrokenSampleError, Kind, Sample
from scone_pl.errors import UserError
from scone_pl.ranges import check_whole

FILTER_REASONS = ("other kind", "small image")
"""Reasons of samples that the user filtered out: counted, not listed."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Which samples of a source to keep and how to store them."""

    samples_per_shard: int = 1000
    """Items of the source per tar; a tar holds fewer samples if some are skipped."""
    limit: int | None = None
    """Stop after this many valid samples."""
    kind: Kind | None = None
    """Kind of all samples; null = from the source (parquet: "multi" if the subset's name contains it)."""
    only: Kind | None = None
    """Keep samples of this kind only."""
    min_side: int = 0
    """Minimum length in pixels of the shorter side of every image; other samples are skipped."""
    shrink: int | None = None
    """Maximum length in pixels of the longer side; images are re-encoded."""
    reencode: Literal["jpeg", "png", "webp"] | None = None
    """Re-encode images in this format; null = keep their bytes (with `shrink`: jpeg)."""
    quality: int = 85
    """Quality of re-encoded JPEG and WebP images."""
    exif_orientation: ExifOrientation = "apply"
    """`apply`: the EXIF orientation is applied to sizes in the index and to re-encoded images. `ignore`: to neither.
    Images keep their orientation data unless it was applied."""
    decode: bool = True
    """Decode every image to find damaged ones; otherwise only headers are read."""

    def __post_init__(self) -> None:
        check_whole("samples_per_shard", self.samples_per_shard, minimum=1)
        if None not in (self.kind, self.only) and self.kind != self.only:
            raise UserError(f"kind {self.kind} makes every sample {self.kind}, so only {self.only} keeps none; use one")
        check_whole("min_side", self.min_side)
        check_whole("quality", self.quality, minimum=1, maximum=100)
        if self.quality != 85 and (self.reencode == "png" or (self.reencode is None and self.shrink is None)):
            raise UserError(f"quality {self.quality} is of images re-encoded as jpeg or webp; set reencode or shrink")
        for name in ("limit", "shrink"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), minimum=1)


def as_stored(sample: Sample, config: ConvertConfig) -> Sample:
    """The sample as it is stored.

    Raises:
        BrokenSampleError: it is filtered out, or an image is damaged.
    """
    if config.kind is not None:
        sample = dataclasses.replace(sample, kind=config.kind)
    if config.only not in (None, sample.kind):
        raise BrokenSampleError("other kind", f"its kind is {sample.kind}")
    if not sample.instruction.strip():
        raise BrokenSampleError("missing instruction", "the instruction is empty")
    images = [*sample.references, sample.target] if sample.target else list(sample.references)
    for data in images:
        if min(size := open_image(data).size) < config.min_side:
            raise BrokenSampleError("small image", f"an image has {size[0]} x {size[1]} pixels")
    try:
        sample_json(sample)
    except (ValueError, RecursionError) as error:  # ValueError: half a surrogate pair
        raise BrokenSampleError("wrong JSON", f"its texts or metadata cannot be written as JSON ({error})") from None
    if sum(map(len, images)) > MAX_SAMPLE_BYTES // 2:
        raise BrokenSampleError("sample too large", f"its images have {sum(map(len, images))} bytes")
    if config.shrink is None and config.reencode is None:
        if config.decode:
            check_images(sample)
        return sample
    encode = partial(_encode, config=config)
    return dataclasses.replace(
        sample,
        references=tuple(map(encode, sample.references)),
        target=encode(sample.target) if sample.target else b"",
    )


def check_images(sample: Sample) -> None:
    """Decodes every image of `sample`.

    Raises:
        BrokenSampleError: one of them cannot be decoded.
    """
    for data in sample.references:
        decode_rgb(data)
    if sample.target:
        decode_rgb(sample.target)


def _encode(data: bytes, config: ConvertConfig) -> bytes:
    image = decode_rgb(data, exif_orientation=config.exif_orientation)
    if config.shrink is not None:
        image.thumbnail((config.shrink, config.shrink), Image.Resampling.BICUBIC)
    orientation = 1 if config.exif_orientation == "apply" else orientation_of(data)
    exif = {"exif": orientation_exif(orientation)} if orientation != 1 else {}
    encoded = io.BytesIO()
    image.save(encoded, config.reencode or "jpeg", quality=config.quality, **exif)
    return encoded.getvalue()
