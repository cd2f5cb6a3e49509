"""The FlexAttention backend: one kernel over the whole pack, the bridge in its mask. For CUDA.

On the CPU FlexAttention has no backward, and without compilation it materialises the scores: there it only serves
tests of this file. No L x L mask is built: the block mask is found one row of blocks at a time.

Shapes: L tokens padded to a multiple of the block size, H query heads, K key/value heads, E head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from scone_pl.model.attention import AttentionPlan
from scone_pl.model.sequence import PackedSequence, SplitKind

BLOCK_SIZE = 128
"""Side of a FlexAttention block."""

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class FlexPlan(AttentionPlan):
    """One FlexAttention kernel a layer, driven by per-token tables."""

    def __init__(self, pack: PackedSequence, present: Tensor | None = None) -> None:
        """`present`: see `AttentionPlan.over`."""
        padding = -len(pack) % BLOCK_SIZE
        self.length = len(pack)

        def table(values: Tensor, fill: int | bool) -> Tensor:
            return F.pad(values, (0, padding), value=fill).contiguous()

        num_splits = len(pack.splits)
        sample, split = pack.sample_of_token, pack.per_split(list(range(num_splits)))
        if present is not None:
            sample, split = (torch.where(present, x, n) for x, n in ((sample, pack.num_samples), (split, num_splits)))
        # Padding forms a sample and a split of its own, so no real token sees it and no row is empty.
        self.sample = table(sample, pack.num_samples)
        self.split = table(split, num_splits)
        self.in_target = table(pack.per_split([s.kind == SplitKind.TARGET for s in pack.splits]).bool(), False)
        self.causal = table(pack.per_split([s.kind == SplitKind.TEXT for s in pack.splits]).bool(), False)
        target_query = torch.zeros(len(pack), dtype=torch.bool, device=pack.device)
        target_query[pack.target_index] = True
        self.target_query = table(target_query, False)
        self.block_mask = _block_mask(self._mask_function(None), len(self.sample), pack.device)

    def _mask_function(self, blocked: Tensor | None) -> MaskFunction:
        sample, split, in_target = self.sample, self.split, self.in_target
        causal, target_query = self.causal, self.target_query

        def allowed(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            earlier = (split[k] < split[q]) & ~in_target[k]
            own = (split[k] == split[q]) & (~causal[q] | (k <= q))
            return (sample[k] == sample[q]) & (earlier | own)

        if blocked is None:
            return allowed
        hidden = F.pad(blocked, (0, len(sample) - len(blocked)), value=False).contiguous()
        return lambda batch, head, q, k: allowed(batch, head, q, k) & ~(target_query[q] & hidden[k])

    def hiding(self, blocked: Tensor) -> FlexPlan:
        plan = FlexPlan.__new__(FlexPlan)
        plan.__dict__.update(self.__dict__)
        plan.block_mask = _block_mask(self._mask_function(blocked), len(self.sample), blocked.device)
        return plan

    def over(self, pack: PackedSequence, present: Tensor | None) -> FlexPlan:
        return FlexPlan(pack, present)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        padding = len(self.sample) - self.length
        q, k, v = (F.pad(x.transpose(0, 1)[None], (0, 0, 0, padding)) for x in (q, k, v))
        kernel = _compiled() if q.is_cuda else flex_attention
        attended = kernel(q, k, v, block_mask=self.block_mask, enable_gqa=q.shape[1] != k.shape[1])
        return attended[0, :, : self.length].transpose(0, 1)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=True)


def _block_mask(mask_mod: MaskFunction, length: int, device: torch.device) -> BlockMask:
    """Finds which blocks are empty, mixed or full, holding one (block, length) strip of the mask at a time."""
    num_blocks = length // BLOCK_SIZE
    columns = torch.arange(length, device=device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    some, every = [], []
    for rows in columns.view(num_blocks, BLOCK_SIZE):
        strip = mask_mod(zero, zero, rows[:, None], columns).view(BLOCK_SIZE, num_blocks, BLOCK_SIZE)
        some.append(strip.any(-1).any(0))
        every.append(strip.all(-1).all(0))
    full = torch.stack(every)
    mixed = torch.stack(some) & ~full

    def blocks(dense: Tensor) -> tuple[Tensor, Tensor]:
        indices = torch.argsort(dense.int(), dim=-1, descending=True, stable=True)
        return dense.sum(-1).int()[None, None], indices.int()[None, None]

    return BlockMask.from_kv_blocks(
        *blocks(mixed), *blocks(full), BLOCK_SIZE=BLOCK_SIZE, mask_mod=mask_mod, seq_lengths=(length, length)
    )
