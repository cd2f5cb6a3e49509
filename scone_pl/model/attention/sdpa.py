"""`scaled_dot_product_attention` with grouped heads, and the extra channel that carries a bias.

Shapes: G samples, H query heads, K key/value heads, E head dimension, q queries, k keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNEL_MULTIPLE = 8
"""Head dimensions are padded to a multiple of it: CUDA's fused kernels require that, and the CPU's is fastest there."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    """(G, H, q, E), (G, K, k, E), (G, K, k, E) -> (G, H, q, E), with grouped-query heads where H > K.

    The products of q and k are scaled by `scale`, by default E ** -0.5.
    """
    if mask is not None and q.is_cuda and q.shape[1] != k.shape[1]:
        # No CUDA kernel takes both a mask and grouped heads: the fallback would hold all scores.
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def append_channel(x: Tensor, channel: Tensor) -> Tensor:
    """(..., E) and (..., 1), broadcast -> (..., E'): `channel`, then zeros up to a multiple of `CHANNEL_MULTIPLE`."""
    channel = channel.to(x.dtype).expand(*x.shape[:-1], 1)
    zeros = x.new_zeros(()).expand(*x.shape[:-1], -(x.shape[-1] + 1) % CHANNEL_MULTIPLE)
    return torch.cat([x, channel, zeros], dim=-1)
