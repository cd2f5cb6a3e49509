"""Embeddings other than the token table: fixed position tables, timesteps, rotary positions.

Shapes: N tokens, D hidden size, H heads, E head dimension.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from scone_pl.model import compiled
from scone_pl.model.fused import Rotate

_TIME_SLOPE = 16.0
"""How much steeper than variance-preserving the first map of a random time embedder is: t only spans [0, 1]."""


class PositionTable(nn.Module):
    """Fixed 2-D sin-cos position table, added to embedded image tokens.

    The width coordinate takes the first half of the channels; each half is sines, then cosines. Published checkpoints
    store the table; it is recomputed here on load (docs/specification.md 2).
    """

    pos_embed: Tensor

    def __init__(self, positions_per_side: int, hidden_size: int) -> None:
        super().__init__()
        self.positions_per_side = positions_per_side
        self.register_buffer("pos_embed", torch.empty(positions_per_side**2, hidden_size))
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Fills the table in place; needed after materialising a module built on the meta device."""
        if self.pos_embed.is_meta:
            return
        hidden_size = self.pos_embed.shape[1]
        quarter = hidden_size // 4
        frequencies = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)  # (D/4,)
        side = torch.arange(self.positions_per_side, dtype=torch.float64)
        angles = side[:, None] * frequencies  # (side, D/4)
        one_axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, D/2)
        rows = one_axis[:, None].expand(-1, self.positions_per_side, -1)
        columns = one_axis[None].expand(self.positions_per_side, -1, -1)
        table = torch.cat([columns, rows], dim=-1).flatten(0, 1)  # (side * side, D)
        self.pos_embed.copy_(table)

    def forward(self, positions: Tensor) -> Tensor:
        """`positions` (N,) int64 -> (N, D)."""
        return self.pos_embed[positions]


class TimestepEmbedder(nn.Module):
    """Sinusoids of t in [0, 1] (cosines, then sines), then a two-layer MLP."""

    def __init__(self, hidden_size: int, num_frequencies: int = 256, max_period: float = 10000.0) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.max_period = max_period
        self.mlp = nn.Sequential(
            nn.Linear(num_frequencies, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, timesteps: Tensor) -> Tensor:
        """`timesteps` (N,) in [0, 1] -> (N, D)."""
        half = self.num_frequencies // 2
        steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
        angles = timesteps.float()[:, None] * torch.exp(-math.log(self.max_period) / half * steps)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(sinusoids.to(cast(nn.Linear, self.mlp[0]).weight.dtype))

    @torch.no_grad()
    def spread_times(self) -> None:
        """For random weights: steep features, each bending at its own random time."""
        first = cast(nn.Linear, self.mlp[0])
        first.weight.mul_(_TIME_SLOPE)
        outputs: list[Tensor] = []
        hook = first.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        self(torch.rand(first.out_features))
        hook.remove()
        first.bias.copy_(-outputs[0].diagonal())  # feature i is 0 at the i-th time


def rotary_tables(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines (N, 1, E) and sines (N, 1, E / 2) of the rotary embedding, float32, for `position_ids` (N,)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device) / head_dim
    angles = position_ids.float()[:, None, None] * theta**-exponents  # (N, 1, E/2)
    cos = angles.cos()
    return torch.cat([cos, cos], dim=-1), angles.sin()


def axis_rotary_tables(positions: Tensor, head_dim: int, theta: float, theta_grid: float) -> tuple[Tensor, Tensor]:
    """`rotary_tables` of three axes for `positions` (N, 3): time, row, column.

    Half of a head turns by time, a quarter each by row and by column; channels are ordered as by `pair_axes`.
    """
    axes = ((head_dim // 2, theta), (head_dim // 4, theta_grid), (head_dim // 4, theta_grid))
    of_axes = [rotary_tables(axis, *size) for axis, size in zip(positions.unbind(1), axes, strict=True)]
    cos = torch.cat([cos.chunk(2, dim=-1)[0] for cos, _ in of_axes], dim=-1)
    return torch.cat([cos, cos], dim=-1), torch.cat([sin for _, sin in of_axes], dim=-1)


def pair_axes(time: Tensor, grid: Tensor) -> Tensor:
    """Two (..., E / 2), a head's halves -> (..., E), ordered such that one rotation turns all three axes.

    Each axis has the halves convention on its own channels: first halves come first, then second halves. Queries and
    keys are ordered alike, which changes no product of theirs.
    """
    axes = (time, *grid.chunk(2, dim=-1))
    halves = [axis.chunk(2, dim=-1) for axis in axes]
    return torch.cat([half[i] for i in (0, 1) for half in halves], dim=-1)


def apply_rotary(x: Tensor, tables: tuple[Tensor, Tensor], *, in_one_kernel: bool = False) -> Tensor:
    """Rotates `x` (N, H, E) by `rotary_tables`, in the halves convention of Qwen2; see `compiled.rotate`."""
    cos, sin = (table.to(x.dtype) for table in tables)
    return compiled.rotate(x, cos, sin) if in_one_kernel else Rotate.apply(x, cos, sin)
