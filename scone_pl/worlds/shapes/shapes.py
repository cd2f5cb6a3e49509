"""The nameable half of a subject: its category, an 8 x 8 silhouette."""

from __future__ import annotations

from functools import cache

import numpy as np

# Silhouettes fill most of the cell, so that every patch of a subject's pattern stays visible, and overlap one
# another with an intersection over union of at most 0.7.
_DRAWINGS = {
    "square": "######## ######## ######## ######## ######## ######## ######## ########",
    "diamond": "...##... ..####.. .######. ######## ######## .######. ..####.. ...##...",
    "ring": ".######. ######## ##....## ##....## ##....## ##....## ######## .######.",
    "cross": "##....## ###..### .######. ..####.. ..####.. .######. ###..### ##....##",
    "star": "...##... ...##... ######## .######. ..####.. .######. .##..##. ##....##",
    "triangle": "...##... ...##... ..####.. ..####.. .######. .######. ######## ########",
    "heart": ".##..##. ######## ######## ######## .######. ..####.. ...##... ........",
    "hourglass": "######## .######. ..####.. ...##... ...##... ..####.. .######. ########",
    "tee": "######## ######## ######## ..####.. ..####.. ..####.. ..####.. ..####..",
}

SHAPES: tuple[str, ...] = tuple(_DRAWINGS)
"""Every category. Worlds draw from the first six by default; the others are unseen categories."""

BASE_CELL = 8
"""Side of a silhouette as drawn; cells are whole multiples of it, or of half of it."""


@cache
def shape_mask(shape: str, cell: int = BASE_CELL) -> np.ndarray:
    """(cell, cell) bool, read-only: the silhouette of `shape`, enlarged by pixel repetition.

    Odd multiples of half of `BASE_CELL` are made of a silhouette of half the sides, where a pixel is drawn if at least
    two of its four are.
    """
    rows = np.array([[pixel == "#" for pixel in row] for row in _DRAWINGS[shape].split()])
    if cell % BASE_CELL:
        rows = rows.reshape(BASE_CELL // 2, 2, BASE_CELL // 2, 2).sum((1, 3)) >= 2
    mask = rows.repeat(cell // len(rows), axis=0).repeat(cell // len(rows), axis=1)
    mask.setflags(write=False)
    return mask
