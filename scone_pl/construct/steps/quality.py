"""Size, sharpness and contrast of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from scone_pl.construct.items import Item, Rejected
from scone_pl.construct.pools import Images
from scone_pl.construct.steps.base import Facts, Outcome, Step
from scone_pl.data.decoding import decode_rgb
from scone_pl.ranges import check_number, check_whole

_SIDE = 512
"""Longer side at which sharpness is measured, so that it does not depend on the size."""


@dataclass(frozen=True, kw_only=True)
class Quality(Step):
    """Rejects samples with an image that is small, narrow, blurred or nearly of one colour."""

    min_side: int = 256
    """Least length in pixels of the shorter side."""
    max_aspect: float = 4.0
    """Greatest ratio of the sides."""
    min_sharpness: float = 20.0
    """Least variance of the Laplacian of brightness, at 512 pixels; 0 = any."""
    min_contrast: float = 8.0
    """Least standard deviation of brightness (0 to 255); 0 = any."""

    expected: ClassVar[float] = 0.95

    def __post_init__(self) -> None:
        check_whole("min_side", self.min_side)
        check_number("max_aspect", self.max_aspect, minimum=1)
        check_number("min_sharpness", self.min_sharpness, minimum=0)
        check_number("min_contrast", self.min_contrast, minimum=0)

    def measure(self, item: Item, images: Images) -> Facts:
        return {"images": [_measured(images.read(ref)) for ref in item.images]}

    def decide(self, item: Item, facts: Mapping[str, Any]) -> Outcome:
        for number, (width, height, sharpness, contrast) in enumerate(facts["images"], 1):
            name = f"reference {number}" if number <= len(item.references) else "the target"
            if min(width, height) < self.min_side:
                return Rejected("small image", f"{name} has {width} x {height} pixels")
            if max(width, height) > self.max_aspect * min(width, height):
                return Rejected("narrow image", f"{name} has {width} x {height} pixels")
            if contrast < self.min_contrast:
                return Rejected("nearly one colour", f"{name} has a contrast of {contrast}")
            if sharpness < self.min_sharpness:
                return Rejected("blurred", f"{name} has a sharpness of {sharpness}")
        return [item]


def _measured(data: bytes) -> tuple[int, int, float, float]:
    """Width, height, sharpness, contrast."""
    image = decode_rgb(data)
    width, height = image.size
    grey = image.convert("L")
    factor = _SIDE / max(grey.size)
    size = (max(3, round(width * factor)), max(3, round(height * factor)))
    pixels = np.asarray(grey.resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    centre = pixels[1:-1, 1:-1]
    laplacian = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:] - 4 * centre
    return width, height, round(float(laplacian.var()), 2), round(float(pixels.std()), 2)
