"""User-supplied images as upright RGB images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from scone_pl.data.decoding import ExifOrientation, load_file, upright_rgb
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError

ImageInput = Image.Image | np.ndarray | str | os.PathLike[str]
"""A PIL image, a uint8 array (H, W), (H, W, 3) or (H, W, 4), or the path of an image file."""


def load_rgb(source: ImageInput, name: str = "image", exif_orientation: ExifOrientation = "apply") -> Image.Image:
    """An RGB image of any input: transparency onto white, 16-bit grey scaled, rotated as its EXIF orientation says.

    Args:
        source: the input.
        name: its name in error messages.
        exif_orientation: see `ExifOrientation`.

    Raises:
        UserError: no such file, not a readable image, or no image at all.
    """
    if isinstance(source, str | os.PathLike):
        return load_file(Path(source), exif_orientation)
    if isinstance(source, np.ndarray):
        source = _from_array(source, name)
    if not isinstance(source, Image.Image):
        raise UserError(f"{name}: a {type(source).__name__} is no image; give a PIL image, a path or a uint8 array")
    if min(source.size) < 1:
        raise UserError(f"{name}: an image of {source.width} x {source.height} pixels is empty")
    try:
        return upright_rgb(source, exif_orientation)
    except BrokenSampleError as error:
        raise UserError(f"{name}: {error}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name}: the image can not be decoded ({error}); open it anew from a whole file") from None


def load_all(sources: Sequence[ImageInput], exif_orientation: ExifOrientation = "apply") -> list[Image.Image]:
    """`load_rgb` of the references of one prompt."""
    return [load_rgb(source, f"image {number}", exif_orientation) for number, source in enumerate(sources, 1)]


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise UserError(
            f"{name}: an array of shape {array.shape} and type {array.dtype} is no image; give (H, W), (H, W, 3) or "
            "(H, W, 4) of uint8"
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)
