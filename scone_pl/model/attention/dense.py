"""The reference backend: attention with an L x L mask."""

from __future__ import annotations

import torch
from torch import Tensor

from scone_pl.model.attention.plan import AttentionPlan
from scone_pl.model.attention.sdpa import attend
from scone_pl.model.sequence import PackedSequence, SplitKind


def dense_mask(pack: PackedSequence, blocked: Tensor | None = None) -> Tensor:
    """(L, L) bool: query row may attend key column. The definition that every backend is tested against."""
    split = pack.per_split(list(range(len(pack.splits))))
    in_target = pack.per_split([s.kind == SplitKind.TARGET for s in pack.splits]).bool()
    causal = pack.per_split([s.kind == SplitKind.TEXT for s in pack.splits]).bool()
    index = torch.arange(len(pack), device=pack.device)
    same_sample = pack.sample_of_token[:, None] == pack.sample_of_token
    earlier = (split < split[:, None]) & ~in_target
    own = (split == split[:, None]) & (~causal[:, None] | (index <= index[:, None]))
    allowed = same_sample & (earlier | own)
    if blocked is not None:
        allowed &= ~(pack.target_tokens[:, None] & blocked)
    return allowed


class DensePlan(AttentionPlan):
    """One product with an L x L mask."""

    def __init__(self, pack: PackedSequence, blocked: Tensor | None = None, bias: Tensor | None = None) -> None:
        self.pack = pack
        self.mask = dense_mask(pack, blocked)
        if bias is not None:
            self.mask = torch.where(pack.target_tokens[:, None], bias, 0.0).masked_fill(~self.mask, -torch.inf)

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
