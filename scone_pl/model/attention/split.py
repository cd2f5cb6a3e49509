"""The backend that trains on every device: scaled-dot-product attention split by split.

Shapes: L tokens, H query heads, K key/value heads, E head dimension; G samples of equal layout, S tokens of such a
sample, C of them before its first target.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scone_pl.model.attention import pieces
from scone_pl.model.attention.batches import SampleBatch, batches_of
from scone_pl.model.attention.cpu import CPUAttention, Pieces
from scone_pl.model.attention.pieces import (
    QUERY_CHUNK,
    Piece,
    causal_strip,
    context_pieces,
    gather_inputs,
    masked_piece,
    target_pieces,
    visible_context,
)
from scone_pl.model.attention.plan import AttentionPlan
from scone_pl.model.attention.sdpa import attend
from scone_pl.model.sequence import PackedSequence


class SplitPlan(AttentionPlan):
    """A batch of samples at a time, piece by piece."""

    def __init__(self, pack: PackedSequence, present: Tensor | None = None) -> None:
        """`present`: see `AttentionPlan.over`."""
        self.batches = batches_of(pack)
        self._pack = pack
        # Samples on their own are never padded with filler.
        self._present = [
            None if present is None or b.num_samples == 1 else b.of_context(present)[:, None, None]
            for b in self.batches
        ]
        causal = causal_strip(self.batches, pack.device)
        self._context = [context_pieces(b, causal, p) for b, p in zip(self.batches, self._present, strict=True)]
        self._bias: Tensor | None = None
        self._pieces = self._with_targets(
            [target_pieces(b, present=p) for b, p in zip(self.batches, self._present, strict=True)]
        )

    def hiding(self, blocked: Tensor) -> SplitPlan:
        visible = [~batch.of_context(blocked) for batch in self.batches]
        counts = torch.cat([v.sum(1) for v in visible]).tolist()  # the one device-to-host copy
        targets = []
        for batch, rows in zip(self.batches, visible, strict=True):
            own, counts = counts[: batch.num_samples], counts[batch.num_samples :]
            if not batch.targets or min(own) == batch.context_length:
                targets.append(target_pieces(batch))
            else:
                small = batch.length <= pieces.SMALL_SAMPLE
                targets.append(target_pieces(batch, rows if small else visible_context(batch, rows, own)))
        plan = copy(self)
        plan._bias, plan._pieces = None, self._with_targets(targets)
        return plan

    def biased(self, bias: Tensor) -> SplitPlan:
        biased = [self._pack.target_tokens[b.start : b.start + b.length] for b in self.batches]
        targets = [target_pieces(b, biased=of_query) for b, of_query in zip(self.batches, biased, strict=True)]
        plan = copy(self)
        plan._bias, plan._pieces = bias, self._with_targets(targets, biased)
        return plan

    def _with_targets(self, targets: list[list[Piece]], biased: Sequence[Tensor | None] | None = None) -> Pieces:
        """All pieces of each batch, given those of its targets and which queries are biased."""
        result: list[list[Piece]] = []
        parts = zip(self.batches, self._context, targets, biased or [None] * len(targets), strict=True)
        for batch, of_context, of_targets, of_query in parts:
            both = of_context + of_targets
            limit = pieces.SMALL_SAMPLE if of_query is None else pieces.SMALL_SAMPLE * 3 // 2
            if batch.length <= limit and len(both) > 1:
                groups = (of_context, None), (of_targets, of_query)
                both = [masked_piece(group, self._pack.device, rows) for group, rows in groups if group]
            result.append(both)
        return result

    def over(self, pack: PackedSequence, present: Tensor | None) -> SplitPlan:
        return SplitPlan(pack, present)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        return self.fused(q, k, v) if q.device.type == "cpu" else self.composed(q, k, v)

    def fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One autograd function, for the CPU."""
        return CPUAttention.apply(q, k, v, self._bias, self.batches, self._pieces)

    def composed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`scaled_dot_product_attention` by piece, for any device."""
        sizes = [batch.num_tokens for batch in self.batches]
        parts = zip(self.batches, self._pieces, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
        outputs = [self._attend_batch(*part) for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_batch(self, batch: SampleBatch, of_batch: Sequence[Piece], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(G * S, H, E) and twice (G * S, K, E) -> (G * S, H, E)."""
        q, k, v = (x.view(batch.num_samples, batch.length, *x.shape[1:]) for x in (q, k, v))
        bias = None if self._bias is None else batch.of_context(self._bias)
        parts: dict[int, Tensor] = {}
        for piece in of_batch:
            arguments = (*gather_inputs(piece, q, k, v, bias), piece.mask)
            # SDPA keeps a float mask for its backward pass: of a text of many chunks these would add up to L x L.
            if piece.mask is not None and piece.mask.shape[-2] == QUERY_CHUNK:
                output = checkpoint(attend, *arguments, use_reentrant=False)
            else:
                output = attend(*arguments, causal=piece.causal, scale=q.shape[-1] ** -0.5)
            output = output[..., : q.shape[-1]].transpose(1, 2)
            first, last, step = piece.queries.indices(batch.length)
            parts |= zip(range(first, last, step), output.split(1, 1), strict=True) if step > 1 else {first: output}
        return torch.cat([parts[first] for first in sorted(parts)], dim=1).flatten(0, 1)
