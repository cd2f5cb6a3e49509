"""Converts decoded images of any mode to 8-bit RGB; refuses values whose scale is ambiguous."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from scone_pl.data.sample import BrokenSampleError

_WHITE = (255, 255, 255)
_DECLARED_16_BIT = ("PNG", "PPM")
"""Formats whose 32-bit integer mode holds 16-bit values by definition, whatever their range."""


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; transparency is composited onto white, as in the release (docs/specification.md 3).

    16-bit grey is divided by 257. The scale of 32-bit integers and floats is inferred: integers of at most 255 count as
    8-bit, of at most 65535 as 16-bit; floats of at most 1 as fractions of white, of at most 255 as 8-bit.

    Raises:
        BrokenSampleError: values outside these ranges, or a mode without a conversion to RGB.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey_to_rgb(image)
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    try:
        if image.has_transparency_data:
            image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            white = Image.new("RGB", image.size, _WHITE)
            white.paste(image, mask=image.getchannel("A"))
            return white
        return image.convert("RGB")
    except ValueError as error:
        raise _unsupported(image, f"cannot be converted ({error})") from None


def _grey_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _unsupported(image, "holds values that are not finite")
    wide = image.mode.startswith("I;16") or image.format in _DECLARED_16_BIT or high > 255
    if image.mode == "F":
        if low < 0 or high > 255:
            raise _unsupported(image, f"holds values from {low:g} to {high:g}, neither 0 to 1 nor 0 to 255")
        grey = np.rint(values * (255 if high <= 1 else 1))
    elif low < 0 or high > 65535:
        raise _unsupported(image, f"holds values from {low} to {high}, neither 0 to 255 nor 0 to 65535")
    else:
        grey = (values.astype(np.int32) + 128) // 257 if wide else values
    grey = grey.astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    try:
        return ImageCms.applyTransform(image, _lab_transform()) or image
    except (ImageCms.PyCMSError, ImportError) as error:
        raise _unsupported(image, f"cannot be converted ({error})") from None


@lru_cache(maxsize=1)
def _lab_transform() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def _unsupported(image: Image.Image, why: str) -> BrokenSampleError:
    return BrokenSampleError("unsupported pixels", f"an image of mode {image.mode} {why}; save it as 8-bit RGB")
