"""Counting attended pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from scone_pl.model.sequence import PackedSequence, SplitKind


def attended_pairs(pack: PackedSequence, blocked: Tensor | None = None) -> int:
    """Number of (query, key) pairs that attend: `dense_mask(pack, blocked).sum()` without the L x L mask."""
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
