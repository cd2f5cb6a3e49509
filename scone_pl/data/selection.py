"""What is taken from a source, and how it is stored."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from functools import partial
from typing import Literal

from PIL import Image

from scone_pl.data.decoding import ExifOrientation, decode_rgb, open_image, orientation_exif, orientation_of
from scone_pl.data.members import MOST_BYTES, sample_json
from scone_pl.data.sample import BrokenSampleError, Kind, Sample
from scone_pl.errors import UserError

BY_REQUEST = ("other kind", "small image")
"""Reasons that the user asked for: counted, not listed."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What to take from a source and how to store it."""

    samples_per_shard: int = 1000
    """Items of the source that make one tar; it holds fewer samples where some are left out."""
    limit: int | None = None
    """Stop after so many good samples."""
    kind: Kind | None = None
    """Kind of all samples; null = what the source says (parquet: "multi" where the subset's name says so)."""
    only: Kind | None = None
    """Keep samples of this kind only."""
    min_side: int = 0
    """Leave out samples with an image whose shorter side has fewer pixels."""
    shrink: int | None = None
    """Re-encode images so that the long side has at most so many pixels."""
    reencode: Literal["jpeg", "png", "webp"] | None = None
    """Re-encode images in this format; null = keep their bytes (with `shrink`: jpeg)."""
    quality: int = 85
    """Of re-encoded JPEG and WebP images."""
    exif_orientation: ExifOrientation = "apply"
    """`apply`: sizes in the index are those of images turned as their EXIF orientation says, and re-encoded images are
    turned. `ignore`: neither is. Images keep their orientation data unless they were turned."""
    decode: bool = True
    """Decode every image now to find damaged ones; otherwise only headers are read."""

    def __post_init__(self) -> None:
        for name in ("samples_per_shard", "limit", "shrink", "quality"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if self.min_side < 0:
            raise UserError(f"min_side is {self.min_side}; it must be at least 0")
        if self.quality > 100:
            raise UserError(f"quality is {self.quality}; it must be 1 to 100")


def as_stored(sample: Sample, config: ConvertConfig) -> Sample:
    """The sample as it is written.

    Raises:
        BrokenSampleError: it is not wanted, or an image is damaged.
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
        raise BrokenSampleError("wrong JSON", f"its words or metadata cannot be written ({error})") from None
    if sum(map(len, images)) > MOST_BYTES // 2:
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
