"""Attention over a packed sequence: one meaning, several backends.

Who attends to whom follows from the splits of a `PackedSequence` (see there). On top of it the bridge may hide
blocked keys from target queries. `AttentionPlan` is that meaning for one pack; the backends compute it:

- `SplitPlan` (here): scaled-dot-product attention split by split. Slices replace masks, blocked keys are left out of
  the product, so a blocked token makes the step cheaper; a soft bridge's bias is one more channel of q and k, not a
  mask. Memory grows with L. Runs everywhere, backward included.
- `FlexPlan` (`flex.py`): one FlexAttention kernel, for CUDA.
- `DensePlan` (here): an L x L mask. The reference that the others are tested against; not for training.

Shapes: L tokens, H query heads, K key/value heads, E head dimension; G samples of equal layout side by side, S tokens
of such a sample, C of them before its first target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scone_pl.model.sequence import PackedSequence, Split, SplitKind

CHANNEL_MULTIPLE = 8
"""Head dimensions are padded to a multiple of it: CUDA's fused kernels demand that, and the CPU's is fastest there."""

QUERY_CHUNK = 256
"""Text queries that share one causal mask of (chunk, keys): bounds its memory for texts of any length."""


class AttentionPlan(ABC):
    """Joint attention over one pack."""

    @abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """`q` (L, H, E), `k` and `v` (L, K, E) of decoder layer `layer` -> (L, H, E)."""

    @abstractmethod
    def hiding(self, blocked: Tensor) -> AttentionPlan:
        """The same plan, but target latent queries skip the keys where `blocked` (L,) bool is true.

        Only context tokens can be blocked; a target always sees itself.
        """

    def biased(self, bias: Tensor) -> AttentionPlan:
        """The same plan, but `bias` (L,) float is added to the logits that target latent queries give context keys.

        It passes a gradient. 0 for keys that are not to be touched.
        """
        raise ValueError(f"{type(self).__name__} has no soft bridge; use bridge.mode hard")

    def over(self, pack: PackedSequence, present: Tensor | None) -> AttentionPlan:
        """Attention by the same means over another pack, in which nothing is hidden yet.

        Args:
            pack: what to attend over.
            present: (L,) bool; where it is false no query looks. Context tokens only, and none but in samples that
                have neighbours of equal layout (`dropping.py`); None = all are there.
        """
        raise ValueError(f"{type(self).__name__} cannot drop tokens; use bridge.drop_blocked false")


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    """(G, H, q, E), (G, K, k, E), (G, K, k, E) -> (G, H, q, E), with grouped-query heads where H > K.

    `scale` of the products of q and k: E ** -0.5 unless told.
    """
    if mask is not None and q.is_cuda and q.shape[1] != k.shape[1]:
        # No CUDA kernel takes both a mask and grouped heads: the fallback would hold all scores.
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def append_channel(x: Tensor, channel: Tensor) -> Tensor:
    """(..., E) and (..., 1), broadcast -> (..., E'): `channel`, then zeros up to a multiple of `CHANNEL_MULTIPLE`."""
    channel = channel.to(x.dtype).expand(*x.shape[:-1], 1)
    zeros = x.new_zeros(()).expand(*x.shape[:-1], -(x.shape[-1] + 1) % CHANNEL_MULTIPLE)
    return torch.cat([x, channel, zeros], dim=-1)


@dataclass(frozen=True)
class Run:
    """Adjacent samples of equal layout, computed as one batch."""

    start: int
    num_samples: int
    layout: tuple[Split, ...]
    """The splits of the first of them."""

    @cached_property
    def length(self) -> int:
        """S."""
        return self.layout[-1].stop - self.layout[0].start

    @cached_property
    def context(self) -> tuple[Split, ...]:
        return tuple(s for s in self.layout if s.kind != SplitKind.TARGET)

    @cached_property
    def targets(self) -> tuple[Split, ...]:
        return tuple(s for s in self.layout if s.kind == SplitKind.TARGET)

    @cached_property
    def context_length(self) -> int:
        """C."""
        return sum(s.length for s in self.context)

    @property
    def num_tokens(self) -> int:
        return self.num_samples * self.length


def runs_of(pack: PackedSequence) -> tuple[Run, ...]:
    """Groups adjacent samples whose splits have the same kinds and lengths."""
    runs = []
    for _, group in groupby(pack.by_sample, key=lambda splits: tuple((s.kind, s.length) for s in splits)):
        samples = list(group)
        runs.append(Run(samples[0][0].start, len(samples), samples[0]))
    return tuple(runs)


@dataclass(frozen=True)
class KeptContext:
    """Which context keys of a run its target queries still see."""

    index: Tensor
    """(G, kept) int64 into the run's G * S tokens; rows of a sample with fewer kept keys are filled up."""
    mask: Tensor | None
    """(G, 1, 1, kept) bool, false on the filling; None if there is none."""


@dataclass(frozen=True)
class SoftBias:
    """What is added to the logits that a run's target latents give context keys."""

    of_key: Tensor
    """(G, 1, C, 1) float."""
    of_query: Tensor
    """(target tokens, 1) bool: latents, not the start and end of their images, which see all keys as ever (spec. 5)."""


@dataclass(frozen=True)
class Limits:
    """What narrows the attention of a run beyond its splits; None = nothing does. One of the three at most."""

    kept: KeptContext | None = None
    """Context keys that the bridge leaves to target latents."""
    bias: SoftBias | None = None
    present: Tensor | None = None
    """(G, 1, 1, C) bool, false on context keys where no query looks."""


class SplitPlan(AttentionPlan):
    """Split by split, on `scaled_dot_product_attention`."""

    def __init__(self, pack: PackedSequence) -> None:
        self.runs = runs_of(pack)
        self._pack = pack
        self._limits = (Limits(),) * len(self.runs)
        self._causal = _causal_strip(self.runs, pack.device)

    def hiding(self, blocked: Tensor) -> SplitPlan:
        visible = [
            ~blocked[run.start : run.start + run.num_tokens].view(run.num_samples, -1)[:, : run.context_length]
            for run in self.runs
        ]
        counts = torch.cat([v.sum(1) for v in visible]).tolist()  # the one device-to-host copy
        kept = []
        for run, seen in zip(self.runs, visible, strict=True):
            mine, counts = counts[: run.num_samples], counts[run.num_samples :]
            kept.append(_keep(run, seen, mine) if run.targets and min(mine) < run.context_length else None)
        return self._limited([Limits(kept=keys) for keys in kept])

    def biased(self, bias: Tensor) -> SplitPlan:
        is_latent = torch.zeros(len(bias), dtype=torch.bool, device=bias.device)
        is_latent[self._pack.target_index] = True
        limits = []
        for run, of_context in zip(self.runs, self._of_context(bias), strict=True):
            of_query = is_latent[run.start + run.context_length : run.start + run.length, None]
            limits.append(Limits(bias=SoftBias(of_context.transpose(2, 3), of_query) if run.targets else None))
        return self._limited(limits)

    def over(self, pack: PackedSequence, present: Tensor | None) -> SplitPlan:
        plan = SplitPlan(pack)
        if present is None:
            return plan
        rows = zip(plan.runs, plan._of_context(present), strict=True)
        return plan._limited([Limits(present=row if run.num_samples > 1 else None) for run, row in rows])

    def _of_context(self, values: Tensor) -> tuple[Tensor, ...]:
        """(L,) -> per run (G, 1, 1, C)."""
        rows = values.split([run.num_tokens for run in self.runs])
        return tuple(
            row.view(run.num_samples, -1)[:, None, None, : run.context_length]
            for run, row in zip(self.runs, rows, strict=True)
        )

    def _limited(self, limits: list[Limits]) -> SplitPlan:
        """The same plan with `limits`, one for each run, in place of its own."""
        plan = copy(self)
        plan._limits = tuple(limits)
        return plan

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        sizes = [run.num_tokens for run in self.runs]
        parts = zip(self.runs, self._limits, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
        return torch.cat([self._attend_run(*part) for part in parts])

    def _attend_run(self, run: Run, limits: Limits, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        qs, ks, vs = (x.view(run.num_samples, run.length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        outputs = []
        *context_q, target_q = qs.split([*(s.length for s in run.context), run.length - run.context_length], dim=2)
        stop = 0
        for split, split_q in zip(run.context, context_q, strict=True):
            start, stop = stop, stop + split.length
            keys, values = ks[:, :, :stop], vs[:, :, :stop]
            shown = None if limits.present is None else limits.present[..., :stop]
            if split.kind == SplitKind.TEXT:
                outputs += self._attend_text(split_q, keys, values, start, shown)
            else:
                outputs.append(attend(split_q, keys, values, shown))
        if run.targets:
            outputs.append(_attend_targets(run, limits, target_q, k, v, ks, vs))
        return torch.cat(outputs, dim=2).transpose(1, 2).flatten(0, 1)

    def _attend_text(self, q: Tensor, k: Tensor, v: Tensor, prefix: int, present: Tensor | None) -> list[Tensor]:
        if prefix == 0:
            return [attend(q, k, v, causal=True)]
        outputs = []
        for i, chunk in enumerate(q.split(QUERY_CHUNK, dim=2)):
            start, length = prefix + i * QUERY_CHUNK, chunk.shape[2]
            stop = start + length
            offset = self._causal.shape[1] - QUERY_CHUNK - start
            mask = self._causal[:length, offset : offset + stop]
            mask = mask if present is None else mask & present[..., :stop]
            seen = chunk, k[:, :, :stop], v[:, :, :stop], mask
            # SDPA keeps a float mask for its backward pass: of a text of many chunks these would add up to L x L.
            one = q.shape[2] <= QUERY_CHUNK
            outputs.append(attend(*seen) if one else checkpoint(attend, *seen, use_reentrant=False))
        return outputs


def _causal_strip(runs: tuple[Run, ...], device: torch.device) -> Tensor | None:
    """(chunk, longest prefix + chunk) bool, whose slices are the masks of all chunks; None if no text needs one.

    Row i of a chunk behind P tokens sees P + i + 1 of them, so every chunk's mask is the same strip, cut on the left.
    """
    stops = [split.stop - run.start for run in runs for split in run.context[1:] if split.kind == SplitKind.TEXT]
    if not stops:
        return None
    prefix = max(stops)
    columns = torch.arange(prefix + QUERY_CHUNK, device=device)
    return columns <= prefix + torch.arange(QUERY_CHUNK, device=device)[:, None]


def _keep(run: Run, visible: Tensor, counts: list[int]) -> KeptContext:
    """`visible` (G, C) bool with `counts` true entries a row."""
    most = max(counts)
    order = torch.argsort(visible.int(), dim=1, descending=True, stable=True)[:, :most]  # (G, most)
    offsets = torch.arange(run.num_samples, device=visible.device)[:, None] * run.length
    mask = visible.gather(1, order)[:, None, None] if min(counts) < most else None
    return KeptContext(order + offsets, mask)


def _attend_targets(run: Run, limits: Limits, q: Tensor, k: Tensor, v: Tensor, ks: Tensor, vs: Tensor) -> Tensor:
    """Each target split sees the context and itself.

    Args:
        run: the run.
        limits: what of the context it sees.
        q: (G, H, target tokens, E).
        k: (G * S, K, E), and `v` alike: the run's keys as rows, to gather from.
        v: see `k`.
        ks: (G, K, S, E), and `vs` alike: the same as a batch.
        vs: see `ks`.
    """
    kept, present, size, scale = limits.kept, limits.present, q.shape[-1], None
    if limits.bias is not None:
        q, ks, vs = _with_bias(limits.bias, q, ks, vs)
        scale = size**-0.5
    if kept is not None:
        rows = kept.index.flatten()
        shown_k, shown_v = (
            x.index_select(0, rows).unflatten(0, kept.index.shape).transpose(1, 2) for x in (k, v)
        )  # (G, K, kept, E)
    outputs = []
    start = run.context_length
    for split, split_q in zip(run.targets, q.split([s.length for s in run.targets], dim=2), strict=True):
        keys, values = (_context_and_own(run, x, start, split.length) for x in (ks, vs))
        if kept is None:
            shown = None if present is None else F.pad(present, (0, split.length), value=True)
            outputs.append(attend(split_q, keys, values, shown, scale=scale)[..., :size])
        else:
            # Start and end of the image are no target latents: they see blocked keys too (docs/specification.md 5).
            frame = attend(torch.cat([split_q[:, :, :1], split_q[:, :, -1:]], dim=2), keys, values)
            own_k, own_v = (x[:, :, start : start + split.length] for x in (ks, vs))
            keys, values = torch.cat([shown_k, own_k], dim=2), torch.cat([shown_v, own_v], dim=2)
            mask = None if kept.mask is None else F.pad(kept.mask, (0, split.length), value=True)
            content = attend(split_q[:, :, 1:-1], keys, values, mask)
            outputs += [frame[:, :, :1], content, frame[:, :, 1:]]
        start += split.length
    return torch.cat(outputs, dim=2)


def _with_bias(bias: SoftBias, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One more channel, whose product is the bias: 1 in the queries that it concerns, bias * sqrt(E) in context keys.

    A mask with a gradient would do, but no fused kernel takes one: the fallback holds all scores. Through the channel
    the bias gets its gradient as keys do. v is only padded, as most kernels want one size for all.

    Args:
        bias: what to add.
        q: (G, H, target tokens, E).
        k: (G, K, S, E), and `v` alike.
        v: see `k`.
    """
    of_key = F.pad(bias.of_key * q.shape[-1] ** 0.5, (0, 0, 0, k.shape[2] - bias.of_key.shape[2]))
    return append_channel(q, bias.of_query), append_channel(k, of_key), append_channel(v, v.new_zeros(1))


def _context_and_own(run: Run, x: Tensor, start: int, length: int) -> Tensor:
    """(G, K, S, E) -> the context and the split at `start`; a copy only where other targets lie between them."""
    own = x[:, :, start : start + length]
    if start == run.context_length:
        return x[:, :, : start + length]
    return torch.cat([x[:, :, : run.context_length], own], dim=2)


def attended_pairs(pack: PackedSequence, blocked: Tensor | None = None) -> int:
    """How many (query, key) pairs attend: `dense_mask(pack, blocked).sum()` without the L x L mask."""
    hidden = [0] * pack.num_samples
    if blocked is not None:
        context = pack.per_split([s.kind != SplitKind.TARGET for s in pack.splits]).bool()
        samples = pack.sample_of_token[blocked & context]
        hidden = torch.bincount(samples, minlength=pack.num_samples).tolist()
    pairs = 0
    for splits, num_hidden in zip(pack.by_sample, hidden, strict=True):
        earlier = 0
        for split in splits:
            own = split.length * (split.length + 1) // 2 if split.kind == SplitKind.TEXT else split.length**2
            pairs += split.length * earlier + own
            if split.kind == SplitKind.TARGET:
                pairs -= len(split.content) * num_hidden
            else:
                earlier += split.length
    return pairs


def dense_mask(pack: PackedSequence, blocked: Tensor | None = None) -> Tensor:
    """(L, L) bool: query row may attend key column. The definition that every backend is tested against."""
    split = pack.per_split(list(range(len(pack.splits))))
    in_target = pack.per_split([s.kind == SplitKind.TARGET for s in pack.splits]).bool()
    causal = pack.per_split([s.kind == SplitKind.TEXT for s in pack.splits]).bool()
    place = torch.arange(len(pack), device=pack.device)
    same_sample = pack.sample_of_token[:, None] == pack.sample_of_token
    earlier = (split < split[:, None]) & ~in_target
    own = (split == split[:, None]) & (~causal[:, None] | (place <= place[:, None]))
    allowed = same_sample & (earlier | own)
    if blocked is not None:
        target_query = torch.zeros(len(pack), dtype=torch.bool, device=pack.device)
        target_query[pack.target_index] = True
        allowed &= ~(target_query[:, None] & blocked)
    return allowed


class DensePlan(AttentionPlan):
    """The reference: one product with an L x L mask."""

    def __init__(self, pack: PackedSequence, blocked: Tensor | None = None, bias: Tensor | None = None) -> None:
        self.pack = pack
        self.mask = dense_mask(pack, blocked)
        if bias is not None:
            target_query = torch.zeros(len(pack), dtype=torch.bool, device=pack.device)
            target_query[pack.target_index] = True
            self.mask = torch.where(target_query[:, None], bias, 0.0).masked_fill(~self.mask, -torch.inf)

    def hiding(self, blocked: Tensor) -> DensePlan:
        return DensePlan(self.pack, blocked)

    def biased(self, bias: Tensor) -> DensePlan:
        return DensePlan(self.pack, bias=bias)

    def over(self, pack: PackedSequence, present: Tensor | None) -> DensePlan:
        plan = DensePlan(pack)
        if present is not None:
            plan.mask &= present
        return plan

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        mask = self.mask if self.mask.dtype == torch.bool else self.mask.to(q.dtype)
        return attend(q, k, v, mask)[0].transpose(0, 1)
