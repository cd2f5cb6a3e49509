"""Attention with L x L masks, one up to the source layer and one behind it: what dropping tokens is tested against."""

from __future__ import annotations

import torch

from scone_pl.model.attention import AttentionPlan
from scone_pl.model.config import BridgeConfig
from scone_pl.model.sequence import PackedSequence, SplitKind


class LayerMasks(AttentionPlan):
    """In every layer behind the source layer no query sees a blocked key."""

    def __init__(self, pack: PackedSequence, bridge: BridgeConfig, blocked: torch.Tensor) -> None:
        """`blocked` (L,) bool."""
        whole = torch.zeros(len(pack), len(pack), dtype=torch.bool)
        for query in pack.splits:
            rows = torch.arange(query.start, query.stop)
            for key in pack.splits:
                if key.sample == query.sample and key.start < query.start and key.kind != SplitKind.TARGET:
                    whole[rows[:, None], torch.arange(key.start, key.stop)] = True
            own = torch.ones(query.length, query.length, dtype=torch.bool)
            whole[rows[:, None], rows] = own.tril() if query.kind == SplitKind.TEXT else own
        self.source_layer = bridge.source_layer
        self.early = whole.clone()
        if bridge.hide_references_early:
            self.early[pack.target_index[:, None], pack.reference_tokens.nonzero().flatten()] = False
        # A blocked token, which nobody reads any more, sees itself: a row must not be empty.
        self.late = (whole & ~blocked) | torch.diag(blocked)

    def hiding(self, blocked: torch.Tensor) -> AttentionPlan:
        raise AssertionError("this reference knows no bridge")

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        scores = torch.einsum("qhe,khe->hqk", q, k) / q.shape[2] ** 0.5
        scores = scores.masked_fill(~(self.early if layer <= self.source_layer else self.late), -torch.inf)
        return torch.einsum("hqk,khe->qhe", scores.softmax(-1), v)
