"""Dynamic attention rebalancing (DAR; MICON-Bench, arXiv 2602.19497): a training-free baseline to compare with.

In every layer and step, some of the target's queries are asked how much they attend to each reference token. Keys of
tokens that receive much are made longer, of those that receive little shorter, and the target attends to these keys:

    r_k = sum over queries and heads of softmax(q K_ref^T / sqrt(E))_k, brought to [0, 1] by minimum and maximum
    w_k = 1 + strength where r_k >= high, 1 - strength where r_k <= low, else 1
    attention = softmax(q (w * K)^T / sqrt(E)) V

Formulas and values are taken from summaries of the paper. They leave open over which keys the first softmax runs; here
over the reference tokens, all images together. Mind that a longer key receives more attention only where its product
with a query is positive.

Shapes: G prompts, H query heads, K key/value heads, E head dimension, T tokens of a target, S keys, R reference tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scone_pl.sampling.settings import AttentionRebalancingConfig

_ROUNDING = 1e-4
"""Relative differences below this are rounding, which must not be stretched to [0, 1]."""


def rebalanced(q: Tensor, keys: Tensor, num_references: int, config: AttentionRebalancingConfig) -> Tensor:
    """`keys` with those of reference tokens longer or shorter.

    Args:
        q: (G, H, T, E), the target's.
        keys: (G, K, S, E), reference tokens first.
        num_references: R; 0 changes nothing.
        config: see there.

    Returns:
        (G, K, S, E), a copy if anything changes.
    """
    if not num_references or not config.strength:
        return keys
    factors = _factors(_received(q, keys[:, :, :num_references], config.num_queries), config).to(keys.dtype)
    references = keys[:, :, :num_references] * factors[:, None, :, None]
    return torch.cat([references, keys[:, :, num_references:]], dim=2)


def _received(q: Tensor, references: Tensor, num_queries: int) -> Tensor:
    """(G, R) float32: attention that each reference token receives from the queries asked.

    One key/value head at a time, so that no more than G * H / K * num_queries * R scores are held.
    """
    total, count = q.shape[2], min(num_queries, q.shape[2])
    asked = q[:, :, torch.arange(count, device=q.device) * total // count]
    grouped = asked.unflatten(1, (references.shape[1], -1))  # (G, K, H / K, count, E)
    received = references.new_zeros(len(references), references.shape[2], dtype=torch.float32)
    for queries, keys in zip(grouped.unbind(1), references.unbind(1), strict=True):
        logits = torch.einsum("ghqe,gre->ghqr", queries, keys) * q.shape[-1] ** -0.5
        received += logits.float().softmax(-1).sum(dim=(1, 2))
    return received


def _factors(received: Tensor, config: AttentionRebalancingConfig) -> Tensor:
    """(G, R): 1 + strength, 1 or 1 - strength; 1 where all tokens receive the same."""
    least, most = received.aminmax(dim=1, keepdim=True)
    span = most - least
    share = (received - least) / span
    steps = (share >= config.high).float() - (share <= config.low).float()
    return 1 + config.strength * steps * (span > _ROUNDING * most)
