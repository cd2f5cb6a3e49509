"""The backend for CUDA in half precision: FlashAttention over sequences of variable length.

Every split's queries and the keys that they see are one segment; all segments of a pack are computed by two kernels a
layer, one for causal text and one for the rest, or three with a soft bridge. Lengths are tensors on the device, so a
new pack compiles nothing and builds no execution plan, as cuDNN's kernels do for each new shape (60 ms on an H100), and
a hard bridge, which shortens the segments of target latents, costs no synchronisation: the host only knows an upper
bound.

Keys are gathered: a context key once for each later split of its sample. They are few (grouped heads), the copies small
beside the hidden states.

Shapes: L tokens, H query heads, K key/value heads, E head dimension; of a group of n segments: Q queries, M keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from scone_pl.errors import UserError
from scone_pl.model.attention.plan import AttentionPlan
from scone_pl.model.attention.sdpa import append_channel
from scone_pl.model.indices import indices_of, to_device
from scone_pl.model.sequence import PackedSequence, SplitKind

HALF = (torch.bfloat16, torch.float16)
"""What FlashAttention computes in."""


@dataclass(frozen=True)
class Segments:
    """Queries and keys of n segments, which one kernel computes."""

    queries: Tensor
    """(Q,) int64: their tokens."""
    keys: Tensor
    """(M,) int64: tokens of the keys. Behind the last segment's there may be more, which nobody sees."""
    query_starts: Tensor
    """(n + 1,) int32: where each segment's queries start in `queries`, and the end of the last."""
    key_starts: Tensor
    """(n + 1,) int32, likewise."""
    longest: tuple[int, int]
    """Upper bounds of the queries and of the keys of a segment."""
    causal: bool
    """The last query of a segment sees all its keys, the one before it one less, and so on."""
    of_target: Tensor
    """(M,) bool: keys that target latents look up outside of their own image, so that a bridge may hide them."""
    to_targets: bool = False
    """All of these are of target images."""
    biased: Tensor | None = None
    """(Q,) bool: the queries that a soft bridge's bias concerns; None = no bias."""

    def without(self, hidden: Tensor) -> Segments:
        """`hidden` (M,) bool: keys that are left out."""
        segment = torch.searchsorted(
            self.key_starts, torch.arange(len(self.keys), device=hidden.device, dtype=torch.int32), right=True
        )
        visible = ~hidden & (segment < len(self.key_starts))
        counts = torch.zeros(len(self.key_starts) + 1, dtype=torch.int32, device=hidden.device)
        counts.index_add_(0, segment, visible.int())
        order = torch.argsort(visible.int(), descending=True, stable=True)
        starts = counts[: len(self.key_starts)].cumsum(0, dtype=torch.int32)
        return dataclasses.replace(
            self, keys=self.keys[order], key_starts=starts, of_target=self.of_target[order] & visible[order]
        )


class VarlenPlan(AttentionPlan):
    """All splits of a pack in two or three kernels a layer."""

    def __init__(self, pack: PackedSequence, present: Tensor | None = None) -> None:
        """`present`: see `AttentionPlan.over`."""
        self._pack, self._present = pack, present
        self._bias: Tensor | None = None

    @cached_property
    def _whole(self) -> list[Segments]:
        """Nothing hidden by a bridge."""
        return self._showing(_segments(self._pack))

    @cached_property
    def segments(self) -> list[Segments]:
        """What the kernels compute."""
        return self._whole

    @cached_property
    def _edges_apart(self) -> list[Segments]:
        """The same, in segments of which a bridge may hide keys."""
        return self._showing(_segments(self._pack, edges_apart=True))

    @cached_property
    def _targets_apart(self) -> list[Segments]:
        """The same, target images in a group of their own: a bias makes their kernel, with its channel more, slower."""
        return self._showing(_segments(self._pack, targets_apart=True))

    def _showing(self, groups: list[Segments]) -> list[Segments]:
        if self._present is None:
            return groups
        return [group.without(~self._present[group.keys]) for group in groups]

    def hiding(self, blocked: Tensor) -> VarlenPlan:
        plan = copy(self)
        plan._bias = None
        plan.segments = [g if g.causal else g.without(blocked[g.keys] & g.of_target) for g in self._edges_apart]
        return plan

    def biased(self, bias: Tensor) -> VarlenPlan:
        plan = copy(self)
        plan._bias = bias
        target = self._pack.target_tokens
        plan.segments = [
            dataclasses.replace(g, biased=target[g.queries]) if g.to_targets else g for g in self._targets_apart
        ]
        return plan

    def over(self, pack: PackedSequence, present: Tensor | None) -> VarlenPlan:
        return VarlenPlan(pack, present)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        if q.device.type not in ("cuda", "meta") or q.dtype not in HALF:
            raise UserError(f"model.attention: varlen needs CUDA and bfloat16, not {q.device.type} and {q.dtype}")
        return VarlenAttention.apply(q, k, v, self._bias, self.segments)


