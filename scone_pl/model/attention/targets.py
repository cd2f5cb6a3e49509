"""Attention of target queries in `SplitPlan`: the context, narrowed by the bridge, and the target itself.

Shapes: G samples of equal layout, S tokens of such a sample, C of them context, H query heads, K key/value heads,
E head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scone_pl.model.attention.batches import SampleBatch
from scone_pl.model.attention.sdpa import append_channel, attend


@dataclass(frozen=True)
class VisibleContext:
    """Which context keys of a batch its target latents see under a hard bridge."""

    index: Tensor
    """(G, visible) int64 into the batch's G * S tokens; rows of a sample with fewer visible keys are padded."""
    mask: Tensor | None
    """(G, 1, 1, visible) bool, false on the padding; None if there is none."""


@dataclass(frozen=True)
class SoftBias:
    """What is added to the logits that a batch's target latents give context keys."""

    of_key: Tensor
    """(G, 1, C, 1) float."""
    of_query: Tensor
    """(target tokens, 1) bool: latents. The start and end of their images see all keys unchanged (specification 5)."""


@dataclass(frozen=True)
class Limits:
    """What narrows the attention of a batch beyond its splits; at most one of the three is set."""

    visible: VisibleContext | None = None
    bias: SoftBias | None = None
    present: Tensor | None = None
    """(G, 1, 1, C) bool, false on context keys that no query sees."""


def visible_context(batch: SampleBatch, visible: Tensor, counts: list[int]) -> VisibleContext:
    """`visible` (G, C) bool with `counts` true entries a row."""
    most = max(counts)
    order = torch.argsort(visible.int(), dim=1, descending=True, stable=True)[:, :most]  # (G, most)
    offsets = torch.arange(batch.num_samples, device=visible.device)[:, None] * batch.length
    mask = visible.gather(1, order)[:, None, None] if min(counts) < most else None
    return VisibleContext(order + offsets, mask)


def attend_targets(
    batch: SampleBatch, limits: Limits, q: Tensor, k: Tensor, v: Tensor, ks: Tensor, vs: Tensor
) -> list[Tensor]:
    """Each target split sees the context and itself.

    Args:
        batch: the samples.
        limits: what its targets see of the context.
        q: (G, H, target tokens, E).
        k: (G * S, K, E): the batch's keys as rows, to gather from.
        v: (G * S, K, E).
        ks: (G, K, S, E): the keys as a batch.
        vs: (G, K, S, E).

    Returns:
        Parts (G, H, queries, E) in sequence order.
    """
    visible, present, size, scale = limits.visible, limits.present, q.shape[-1], None
    if limits.bias is not None:
        q, ks, vs = _with_bias(limits.bias, q, ks, vs)
        scale = size**-0.5
    if visible is not None:
        rows = visible.index.flatten()
        visible_k, visible_v = (
            x.index_select(0, rows).unflatten(0, visible.index.shape).transpose(1, 2) for x in (k, v)
        )  # (G, K, visible, E)
    outputs = []
    start = batch.context_length
    for split, split_q in zip(batch.targets, q.split([s.length for s in batch.targets], dim=2), strict=True):
        keys, values = (_context_and_own(batch, x, start, split.length) for x in (ks, vs))
        if visible is None:
            mask = None if present is None else F.pad(present, (0, split.length), value=True)
            outputs.append(attend(split_q, keys, values, mask, scale=scale)[..., :size])
        else:
            # Start and end of the image are not target latents: they see blocked keys too (specification 5).
            frame = attend(torch.cat([split_q[:, :, :1], split_q[:, :, -1:]], dim=2), keys, values)
            own_k, own_v = (x[:, :, start : start + split.length] for x in (ks, vs))
            keys, values = torch.cat([visible_k, own_k], dim=2), torch.cat([visible_v, own_v], dim=2)
            mask = None if visible.mask is None else F.pad(visible.mask, (0, split.length), value=True)
            content = attend(split_q[:, :, 1:-1], keys, values, mask)
            outputs += [frame[:, :, :1], content, frame[:, :, 1:]]
        start += split.length
    return outputs


def _with_bias(bias: SoftBias, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One more channel, whose product is the bias: 1 in target latents' queries, bias * sqrt(E) in context keys.

    A mask with a gradient would do, but no fused kernel takes one: the fallback holds all scores. Through the channel
    the bias gets its gradient as keys do. v is only padded, as most kernels want one size for all.

    Args:
        bias: what to add.
        q: (G, H, target tokens, E).
        k: (G, K, S, E).
        v: (G, K, S, E).
    """
    of_key = F.pad(bias.of_key * q.shape[-1] ** 0.5, (0, 0, 0, k.shape[2] - bias.of_key.shape[2]))
    return append_channel(q, bias.of_query), append_channel(k, of_key), append_channel(v, v.new_zeros(1))


def _context_and_own(batch: SampleBatch, x: Tensor, start: int, length: int) -> Tensor:
    """(G, K, S, E) -> the context and the split at `start`; a copy only where other targets lie between them."""
    own = x[:, :, start : start + length]
    if start == batch.context_length:
        return x[:, :, : start + length]
    return torch.cat([x[:, :, : batch.context_length], own], dim=2)
