"""Rectified flow: timesteps, noisy latents, velocity targets, Euler steps (docs/specification.md 4, 7).

Time runs from 1 (noise) to 0 (image): x_t = (1 - t) x0 + t noise, velocity = noise - x0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shift_timesteps(timesteps: Tensor, shift: float) -> Tensor:
    """Maps t to shift t / (1 + (shift - 1) t); with a shift above 1 more steps are near noise."""
    return shift * timesteps / (1 + (shift - 1) * timesteps)


def timesteps_from_logits(logits: Tensor, shift: float = 1.0) -> Tensor:
    """Normal draws -> t in (0, 1), shifted; -inf (a clean image) gives exactly 0."""
    return shift_timesteps(torch.sigmoid(logits), shift)


def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t; `timesteps` (N,) for `clean` and `noise` (N, P)."""
    t = timesteps[:, None]
    return (1 - t) * clean + t * noise


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    """The velocity, the network's target."""
    return noise - clean


def time_grid(num_inference_steps: int, shift: float) -> Tensor:
    """(steps + 1,) float32 from 1 to 0 inclusive.

    The release's `num_timesteps` counts the points, not the steps: its 50 is `num_inference_steps=49`.
    """
    return shift_timesteps(torch.linspace(1, 0, num_inference_steps + 1), shift)


def euler_step(latents: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """One step from `t` down to `t_next`."""
    return latents - velocity * (t - t_next)
