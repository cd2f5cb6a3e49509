"""Fewer passes through the network: between computed steps the velocity is extrapolated over t.

The idea of TaylorSeer, which the release offers too: along a sampling path the network's output changes smoothly, so
finite differences of what was computed last predict what comes next. Here it is the guided velocity (one tensor of the
size of the latents, no features of layers), and the differences are divided by distances in t, because the steps of a
shifted time grid are not equally long: the polynomial through the last `order + 1` computed velocities.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scone_pl.sampling.settings import StepCacheConfig


class StepCache:
    """The computed velocities of one sampling run."""

    def __init__(self, config: StepCacheConfig, num_steps: int) -> None:
        self.config = config
        self.num_steps = num_steps
        self._known: list[tuple[float, Tensor]] = []
        """Newest last: t, velocity."""
        self._guided: bool | None = None

    def guess(self, step: int, t: float, *, guided: bool) -> Tensor | None:
        """The velocity of step number `step`, or None: compute it, and tell `computed`.

        Args:
            step: number of the step.
            t: its time.
            guided: whether guidance acts in it; where that changes, velocities jump, and what was known is void.
        """
        if guided != self._guided:
            self._known, self._guided = [], guided
        if not self._known or step % self.config.interval == 0 or step == self.num_steps - 1:
            return None
        return extrapolate(self._known, t)

    def computed(self, t: float, velocity: Tensor) -> None:
        """Notes a computed velocity."""
        self._known = [*self._known, (t, velocity)][-(self.config.order + 1) :]


def extrapolate(known: list[tuple[float, Tensor]], t: float) -> Tensor:
    """Value at `t` of the polynomial through the points `known` (Lagrange's form)."""
    value = torch.zeros_like(known[0][1])
    for i, (t_i, velocity) in enumerate(known):
        weight = 1.0
        for j, (t_j, _) in enumerate(known):
            if i != j:
                weight *= (t - t_j) / (t_i - t_j)
        value = value + weight * velocity
    return value
