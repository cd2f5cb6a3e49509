"""User-supplied images as upright RGB images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from scone_pl.data.decoding import ExifOrientation, decode_rgb, load_file, upright_rgb
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError
from scone_pl.sampling.urls import is_url, read_url, shown

ImageInput = Image.Image | np.ndarray | Tensor | str | os.PathLike[str]
"""A PIL image; the path of an image file, or its http(s) or data URL; an array (H, W), (H, W, 3) or (H, W, 4) or a
tensor (3, H, W) or (1, H, W), either of uint8, or of floats in [0, 1]."""


def load_rgb(
    source: ImageInput, name: str = "image", exif_orientation: ExifOrientation = "apply", *, urls: bool = False
) -> Image.Image:
    """An RGB image of any input: transparency onto white, 16-bit grey scaled, rotated as its EXIF orientation says.

    Args:
        source: the input.
        name: its name in error messages.
        exif_orientation: see `ExifOrientation`.
        urls: whether URLs are read; off where others than the user give the inputs.

    Raises:
        UserError: no such file, not a readable image, or no image at all.
    """
    if isinstance(source, str) and is_url(source):
        if not urls:
            raise UserError(f"{name}: {shown(source)}: URLs are not read here; give the path of a file")
        return _decode(read_url(source), f"{name}: {shown(source)}", exif_orientation)
    if isinstance(source, str | os.PathLike):
        return load_file(Path(source), exif_orientation)
    if isinstance(source, Tensor):
        source = _array_of(source, name)
    if isinstance(source, np.ndarray):
        source = _from_array(source, name)
    if not isinstance(source, Image.Image):
        raise UserError(
            f"{name}: a {type(source).__name__} is no image; give a PIL image, a path, an array or a tensor"
        )
    if min(source.size) < 1:
        raise UserError(f"{name}: an image of {source.width} x {source.height} pixels is empty")
    try:
        return upright_rgb(source, exif_orientation)
    except BrokenSampleError as error:
        raise UserError(f"{name}: {error}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name}: the image can not be decoded ({error}); open it anew from a whole file") from None


def load_all(
    sources: Sequence[ImageInput], exif_orientation: ExifOrientation = "apply", *, urls: bool = False
) -> list[Image.Image]:
    """`load_rgb` of the references of one prompt."""
    return [load_rgb(source, f"image {n}", exif_orientation, urls=urls) for n, source in enumerate(sources, 1)]


def _decode(data: bytes, name: str, exif_orientation: ExifOrientation) -> Image.Image:
    try:
        return decode_rgb(data, exif_orientation=exif_orientation)
    except BrokenSampleError as error:
        raise UserError(f"{name}: {error.reason} ({error})") from None


def _array_of(tensor: Tensor, name: str) -> np.ndarray:
    """A tensor (C, H, W) as an array (H, W, C)."""
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise UserError(f"{name}: a tensor of shape {tuple(tensor.shape)} is no image; give (3, H, W)")
    tensor = tensor.detach().cpu().permute(1, 2, 0)
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    is_float = array.dtype in (np.float16, np.float32, np.float64)
    if not (array.dtype == np.uint8 or is_float) or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise UserError(
            f"{name}: an array of shape {array.shape} and type {array.dtype} is no image; give (H, W), (H, W, 3) or "
            "(H, W, 4) of uint8, or of floats in [0, 1]"
        )
    if not array.size:
        raise UserError(f"{name}: an array of shape {array.shape} is empty")
    if is_float:
        if not (array.min() >= 0 and array.max() <= 1):
            raise UserError(
                f"{name}: an array of floats must be in [0, 1], this one is in [{array.min()}, {array.max()}]"
            )
        array = (array.astype(np.float32) * 255).round().astype(np.uint8)
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)
