"""What people hand in as a picture, as an upright RGB image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from scone_pl.data.sample import BrokenSampleError
from scone_pl.data.transforms import decode_rgb, to_rgb
from scone_pl.errors import UserError

Picturelike = Image.Image | np.ndarray | str | os.PathLike[str]
"""A PIL image, a uint8 array (H, W), (H, W, 3) or (H, W, 4), or the path of an image file."""


def load_rgb(source: Picturelike, name: str = "image") -> Image.Image:
    """An RGB image of any input: transparency onto white, 16-bit grey scaled, EXIF orientation applied.

    The person means the picture as a viewer shows it. Training data and the release do not apply the orientation, nor
    does `predict`, which repeats the release's benchmarks.

    Args:
        source: the input.
        name: what to call it in messages.

    Raises:
        UserError: no such file, not a readable image, or something else than a picture.
    """
    if isinstance(source, str | os.PathLike):
        return _from_file(Path(source))
    if isinstance(source, np.ndarray):
        return to_rgb(_from_array(source, name))
    if isinstance(source, Image.Image):
        try:
            return to_rgb(source, upright=True)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{name}: the image can not be decoded ({error}); open it anew from a whole file") from None
    raise UserError(f"{name}: a {type(source).__name__} is no picture; give a PIL image, a path or a uint8 array")


def load_all(sources: Sequence[Picturelike]) -> list[Image.Image]:
    """`load_rgb` of the references of one prompt."""
    return [load_rgb(source, f"image {number}") for number, source in enumerate(sources, 1)]


def _from_file(path: Path) -> Image.Image:
    if not path.is_file():
        raise UserError(f"{path}: no such image file")
    try:
        return decode_rgb(path.read_bytes(), upright=True)
    except OSError as error:
        raise UserError(f"{path}: can not be read ({error.strerror})") from None
    except BrokenSampleError as error:
        raise UserError(f"{path}: {error.reason} ({error}); give a whole PNG, JPEG, WebP, GIF, BMP or TIFF") from None


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise UserError(
            f"{name}: an array of shape {array.shape} and type {array.dtype} is no picture; give (H, W), (H, W, 3) or "
            "(H, W, 4) of uint8"
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)
