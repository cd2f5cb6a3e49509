"""Encoded image bytes to tensors: decoding, the release's resize rule, normalisation to [-1, 1] (SPEC 3)."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError

MAX_DECODED_PIXELS = 89_478_485
"""Larger images are refused before they are decoded (Pillow's own warning limit, 256 MB of RGB)."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# What Pillow's decoders raise on damaged files, by experience with fuzzed ones.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


def open_image(data: bytes) -> Image.Image:
    """Reads the header of an encoded image; `.size` is (width, height) as stored, `.format` its type.

    Raises:
        BrokenSampleError: no bytes, not an image, or more pixels than `MAX_DECODED_PIXELS`.
    """
    if not data:
        raise BrokenSampleError("empty image", "the image has no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise BrokenSampleError("image too large", str(error)) from None
    except _DAMAGE as error:
        why = "of no known kind" if isinstance(error, UnidentifiedImageError) else error
        raise BrokenSampleError("unreadable image", f"{len(data)} bytes that are no image ({why})") from None
    if image.width * image.height > MAX_DECODED_PIXELS:
        message = f"an image of {image.width} x {image.height} pixels exceeds {MAX_DECODED_PIXELS} pixels"
        raise BrokenSampleError("image too large", message)
    return image


def decode_rgb(data: bytes, *, upright: bool = False, draft_for: Sequence[ImageResize] = ()) -> Image.Image:
    """Decodes to RGB, see `to_rgb`.

    Args:
        data: an encoded image.
        upright: apply an EXIF orientation. The release ignores it, and sizes in a shard index are the stored ones.
        draft_for: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (much faster, other pixels) where these
            resizes then still make it smaller, and to the same sizes as before.

    Raises:
        BrokenSampleError: see `open_image`; also truncated or damaged data.
    """
    image = open_image(data)
    try:
        if draft_for and image.format == "JPEG":
            image = _draft(image, data, draft_for)
        image.load()
        return to_rgb(image, upright=upright)
    except _DAMAGE as error:
        reason = "truncated image" if "truncated" in str(error).lower() else "damaged image"
        raise BrokenSampleError(reason, f"{image.format} of {len(data)} bytes: {error}") from None


def _draft(image: Image.Image, data: bytes, resizes: Sequence[ImageResize]) -> Image.Image:
    stored = image.size
    wanted = [resize.size(*stored) for resize in resizes]
    image.draft("RGB", (max(width for width, _ in wanted), max(height for _, height in wanted)))
    same = all(resize.size(*image.size) == size for resize, size in zip(resizes, wanted, strict=True))
    return image if same else open_image(data)


def to_rgb(image: Image.Image, *, upright: bool = False) -> Image.Image:
    """An image of any mode as RGB: transparency onto white, 16-bit grey scaled to 8 bits.

    Args:
        image: as it is stored.
        upright: turn it as its EXIF orientation says, to how viewers show it.
    """
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # Pillow clips 16-bit grey to 255 when it converts
        grey = np.asarray(image, dtype=np.int64).clip(0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def to_tensor(image: Image.Image, *, interleaved: bool = False) -> Tensor:
    """(3, H, W) float32 in [-1, 1] of an RGB image.

    Args:
        image: in RGB.
        interleaved: channel fastest in memory, which is what cutting patches wants; otherwise contiguous.
    """
    if interleaved:
        return torch.from_numpy(_normalise(np.asarray(image))).permute(2, 0, 1)
    return torch.from_numpy(_normalise(*map(np.asarray, image.split())))


def _normalise(*parts: np.ndarray) -> np.ndarray:
    """Float32 in [-1, 1] of uint8 arrays, stacked if there are several; bit by bit ((x / 255) - 0.5) / 0.5.

    Halving and doubling are exact in floating point, so x / 127.5 - 1 is the same number in half the passes.
    """
    result = np.empty((len(parts), *parts[0].shape), dtype=np.float32)
    for part, out in zip(parts, result, strict=True):
        np.divide(part, np.float32(127.5), out=out)
        out -= 1
    return result if len(parts) > 1 else result[0]


@dataclass(frozen=True, kw_only=True)
class ResizeLimits:
    """Between which sizes an image is brought, before it is known what a token's side is."""

    max_size: int
    """Longest side in pixels."""
    min_size: int
    """The shorter side is brought to at least so many pixels, as far as `max_size` permits."""
    max_pixels: int = 14 * 14 * 9 * 1024
    """Most pixels of an image (release: data/transforms.py)."""

    def __post_init__(self) -> None:
        if not 0 < self.min_size <= self.max_size:
            raise UserError(
                f"packing: a resize has min_size {self.min_size} and max_size {self.max_size}; "
                "0 < min_size <= max_size must hold"
            )

    def with_stride(self, stride: int, *, fast: bool = False) -> ImageResize:
        """The resize to sides that are multiples of `stride` pixels."""
        return ImageResize(stride, self.max_size, self.min_size, self.max_pixels, fast)


@dataclass(frozen=True)
class ImageResize:
    """The release's resize: both sides multiples of `stride`, aspect ratio kept as far as that permits."""

    stride: int
    """Pixels a side for one token."""
    max_size: int
    """See `ResizeLimits`."""
    min_size: int
    """See `ResizeLimits`."""
    max_pixels: int = 14 * 14 * 9 * 1024
    """See `ResizeLimits`."""
    fast: bool = False
    """Torch's vectorised bicubic, whose results differ from Pillow's by 1 or 2 of 255 in few pixels."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels after the resize."""
        scale = min(self.max_size / max(width, height), 1.0)
        scale = max(scale, self.min_size / min(width, height))
        size = self._scaled(width, height, scale)
        if size[0] * size[1] > self.max_pixels:
            # The release scales the sides by the ratio of areas (not its root); kept, to be the same.
            size = self._scaled(*size, self.max_pixels / (size[0] * size[1]))
        if max(size) > self.max_size:
            size = self._scaled(*size, self.max_size / max(size))
        return size

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of tokens that an image of `width` x `height` pixels becomes."""
        width, height = self.size(width, height)
        return height // self.stride, width // self.stride

    def resize(self, image: Image.Image) -> Image.Image:
        """`image` in the new size (bicubic; see `fast`)."""
        size = self.size(*image.size)
        if size == image.size:
            return image
        if self.fast:
            return Image.fromarray(self._torch_resize(image).permute(1, 2, 0).contiguous().numpy())
        return image.resize(size, Image.Resampling.BICUBIC)

    def _torch_resize(self, image: Image.Image) -> Tensor:
        """(3, H, W) uint8."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (1, 3, H, W), channel fastest
        size = self.size(*image.size)[::-1]
        return F.interpolate(pixels, size=size, mode="bicubic", antialias=True)[0]

    def __call__(self, image: Image.Image, *, interleaved: bool = False) -> Tensor:
        """(3, H, W) float32 in [-1, 1] of an RGB image, resized; see `to_tensor`."""
        if not self.fast or self.size(*image.size) == image.size:
            return to_tensor(self.resize(image), interleaved=interleaved)
        pixels = self._torch_resize(image)
        if interleaved:
            return torch.from_numpy(_normalise(pixels.permute(1, 2, 0).contiguous().numpy())).permute(2, 0, 1)
        return torch.from_numpy(_normalise(*pixels.numpy()))

    def _scaled(self, width: int, height: int, scale: float) -> tuple[int, int]:
        return self._snap(round(width * scale)), self._snap(round(height * scale))

    def _snap(self, side: int) -> int:
        return max(self.stride, round(side / self.stride) * self.stride)
