"""Operations whose hand-written backward needs fewer passes over memory, and keeps less, than autograd's.

Shapes: L tokens = U understanding + N latent tokens, H heads, E head dimension, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class RMSNormFunction(Function):
    """x / rms(x) in at least float32, times a weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`x` (..., D), `weight` (D,) -> (..., D) of the dtype that their product has."""
        wide = _wide(x)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed, gradient = _wide(x) * scale, _wide(gradient)
        product = gradient * normed
        of_weight = product.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        of_x = None
        if ctx.needs_input_grad[0]:
            wide = weight.to(gradient.dtype)
            inner = (product @ wide)[..., None] / x.shape[-1]
            of_x = (gradient * wide).addcmul_(normed, inner, value=-1).mul_(scale).to(x.dtype)
        return of_x, of_weight, None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 else x.to(torch.promote_types(x.dtype, torch.float32))


class Rotate(Function):
    """Rotary position embedding in the halves convention of Qwen2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`x` (L, H, E), `cos` (L, 1, E), `sin` (L, 1, E / 2), both of x's dtype -> (L, H, E)."""
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    output = x * cos
    first, second = x.chunk(2, dim=-1)
    out_first, out_second = output.chunk(2, dim=-1)
    out_first.addcmul_(second, sin, value=-1)
    out_second.addcmul_(first, sin)
    return output


class Merge(Function):
    """Two experts' tokens -> sequence order. `Divide` is its adjoint."""

    @staticmethod
    def forward(
        ctx: Any, understanding: Tensor, generation: Tensor, u_index: Tensor, n_index: Tensor, length: int
    ) -> Tensor:
        """(U, ...) and (N, ...), with their indices (U,) and (N,) in the sequence -> (length, ...), 0 elsewhere."""
        ctx.save_for_backward(u_index, n_index)
        return _merged((understanding, generation), (u_index, n_index), length)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient.index_select(0, index) for index in ctx.saved_tensors), None, None, None


class Divide(Function):
    """Tokens in sequence order -> each expert's. `Merge` is its adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, u_index: Tensor, n_index: Tensor) -> tuple[Tensor, Tensor]:
        """(L, ...) -> (U, ...), (N, ...)."""
        ctx.save_for_backward(u_index, n_index)
        ctx.length = len(x)
        return x.index_select(0, u_index), x.index_select(0, n_index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _merged(gradients, ctx.saved_tensors, ctx.length), None, None


def _merged(parts: tuple[Tensor, ...], index: tuple[Tensor, ...], length: int) -> Tensor:
    shape = length, *parts[0].shape[1:]
    covers = sum(map(len, parts)) == length
    output = parts[0].new_empty(shape) if covers else parts[0].new_zeros(shape)
    for part, rows in zip(parts, index, strict=True):
        output.index_copy_(0, rows, part)
    return output
