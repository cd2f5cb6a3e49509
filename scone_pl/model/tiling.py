"""The autoencoder by overlapping tiles, so that its activations do not grow with the image.

Group norms and attention see one tile each, so the image differs a little from that of the whole; tiles are blended
linearly where they overlap.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scone_pl.errors import UserError
from scone_pl.ranges import check_whole

TILE = 512
"""Side of a tile in pixels, unless another is given."""
OVERLAP = 4
"""A tile overlaps its neighbours by one of as many parts of its side, at least."""


def check_tile(tile: int) -> None:
    """Raises `UserError` unless tiles and their overlaps are whole latents, whatever the autoencoder's stride."""
    check_whole("tile", tile, minimum=64, maximum=2**20)
    if tile % 64:
        raise UserError(f"tile is {tile}; it must be a multiple of 64")


def in_tiles(function: Callable[[Tensor], Tensor], x: Tensor, tile: int) -> Tensor:
    """`function` of `x`, tile by tile.

    Args:
        function: (B, C, h, w) -> (B, D, k h, k w), with any k, for sides that `tile` is a multiple of.
        x: (B, C, H, W).
        tile: side of a tile; smaller images are one tile.
    """
    rows, columns = (_starts(size, tile) for size in x.shape[-2:])
    result = total = torch.empty(0)
    for top in rows:
        for left in columns:
            part = x[..., top : top + tile, left : left + tile]
            y = function(part)
            if len(rows) == len(columns) == 1:
                return y
            numerator, denominator = y.shape[-1], part.shape[-1]
            if not result.numel():
                size = [side * numerator // denominator for side in x.shape[-2:]]
                result, total = y.new_zeros(*y.shape[:2], *size), y.new_zeros(size)
            first, second = (start * numerator // denominator for start in (top, left))
            window = (..., slice(first, first + y.shape[-2]), slice(second, second + y.shape[-1]))
            weight = _ramp(y.shape[-2], y)[:, None] * _ramp(y.shape[-1], y)
            result[window] += weight * y
            total[window] += weight
    return result.div_(total)


def _starts(size: int, tile: int) -> list[int]:
    """First positions of tiles that cover `size`."""
    step = tile - tile // OVERLAP
    return [*range(0, max(size - tile, 0), step), max(size - tile, 0)]


def _ramp(length: int, like: Tensor) -> Tensor:
    """(length,): rises over an overlap, falls over one."""
    distance = torch.arange(length, device=like.device) + 1
    return (torch.minimum(distance, length + 1 - distance).clamp(max=max(1, length // OVERLAP))).to(like.dtype)
