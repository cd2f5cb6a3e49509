"""RGB images to tensors: the release's resize rule (docs/specification.md 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError
from scone_pl.ranges import check_whole


def to_tensor(image: Image.Image, *, interleaved: bool = False) -> Tensor:
    """(3, H, W) uint8 of an RGB image; `model.vae.as_float` normalises it to [-1, 1], on whatever device it is then.

    Args:
        image: in RGB.
        interleaved: channels-last memory, as patchification needs it; otherwise contiguous.
    """
    return _laid_out(torch.from_numpy(np.array(image)).permute(2, 0, 1), interleaved)


def _laid_out(pixels: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        return pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return pixels.contiguous()


@dataclass(frozen=True, kw_only=True)
class ResizeLimits:
    """Limits of a resize, independent of the model's stride."""

    max_size: int
    """Maximum length of the longer side in pixels."""
    min_size: int
    """Minimum length of the shorter side in pixels, as far as `max_size` permits."""
    max_pixels: int = 14 * 14 * 9 * 1024
    """Maximum pixels of an image (release: data/transforms.py)."""

    def __post_init__(self) -> None:
        for name in ("min_size", "max_size", "max_pixels"):
            check_whole(f"packing: {name} of a resize", getattr(self, name), minimum=1)
        if self.min_size > self.max_size:
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
    """Side of one token in pixels."""
    max_size: int
    """See `ResizeLimits`."""
    min_size: int
    """See `ResizeLimits`."""
    max_pixels: int = 14 * 14 * 9 * 1024
    """See `ResizeLimits`."""
    fast: bool = False
    """Torch's vectorised bicubic resize, which differs from Pillow's by 1 or 2 of 255 in few pixels."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels after the resize."""
        scale = min(self.max_size / max(width, height), 1.0)
        scale = max(scale, self.min_size / min(width, height))
        size = self._scaled(width, height, scale)
        if size[0] * size[1] > self.max_pixels:
            # The release scales the sides by the ratio of areas (not its square root); kept for parity.
            size = self._scaled(*size, self.max_pixels / (size[0] * size[1]))
        if max(size) > self.max_size:
            size = self._scaled(*size, self.max_size / max(size))
        return size

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of tokens of an image of `width` x `height` pixels."""
        width, height = self.size(width, height)
        return height // self.stride, width // self.stride

    def resize(self, image: Image.Image) -> Image.Image:
        """The resized image (bicubic; see `fast`)."""
        size = self.size(*image.size)
        if size == image.size:
            return image
        if self.fast:
            return Image.fromarray(self._torch_resize(image).permute(1, 2, 0).contiguous().numpy())
        return image.resize(size, Image.Resampling.BICUBIC)

    def _torch_resize(self, image: Image.Image) -> Tensor:
        """(3, H, W) uint8."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (1, 3, H, W), channels-last memory
        size = self.size(*image.size)[::-1]
        return F.interpolate(pixels, size=size, mode="bicubic", antialias=True)[0]

    def __call__(self, image: Image.Image, *, interleaved: bool = False) -> Tensor:
        """(3, H, W) uint8 of an RGB image, resized; see `to_tensor`."""
        if not self.fast or self.size(*image.size) == image.size:
            return to_tensor(self.resize(image), interleaved=interleaved)
        return _laid_out(self._torch_resize(image), interleaved)

    def _scaled(self, width: int, height: int, scale: float) -> tuple[int, int]:
        return self._snap(round(width * scale)), self._snap(round(height * scale))

    def _snap(self, side: int) -> int:
        return max(self.stride, round(side / self.stride) * self.stride)


MAX_ASPECT_RATIO = 200
"""Of an image under `PixelResize`."""


@dataclass(frozen=True)
class PixelResize(ImageResize):
    """The resize by area: sides are rounded to multiples of `stride`, then the number of pixels is limited.

    Above the limit both sides shrink and are rounded down, below it they grow and are rounded up.
    """

    min_pixels: int = 0
    """Minimum pixels of an image; `max_pixels` is their maximum, and the limits of sides have no effect."""

    @classmethod
    def within(cls, limits: ResizeLimits, stride: int, *, fast: bool = False, at_most: float = math.inf) -> PixelResize:
        """The resize between squares of `min_size` and `max_size` pixels a side, and to `at_most` pixels.

        Raises:
            UserError: `max_pixels` of the limits is set, which is `max_size` squared here.
        """
        if limits.max_pixels != ResizeLimits.max_pixels:
            raise UserError("packing: max_pixels of a resize has no effect for this model; set max_size, its root")
        largest = min(limits.max_size**2, at_most)
        return cls(stride, limits.max_size, limits.min_size, math.floor(largest), fast, min_pixels=limits.min_size**2)

    def size(self, width: int, height: int) -> tuple[int, int]:
        stride, sides = self.stride, (width, height)
        size = self._scaled(width, height, 1.0)
        if size[0] * size[1] > self.max_pixels:
            scale = math.sqrt(width * height / self.max_pixels)
            return self._multiples(*(max(1, math.floor(side / scale / stride)) for side in sides))
        if size[0] * size[1] < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (width * height))
            return self._multiples(*(math.ceil(side * scale / stride) for side in sides))
        return size

    def __call__(self, image: Image.Image, *, interleaved: bool = False) -> Tensor:
        """See `ImageResize`.

        Raises:
            BrokenSampleError: the image is longer than `MAX_ASPECT_RATIO` times its width, or the other way round.
        """
        width, height = image.size
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise BrokenSampleError(
                "aspect ratio", f"an image of {width} x {height} pixels; a ratio of at most {MAX_ASPECT_RATIO} will do"
            )
        return super().__call__(image, interleaved=interleaved)

    def _multiples(self, columns: int, rows: int) -> tuple[int, int]:
        return columns * self.stride, rows * self.stride
