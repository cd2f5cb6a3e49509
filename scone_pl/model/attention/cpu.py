"""`SplitPlan` on the CPU as one autograd function a layer.

Composed of slices, `scaled_dot_product_attention` and `cat`, autograd would fill a zero tensor of all keys for the
gradient of each slice and add them up, and the outputs would be copied three times: a fifth of a training step. Here
the kernels' forward and backward are called directly; every output and gradient is written where it belongs.

Shapes: L tokens, H query heads, K key/value heads, E head dimension; G samples of equal layout, S tokens of such a
sample, C of them context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from scone_pl.model.attention.batches import SampleBatch
from scone_pl.model.attention.pieces import Piece, gather_inputs
from scone_pl.model.attention.small import (
    added_to_scores,
    attend_small,
    attend_small_backward,
    batched,
    by_sample,
)

Pieces = Sequence[Sequence[Piece]]
"""Of each batch."""


class CPUAttention(Function):
    """Attention of all pieces of a pack."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, batches: Sequence[SampleBatch], pieces: Pieces
    ) -> Tensor:
        """`q` (L, H, E), `k` and `v` (L, K, E), `bias` (L,) or None -> (L, H, E)."""
        output = q.new_empty(q.shape)
        keys, values = (_expand(x, q.shape[1]) for x in (k, v))
        kept, scale = [], q.shape[-1] ** -0.5
        for _, of_batch, (qs, ks, vs, out), bs in _by_batch(batches, pieces, (q, keys, values, output), bias):
            for piece in of_batch:
                if _is_small(piece, q):
                    added, own, seen = added_to_scores(piece, bs, q.dtype), piece.queries, piece.keys[0]
                    of_each = added.expand(len(qs), -1, -1).split(1) if by_sample(qs) else [added] * q.shape[1]
                    inputs = batched(qs[:, own], ks[:, seen], vs[:, seen], out[:, own])
                    kept += [attend_small(*one, added=a, scale=scale) for one, a in zip(inputs, of_each, strict=True)]
                    continue
                result, normalizer = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    *gather_inputs(piece, qs, ks, vs, bs), **_options(piece, q)
                )
                out[:, piece.queries] = result[..., : q.shape[-1]].transpose(1, 2)
                kept.append(normalizer)
        ctx.save_for_backward(q, k, v, bias, output, *kept)
        ctx.batches, ctx.pieces = batches, pieces
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, output, *of_pieces = ctx.saved_tensors
        size, kept = q.shape[-1], iter(of_pieces)
        keys, values = (_expand(x, q.shape[1]) for x in (k, v))
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(keys), torch.zeros_like(values)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        tensors = q, keys, values, output, gradient.contiguous(), grad_q, grad_k, grad_v
        for batch, of_batch, (qs, ks, vs, out, grad, gq, gk, gv), bs in _by_batch(
            ctx.batches, ctx.pieces, tensors, bias
        ):
            for piece in of_batch:
                if _is_small(piece, q):
                    of_queries = (x[:, piece.queries] for x in (grad, qs, gq))
                    of_keys = (x[:, piece.keys[0]] for x in (ks, vs, gk, gv))
                    for number, one in enumerate(batched(*of_queries, *of_keys)):
                        of_scores = attend_small_backward(*one, weights=next(kept), scale=size**-0.5)
                        if piece.biased is not None and grad_bias is not None:
                            of_key = (piece.biased.mT.to(q.dtype) @ of_scores)[:, 0, : batch.context_length]
                            total = batch.of_context(grad_bias)
                            if by_sample(qs):
                                total, of_key = total[number], of_key.sum(0)
                            total.add_(of_key)
                    continue
                inputs = gather_inputs(piece, qs, ks, vs, bs)
                of_output, result = (x[:, piece.queries].transpose(1, 2) for x in (grad, out))
                if inputs[0].shape[-1] > size:
                    padding = 0, inputs[0].shape[-1] - size
                    of_output, result = (torch.nn.functional.pad(x, padding) for x in (of_output, result))
                of_q, of_k, of_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    of_output, *inputs, result, next(kept), **_options(piece, q)
                )
                gq[:, piece.queries] = of_q[..., :size].transpose(1, 2)
                _add_to_keys(piece, gk, of_k[..., :size].transpose(1, 2))
                _add_to_keys(piece, gv, of_v[..., :size].transpose(1, 2))
                if piece.biased is not None and grad_bias is not None:
                    of_key = of_k[:, :, : batch.context_length, size].sum(1)
                    batch.of_context(grad_bias).add_(of_key, alpha=size**0.5)
        return grad_q, _reduce(grad_k, k.shape[1]), _reduce(grad_v, v.shape[1]), grad_bias, None, None


def _by_batch(
    batches: Sequence[SampleBatch], pieces: Pieces, tensors: Sequence[Tensor], bias: Tensor | None
) -> Iterator[tuple[SampleBatch, Sequence[Piece], list[Tensor], Tensor | None]]:
    """Each batch, its pieces, views (G, S, ...) of `tensors` (L, ...), and the bias as (G, C)."""
    for batch, of_batch in zip(batches, pieces, strict=True):
        rows = slice(batch.start, batch.start + batch.num_tokens)
        views = [x[rows].view(batch.num_samples, batch.length, *x.shape[1:]) for x in tensors]
        yield batch, of_batch, views, None if bias is None else batch.of_context(bias)


def _is_small(piece: Piece, q: Tensor) -> bool:
    """Whether `small.py` computes it; in half precision its scores would be rounded."""
    return piece.small and q.dtype in (torch.float32, torch.float64)


def _options(piece: Piece, q: Tensor) -> dict[str, Any]:
    mask = piece.mask
    if mask is not None:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    return {"dropout_p": 0.0, "is_causal": piece.causal, "attn_mask": mask, "scale": q.shape[-1] ** -0.5}


def _add_to_keys(piece: Piece, total: Tensor, part: Tensor) -> None:
    """Adds the gradient (G, keys, H, E) of a piece's keys to that of all, (G, S, H, E)."""
    start = 0
    if piece.gathered is not None:
        start = piece.gathered.shape[1]
        total.flatten(0, 1).index_add_(0, piece.gathered.flatten(), part[:, :start].flatten(0, 1))
    for keys in piece.keys:
        stop = start + keys.stop - keys.start
        total[:, keys] += part[:, start:stop]
        start = stop


def _expand(x: Tensor, heads: int) -> Tensor:
    """(L, K, E) -> (L, H, E): each key/value head once for each of its query heads."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _reduce(x: Tensor, heads: int) -> Tensor:
    """The adjoint of `_expand`."""
    return x if x.shape[1] == heads else x.unflatten(1, (heads, -1)).sum(2)