class VarlenAttention(Function):
    """Attention of all segments of a pack."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, groups: Sequence[Segments]) -> Tensor:
        """`q` (L, H, E), `k` and `v` (L, K, E), `bias` (L,) or None -> (L, H, E)."""
        output = torch.zeros_like(q)
        kept: list[Tensor] = []
        for group in groups:
            result, *state = attend_forward(*_inputs(group, q, k, v, bias), group, q.shape[-1] ** -0.5)
            assert len(state) == STATE
            output.index_copy_(0, group.queries, result[..., : q.shape[-1]])
            kept += state
        ctx.save_for_backward(q, k, v, bias, output, *kept)
        ctx.groups = groups
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, output, *kept = ctx.saved_tensors
        size, states = q.shape[-1], iter(kept)
        grad_q = torch.zeros_like(q)
        # A key's gradient is the sum over the segments that see it.
        grad_k, grad_v = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k, v))
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for group in ctx.groups:
            inputs = _inputs(group, q, k, v, bias)
            padding = 0, inputs[0].shape[-1] - size
            of_output, result = (
                torch.nn.functional.pad(x.index_select(0, group.queries), padding) for x in (gradient, output)
            )
            state = tuple(islice(states, STATE))
            of_q, of_k, of_v = attend_backward(of_output, *inputs, result, state, group, size**-0.5)
            grad_q.index_copy_(0, group.queries, of_q[..., :size])
            # The kernel leaves what lies behind the last segment unwritten.
            unseen = torch.arange(len(group.keys), device=q.device) >= group.key_starts[-1]
            for total, part in ((grad_k, of_k), (grad_v, of_v)):
                part = part[..., :size].float().masked_fill_(unseen[:, None, None], 0.0)
                total.index_add_(0, group.keys, part)
            if group.biased is not None and grad_bias is not None:
                of_channel = of_k[..., size].float().sum(1) * size**0.5
                grad_bias.index_add_(0, group.keys, of_channel.masked_fill_(unseen | ~group.of_target, 0.0))
        of_bias = None if bias is None or grad_bias is None else grad_bias.to(bias.dtype)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), of_bias, None


STATE = 3
"""Tensors that the backward kernel needs beside inputs and output: log-sum-exp, and two of dropout, which is off."""


def attend_forward(q: Tensor, k: Tensor, v: Tensor, group: Segments, scale: float) -> tuple[Tensor, ...]:
    """(Q, H, E'), (M, K, E'), (M, K, E') -> output (Q, H, E') and `STATE` tensors for `attend_backward`."""
    output, *state, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, group.query_starts, group.key_starts, *group.longest, 0.0, group.causal, False, scale=scale
    )
    return output, *state


def attend_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    state: tuple[Tensor, ...],
    group: Segments,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attend_forward`'s q, k and v."""
    normalizer, *dropout = state
    lengths = group.query_starts, group.key_starts, *group.longest
    return torch.ops.aten._flash_attention_backward(
        gradient, q, k, v, output, normalizer, *lengths, 0.0, group.causal, *dropout, scale=scale
    )


def _inputs(group: Segments, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a group; with a bias one channel more, as in `pieces.gather_inputs`."""
    queries, keys, values = (
        q.index_select(0, group.queries),
        k.index_select(0, group.keys),
        v.index_select(0, group.keys),
    )
    if group.biased is None or bias is None:
        return queries, keys, values
    of_key = (bias[group.keys] * q.shape[-1] ** 0.5).masked_fill(~group.of_target, 0.0)
    return (
        append_channel(queries, group.biased[:, None, None]),
        append_channel(keys, of_key[:, None, None]),
        append_channel(values, values.new_zeros(1)),
    )


@dataclass(frozen=True)
class _Segment:
    queries: tuple[range, ...]
    keys: tuple[range, ...]
    causal: bool
    looked_up: tuple[bool, ...]
    """Of each range of keys: see `Segments.of_target`."""


def _segments(pack: PackedSequence, *, edges_apart: bool = False, targets_apart: bool = False) -> list[Segments]:
    """The segments of a pack, causal ones apart.

    Args:
        pack: the sequence.
        edges_apart: start and end of a target image, which see blocked keys too (specification 5), are a segment of
            their own.
        targets_apart: target images are a group of their own.
    """
    causal: list[_Segment] = []
    full: list[_Segment] = []
    to_targets: list[_Segment] = [] if targets_apart else full
    for splits in pack.by_sample:
        begin = splits[0].start
        targets = [s for s in splits if s.kind == SplitKind.TARGET]
        context = range(begin, min((s.start for s in targets), default=splits[-1].stop))
        for split in splits:
            own = range(split.start, split.stop)
            if split.kind == SplitKind.TARGET:
                keys = context, own
                if not edges_apart:
                    to_targets.append(_Segment((own,), keys, False, (True, False)))
                    continue
                if split.frame:
                    to_targets.append(_Segment(tuple(split.edges), keys, False, (False, False)))
                to_targets.append(_Segment((split.content,), keys, False, (True, False)))
            else:
                segment = _Segment((own,), (range(begin, split.stop),), split.kind == SplitKind.TEXT, (False,))
                (causal if segment.causal else full).append(segment)
    groups = [_group(group, pack.device) for group in (full, causal) if group]
    if targets_apart and to_targets:
        groups.append(dataclasses.replace(_group(to_targets, pack.device), to_targets=True))
    return groups


def _group(segments: Sequence[_Segment], device: torch.device) -> Segments:
    def starts(lengths: Sequence[int]) -> Tensor:
        return to_device(torch.tensor([*accumulate(lengths, initial=0)], dtype=torch.int32), device)

    queries, keys = (
        [sum(map(len, ranges)) for ranges in of_all]
        for of_all in zip(*((s.queries, s.keys) for s in segments), strict=True)
    )
    looked_up = [torch.full((len(r),), flag) for s in segments for r, flag in zip(s.keys, s.looked_up, strict=True)]
    return Segments(
        queries=indices_of([r for s in segments for r in s.queries], device),
        keys=indices_of([r for s in segments for r in s.keys], device),
        query_starts=starts(queries),
        key_starts=starts(keys),
        longest=(max(queries), max(keys)),
        causal=segments[0].causal,
        of_target=to_device(torch.cat(looked_up), device),
    )
