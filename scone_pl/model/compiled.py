"""Norms and elementwise operations, each compiled into one kernel (forward) and one or two (backward).

For CUDA, where an operation on the hidden states of a full pack is a pass over hundreds of megabytes: written out, the
norms, the rotary embedding and the gated activation of a 7B layer make about 40 of them, and torch's group norm of one
image keeps a quarter of an H100 busy. On the CPU `fused.py` is faster to start and as fast to run; compiled operations
work there too, which the tests use.

The number of tokens is dynamic, so one compilation serves all packs; a pack with fewer than `FEWEST_TOKENS` tokens of
an expert, for which the compiler would specialise, is computed as written.

Shapes: M rows, D channels, L tokens, H heads, E head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_TOKENS = 2
"""The compiler treats sizes 0 and 1 as constants."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`fused.RMSNormFunction`: (..., D) and (D,) -> (..., D)."""
    return _call(_rms_norm, x.flatten(0, -2), weight, eps).view(x.shape)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`fused.Rotate`: (L, H, E), (L, 1, E), (L, 1, E / 2) -> (L, H, E)."""
    return _call(_rotate, x, cos, sin)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU(gate) * up: two of (M, D) -> (M, D)."""
    return _call(_gated, gate, up)


def group_norm_silu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """SiLU(norm(x)) of feature maps (B, D, h, w)."""
    for axis in (2, 3):
        torch._dynamo.maybe_mark_dynamic(x, axis)
    return _compiled(_group_norm_silu)(x, norm.weight, norm.bias, norm.num_groups, norm.eps)


def set_compiled(model: nn.Module, compiled: bool) -> None:
    """Whether the layers of `model` use these operations; see `StageSettings.compile`."""
    for module in model.modules():
        if hasattr(module, "compiled"):
            setattr(module, "compiled", compiled)  # noqa: B010  (a Module's attributes are typed as tensors)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    cos_first, cos_second = cos.chunk(2, dim=-1)
    return torch.cat([first * cos_first - second * sin, second * cos_second + first * sin], dim=-1)


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    return F.silu(F.group_norm(x, groups, weight, bias, eps))


def _call(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    if len(arguments[0]) < FEWEST_TOKENS:
        return function(*arguments)
    for argument in arguments:
        # A norm's weight has fewer axes than its rows, and its length is no number of tokens.
        if isinstance(argument, Tensor) and argument.ndim == arguments[0].ndim:
            torch._dynamo.maybe_mark_dynamic(argument, 0)
    return _compiled(function)(*arguments)


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False)
