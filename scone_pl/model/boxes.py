"""Bounding boxes as masks over image tokens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as fractions of the image's width and height."""


def tokens_in(boxes: Iterable[Box], rows: int, columns: int) -> Tensor:
    """(rows, columns) bool: tokens whose centre lies in one of `boxes`."""
    y = ((torch.arange(rows) + 0.5) / rows)[:, None]
    x = (torch.arange(columns) + 0.5) / columns
    grid = torch.zeros(rows, columns, dtype=torch.bool)
    for left, top, right, bottom in boxes:
        grid |= (x >= left) & (x < right) & (y >= top) & (y < bottom)
    return grid
