"""Bounding boxes as masks over image tokens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from scone_pl.data.sample import Candidate


def tokens_in(candidates: Iterable[Candidate], rows: int, columns: int) -> Tensor:
    """(rows, columns) bool: tokens whose centre lies in the box of one of `candidates`."""
    y = ((torch.arange(rows) + 0.5) / rows)[:, None]
    x = (torch.arange(columns) + 0.5) / columns
    grid = torch.zeros(rows, columns, dtype=torch.bool)
    for candidate in candidates:
        left, top, right, bottom = candidate.box
        grid |= (x >= left) & (x < right) & (y >= top) & (y < bottom)
    return grid


def candidate_labels(candidates: Iterable[Candidate], rows: int, columns: int) -> Tensor:
    """(rows, columns) float: 1 where a token's centre lies in the box of a target candidate, else 0."""
    return tokens_in((c for c in candidates if c.is_target), rows, columns).float()
