"""Attention of samples so small that all scores fit the cache: batched matrix products, for the CPU.

Below some hundred tokens torch's fused kernel reaches a fifth of the matrix-product rate, forward and backward; batched
products reach two thirds of it, and the backward pass needs no second look at the scores. What is kept grows with the
tokens: a sample has at most `pieces.SMALL_SAMPLE` of them.

Shapes: G samples, S tokens, C of them context, H heads, E head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scone_pl.model.attention.pieces import Piece

HIDDEN = -1e30
"""Added to the scores of pairs that do not attend. Finite, so that a query without any key gives no nan."""


def added_to_scores(piece: Piece, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The mask and a soft bridge's `bias` (G, C) of a piece -> (G or 1, 1, S, S)."""
    assert piece.mask is not None
    hidden = torch.where(piece.mask, 0.0, HIDDEN).to(dtype)
    if piece.biased is None or bias is None:
        return hidden
    of_key = F.pad(bias, (0, hidden.shape[-1] - bias.shape[1]))[:, None, None]
    return torch.addcmul(hidden, piece.biased.to(dtype), of_key.to(dtype))


def attend_small(q: Tensor, k: Tensor, v: Tensor, added: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(G, S, H, E) each, and `added_to_scores` -> the same, and the attention weights (G * H, S, S)."""
    queries, keys, values = map(_by_head, (q, k, v))
    scores = torch.bmm(queries * scale, keys.mT)
    scores.unflatten(0, (len(q), -1)).add_(added)
    weights = scores.softmax(-1)
    return _by_token(torch.bmm(weights, values), q), weights


def attend_small_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, (G, S, H, E) each, and of the scores (G * H, S, S)."""
    gradients, queries, keys, values = map(_by_head, (gradient, q, k, v))
    of_v = torch.bmm(weights.mT, gradients)
    of_weights = torch.bmm(gradients, values.mT)
    of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
    of_q = torch.bmm(of_scores, keys).mul_(scale)
    of_k = torch.bmm(of_scores.mT, queries).mul_(scale)
    return _by_token(of_q, q), _by_token(of_k, q), _by_token(of_v, q), of_scores


def _by_head(x: Tensor) -> Tensor:
    """(G, S, H, E) -> (G * H, S, E)."""
    return x.transpose(1, 2).flatten(0, 1)


def _by_token(x: Tensor, like: Tensor) -> Tensor:
    """(G * H, S, E) -> (G, S, H, E) of `like`."""
    return x.unflatten(0, (len(like), -1)).transpose(1, 2)
