"""Records what the comparisons need of a forward pass or of sampling, beyond its result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scone_pl.model.experts import ByExpert
from scone_pl.model.neo.network import Neo
from scone_pl.sampling import sampler


class Recorded:
    """Layer outputs and layer 0's keys of one pass."""

    def __init__(self, model: Neo) -> None:
        self.layers: list[ByExpert] = []
        self._model = model

    def __enter__(self) -> Recorded:
        layers = self._model.language_model.model.layers
        self._hooks = [layer.register_forward_hook(self._keep) for layer in layers]
        return self

    def _keep(self, layer: nn.Module, inputs: Any, output: ByExpert) -> None:
        self.layers.append(output)

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


class KeepingKeys:
    """An attention plan that attends by a mask and keeps the keys."""

    def __init__(self, mask: Tensor, kept: list[Tensor]) -> None:
        self.mask, self.kept = mask, kept

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        self.kept.append(k)
        return torch.zeros_like(q)


class Passes:
    """Records the velocities of the contexts in each step, before guidance."""

    def __init__(self) -> None:
        self.velocities: list[list[Tensor]] = []

    def __enter__(self) -> Passes:
        self._original = original = sampler.Targets.velocity

        def velocity(targets: sampler.Targets, latents: Tensor, t: float) -> list[Tensor]:
            velocities = original(targets, latents, t)
            self.velocities.append(velocities)
            return velocities

        sampler.Targets.velocity = velocity  # type: ignore[method-assign, assignment]  # patched to record
        return self

    def __exit__(self, *_: object) -> None:
        sampler.Targets.velocity = self._original  # type: ignore[method-assign]  # patched to record
