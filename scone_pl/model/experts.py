"""Routing tokens to the understanding or the generation expert.

Between attentions the two experts never mix, so the hidden states stay apart, each contiguous, and only queries, keys
and values are brought into sequence order.

Shapes: L tokens = U understanding + N generation (latent) tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scone_pl.model.sequence import PackedSequence


class ByExpert(NamedTuple):
    """A tensor of (U, ...) and one of (N, ...)."""

    understanding: Tensor
    generation: Tensor

    def map(self, understanding: Callable[[Tensor], Tensor], generation: Callable[[Tensor], Tensor]) -> ByExpert:
        """Each expert's own function on its own tokens."""
        return ByExpert(understanding(self.understanding), generation(self.generation))

    def __add__(self, other: ByExpert) -> ByExpert:  # type: ignore[override]
        return ByExpert(self.understanding + other.understanding, self.generation + other.generation)


class Routing:
    """Where each expert's tokens sit in the sequence."""

    def __init__(self, pack: PackedSequence) -> None:
        self.understanding_index = pack.understanding_index
        self.generation_index = pack.latent_index
        self.merge_index = pack.merge_index

    def merge(self, x: ByExpert) -> Tensor:
        """-> (L, ...) in sequence order."""
        return torch.cat(x).index_select(0, self.merge_index)

    def divide(self, x: Tensor) -> ByExpert:
        """(L, ...) -> by expert."""
        return ByExpert(x.index_select(0, self.understanding_index), x.index_select(0, self.generation_index))


def is_generation_parameter(name: str) -> bool:
    """Whether a published parameter name belongs to the generation expert."""
    return "_moe_gen" in name


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)
