"""Rectified flow against the formulas of docs/specification.md 4 and 7."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from scone_pl import flow
from scone_pl.sampling.guidance import RULES
from scone_pl.sampling.settings import SamplingConfig


def test_timesteps() -> None:
    logits = torch.tensor([-math.inf, 0.0, 2.0])
    assert flow.timesteps_from_logits(logits).tolist() == pytest.approx([0.0, 0.5, 1 / (1 + math.exp(-2))])
    assert flow.timesteps_from_logits(logits, shift=3.0).tolist()[:2] == pytest.approx([0.0, 0.75])


def test_noise_and_velocity() -> None:
    clean, noise = torch.tensor([[2.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 8.0], [3.0, 5.0]])
    noisy = flow.add_noise(clean, noise, torch.tensor([0.25, 0.0]))
    assert noisy.tolist() == [[1.5, 5.0], [1.0, 1.0]]
    assert flow.velocity_target(clean, noise).tolist() == [[-2.0, 4.0], [2.0, 4.0]]


def test_the_release_s_fifty_points_are_forty_nine_steps() -> None:
    grid = flow.time_grid(49, 3.0)
    assert len(grid) == 50
    assert (grid[0].item(), grid[-1].item()) == (1.0, 0.0)
    assert grid[1].item() == pytest.approx(3 * (48 / 49) / (1 + 2 * 48 / 49), rel=1e-6)
    assert bool((grid[1:] < grid[:-1]).all())


def test_euler_steps_along_the_true_velocity_reach_the_image() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 5, 3, generator=generator).double().unbind()
    latents, grid = noise, flow.time_grid(7, 3.0).double()
    for t, t_next in pairwise(grid):
        latents = flow.euler_step(latents, flow.velocity_target(clean, noise), t, t_next)
    torch.testing.assert_close(latents, clean, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("points", "interval", "guided"), [(6, (0.4, 1.0), 3), (11, (0.4, 1.0), 6), (5, (0.0, 1.0), 4)]
)
def test_guidance_leaves_out_the_lower_end_of_its_interval(
    points: int, interval: tuple[float, float], guided: int
) -> None:
    config = SamplingConfig(guidance_interval=interval)
    assert sum(RULES["two_conditions"].guided_at(config, t) for t in flow.time_grid(points - 1, 1.0)[:-1]) == guided
