"""The FlexAttention backend: one kernel over the whole pack, a hard bridge in its mask, a soft one in its scores.

For CUDA: on the CPU FlexAttention has no backward, and without compilation it materialises the scores; there it only
serves tests of this file. No L x L mask is built: the block mask is computed one row of blocks at a time.

A soft bridge's bias is read by the kernel as a constant, and its gradient is computed here (`BiasGradient`) by two more
*forward* kernels with queries and keys exchanged. Its two alternatives would do on paper:

- a captured bias that requires a gradient. FlexAttention's backward then adds every pair's gradient to it by an atomic
  operation: L * L * H of them a layer, in no fixed order, which is more traffic than the rest of the backward;
- a channel of q and k as in `SplitPlan`. FlexAttention rounds head dimensions up to a power of 2, so 128 + 1 channels
  would cost as much as 256, in all layers' matrix products and in on-chip memory.

Shapes: L tokens padded to a multiple of the block size, H query heads, K key/value heads, R = H / K, E head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from scone_pl.model.attention.plan import AttentionPlan
from scone_pl.model.sequence import PackedSequence, SplitKind

BLOCK_SIZE = 128
"""Side of a FlexAttention block."""

SMALLEST_HEAD = 16
"""The fewest channels that its kernels take; smaller heads are padded with zeros."""

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
ScoreFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


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
        self.target_query = table(pack.target_tokens, False)
        self.block_mask = _block_mask(self._mask_function(None), len(self.sample), pack.device)
        self.bias: Tensor | None = None
        """(L,) float, of a soft bridge."""
        self._scale = 0.0
        """Of the scores, by the head dimension before it was padded."""

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
        plan = copy(self)
        plan.bias = None
        plan.block_mask = _block_mask(self._mask_function(blocked), len(self.sample), blocked.device)
        return plan

    def biased(self, bias: Tensor) -> FlexPlan:
        plan = copy(self)
        plan.bias = F.pad(bias, (0, len(self.sample) - self.length)).contiguous()
        return plan

    def over(self, pack: PackedSequence, present: Tensor | None) -> FlexPlan:
        return FlexPlan(pack, present)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        padding, head_dim = len(self.sample) - self.length, q.shape[2]
        widening = max(0, SMALLEST_HEAD - head_dim)
        self._scale = head_dim**-0.5
        q, k, v = (F.pad(x.transpose(0, 1)[None], (0, widening, 0, padding)) for x in (q, k, v))
        options = {"block_mask": self.block_mask, "enable_gqa": q.shape[1] != k.shape[1], "scale": self._scale}
        if self.bias is None:
            attended = _kernel(q)(q, k, v, **options)
        else:
            request = AuxRequest(lse=True)
            attended, aux = _kernel(q)(q, k, v, score_mod=self._biased_scores(), return_aux=request, **options)
            attended = BiasGradient.apply(attended, aux.lse, q, k, v, self.bias, self)
        return attended[0, :, : self.length, :head_dim].transpose(0, 1)

    def _biased_scores(self) -> ScoreFunction:
        """Scores with the bias."""
        assert self.bias is not None
        target_query, bias = self.target_query, self.bias.detach()

        def biased(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return torch.where(target_query[q], score + bias[k], score)

        return biased

    @cached_property
    def bias_block_mask(self) -> BlockMask:
        """Which queries the bias of each context key concerns; keys are the rows."""
        sample, target_query, context = self.sample, self.target_query, ~self.in_target

        def concerned(batch: Tensor, head: Tensor, k: Tensor, q: Tensor) -> Tensor:
            # A target sees the whole context of its sample, which lies before it.
            return target_query[q] & context[k] & (sample[q] == sample[k])

        return _block_mask(concerned, len(sample), sample.device)

    def bias_gradient(self, gradient: Tensor, attended: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The bias's gradient; see `BiasGradient`, whose tensors these are.

        With probabilities P = exp(score - lse) the score of a pair has gradient P_qk (dO_q . v_k - dO_q . O_q). Summed
        over q, both terms are products with P^T. P^T x is attention of keys to queries with scores score - lse, whose
        own softmax is undone by its log-sum-exp; the bias of a key is the same for all queries, so it comes last.
        """
        assert self.bias is not None
        num_kv = k.shape[1]
        grouped = (1, num_kv, -1, *q.shape[2:])
        queries, gradient, attended = (x.view(grouped)[0] for x in (q, gradient, attended))  # (K, R, L, E)
        normalizer = lse.view(num_kv, -1, lse.shape[2])
        keys = k[0, :, None].expand_as(queries)

        def normalized(score: Tensor, batch: Tensor, head: Tensor, k: Tensor, q: Tensor) -> Tensor:
            return score - normalizer[batch, head, q]

        def product(values: Tensor) -> tuple[Tensor, Tensor]:
            output, aux = _kernel(q)(
                keys,
                queries,
                values,
                score_mod=normalized,
                block_mask=self.bias_block_mask,
                scale=self._scale,
                return_aux=AuxRequest(lse=True),
            )
            return output.to(aux.lse.dtype), aux.lse

        of_values, log_sum = product(gradient)
        inner = (gradient.to(lse.dtype) * attended).sum(-1, keepdim=True).to(q.dtype)
        of_outputs, _ = product(F.pad(inner, (0, SMALLEST_HEAD - 1)))
        difference = (of_values * v[0, :, None]).sum(-1) - of_outputs[..., 0]  # (K, R, L)
        return ((log_sum + self.bias).exp() * difference).sum((0, 1)).to(self.bias.dtype)


class BiasGradient(Function):
    """The identity on attention's output, which gives the bias the gradient that the kernel does not compute."""

    @staticmethod
    def forward(
        ctx: Any, attended: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, plan: FlexPlan
    ) -> Tensor:
        """As `FlexPlan` passes them to its kernel: (1, H, L, E), (1, H, L), two of (1, K, L, E), and (L,)."""
        ctx.save_for_backward(attended, lse, q, k, v)
        ctx.plan = plan
        return attended.view_as(attended)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_bias = ctx.plan.bias_gradient(gradient, *ctx.saved_tensors) if ctx.needs_input_grad[5] else None
        return gradient, None, None, None, None, of_bias, None


def _kernel(q: Tensor) -> Callable[..., Any]:
    kernel: Any = _compiled() if q.is_cuda else flex_attention
    return kernel


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=True)


def _block_mask(mask_mod: MaskFunction, length: int, device: torch.device) -> BlockMask:
    """Classifies blocks as empty, mixed or full, holding one (block, length) strip of the mask at a time."""
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
