"""Attention of samples so small that all scores fit the cache: batched matrix products, for the CPU.

Below some hundred tokens torch's fused kernel reaches a fifth of the matrix-product rate, forward and backward; batched
products reach two thirds of it, and the backward pass needs no second look at the scores. What is kept grows with the
tokens: `pieces.SMALL_SAMPLE` limits those of a sample.

Shapes: G samples, C context tokens of a sample, H heads, E head dimension; B batched matrices.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from scone_pl.model.attention.pieces import Piece

HIDDEN = -1e30
"""Added to the scores of pairs that do not attend. Finite, so that a query without any key gives no nan."""


def added_to_scores(piece: Piece, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The mask and a soft bridge's `bias` (G, C) of a piece -> (G or 1, queries, keys)."""
    assert piece.mask is not None
    hidden = torch.where(piece.mask[:, 0], 0.0, HIDDEN).to(dtype)
    if piece.biased is None or bias is None:
        return hidden
    of_key = F.pad(bias, (0, hidden.shape[-1] - bias.shape[1]))[:, None]
    return torch.addcmul(hidden, piece.biased.to(dtype), of_key.to(dtype))


def batched(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """(G, rows, H, E) -> views (B, rows, E), each of all samples for one head, or all heads of one sample: the fewer.

    Batched products take these rows where they lie, between those of other heads, so nothing is copied first.
    """
    if by_sample(tensors[0]):
        return zip(*(x.transpose(1, 2).unbind(0) for x in tensors), strict=True)
    return zip(*(x.unbind(2) for x in tensors), strict=True)


def by_sample(x: Tensor) -> bool:
    """Whether `batched` has a batch for each sample of (G, rows, H, E)."""
    return x.shape[0] < x.shape[2]


def attend_small(q: Tensor, k: Tensor, v: Tensor, output: Tensor, *, added: Tensor, scale: float) -> Tensor:
    """Attention of one of the batches that `batched` makes.

    Args:
        q: (B, queries, E).
        k: (B, keys, E).
        v: (B, keys, E).
        output: (B, queries, E), which is written.
        added: (B or 1, queries, keys), to the scores.
        scale: of the scores.

    Returns:
        The weights (B, queries, keys).
    """
    weights = torch.baddbmm(added, q, k.mT, alpha=scale).softmax(-1)
    output.copy_(torch.bmm(weights, v))
    return weights


def attend_small_backward(
    gradient: Tensor,
    q: Tensor,
    of_q: Tensor,
    k: Tensor,
    v: Tensor,
    of_k: Tensor,
    of_v: Tensor,
    *,
    weights: Tensor,
    scale: float,
) -> Tensor:
    """Writes the gradient `of_q` of a batch, adds to those `of_k` and `of_v`, returns that of the scores."""
    of_v.add_(torch.bmm(weights.mT, gradient))
    of_weights = torch.bmm(gradient, v.mT)
    of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
    torch.mul(torch.bmm(of_scores, k), scale, out=of_q)
    of_k.add_(torch.bmm(of_scores.mT, q), alpha=scale)
    return of_scores
