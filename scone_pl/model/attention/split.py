"""The backend that trains on every device: scaled-dot-product attention split by split.

Shapes: L tokens, H query heads, K key/value heads, E head dimension; G samples of equal layout, S tokens of such a
sample, C of them before its first target.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scone_pl.model.attention.batches import SampleBatch, batches_of
from scone_pl.model.attention.plan import AttentionPlan
from scone_pl.model.attention.sdpa import attend
from scone_pl.model.attention.targets import Limits, SoftBias, attend_targets, visible_context
from scone_pl.model.sequence import PackedSequence, SplitKind

QUERY_CHUNK = 256
"""Text queries that share one causal mask of (chunk, keys): bounds its memory for texts of any length."""


class SplitPlan(AttentionPlan):
    """A batch of samples at a time, split by split."""

    def __init__(self, pack: PackedSequence) -> None:
        self.batches = batches_of(pack)
        self._pack = pack
        self._limits = (Limits(),) * len(self.batches)
        self._causal = _causal_strip(self.batches, pack.device)

    def hiding(self, blocked: Tensor) -> SplitPlan:
        visible = [
            ~blocked[b.start : b.start + b.num_tokens].view(b.num_samples, -1)[:, : b.context_length]
            for b in self.batches
        ]
        counts = torch.cat([v.sum(1) for v in visible]).tolist()  # the one device-to-host copy
        limits = []
        for batch, rows in zip(self.batches, visible, strict=True):
            own, counts = counts[: batch.num_samples], counts[batch.num_samples :]
            hides = bool(batch.targets) and min(own) < batch.context_length
            limits.append(Limits(visible=visible_context(batch, rows, own) if hides else None))
        return self._limited(limits)

    def biased(self, bias: Tensor) -> SplitPlan:
        is_latent = self._pack.target_tokens
        limits = []
        for batch, of_context in zip(self.batches, self._of_context(bias), strict=True):
            of_query = is_latent[batch.start + batch.context_length : batch.start + batch.length, None]
            limits.append(Limits(bias=SoftBias(of_context.transpose(2, 3), of_query) if batch.targets else None))
        return self._limited(limits)

    def over(self, pack: PackedSequence, present: Tensor | None) -> SplitPlan:
        plan = SplitPlan(pack)
        if present is None:
            return plan
        rows = zip(plan.batches, plan._of_context(present), strict=True)
        return plan._limited([Limits(present=row if batch.num_samples > 1 else None) for batch, row in rows])

    def _of_context(self, values: Tensor) -> tuple[Tensor, ...]:
        """(L,) -> per batch (G, 1, 1, C)."""
        rows = values.split([batch.num_tokens for batch in self.batches])
        return tuple(
            row.view(batch.num_samples, -1)[:, None, None, : batch.context_length]
            for batch, row in zip(self.batches, rows, strict=True)
        )

    def _limited(self, limits: list[Limits]) -> SplitPlan:
        """The same plan with `limits`, one a batch, in place of its own."""
        plan = copy(self)
        plan._limits = tuple(limits)
        return plan

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        sizes = [batch.num_tokens for batch in self.batches]
        parts = zip(self.batches, self._limits, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
        return torch.cat([self._attend_batch(*part) for part in parts])

    def _attend_batch(self, batch: SampleBatch, limits: Limits, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        qs, ks, vs = (x.view(batch.num_samples, batch.length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        outputs = []
        *context_q, target_q = qs.split([*(s.length for s in batch.context), batch.length - batch.context_length], 2)
        stop = 0
        for split, split_q in zip(batch.context, context_q, strict=True):
            start, stop = stop, stop + split.length
            keys, values = ks[:, :, :stop], vs[:, :, :stop]
            present = None if limits.present is None else limits.present[..., :stop]
            if split.kind == SplitKind.TEXT:
                outputs += self._attend_text(split_q, keys, values, start, present)
            else:
                outputs.append(attend(split_q, keys, values, present))
        if batch.targets:
            outputs += attend_targets(batch, limits, target_q, k, v, ks, vs)
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
            arguments = chunk, k[:, :, :stop], v[:, :, :stop], mask
            # SDPA keeps a float mask for its backward pass: of a text of many chunks these would add up to L x L.
            one = q.shape[2] <= QUERY_CHUNK
            outputs.append(attend(*arguments) if one else checkpoint(attend, *arguments, use_reentrant=False))
        return outputs


def _causal_strip(batches: tuple[SampleBatch, ...], device: torch.device) -> Tensor | None:
    """(chunk, longest prefix + chunk) bool, whose slices are the masks of all chunks; None if no text needs one.

    Row i of a chunk behind P tokens sees P + i + 1 of them, so every chunk's mask is the same strip, cut on the left.
    """
    stops = [split.stop - b.start for b in batches for split in b.context[1:] if split.kind == SplitKind.TEXT]
    if not stops:
        return None
    prefix = max(stops)
    columns = torch.arange(prefix + QUERY_CHUNK, device=device)
    return columns <= prefix + torch.arange(QUERY_CHUNK, device=device)[:, None]
