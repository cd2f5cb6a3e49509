"""Exponential moving average of the weights that train, on each rank's own shards: nothing is gathered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scone_pl.ranges import check_number
from scone_pl.training.gradients import local_shard


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Whether and how weights are averaged. Scone trains without (docs/specification.md 6: memory)."""

    decay: float = 0.0
    """Average <- decay * average + (1 - decay) * weights after each optimizer step; 0 = off."""
    export: bool = True
    """The stage's result, and so the next stage's start, is the average; false = the weights themselves."""

    def __post_init__(self) -> None:
        check_number("model.ema.decay", self.decay, minimum=0, below=1)


class EMA:
    """The average, by the names of the weights."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        """Starts as a copy of the parameters that train, sharded as they are."""
        self.decay = decay
        self._live = {name: p for name, p in parameters if p.requires_grad}
        self.average: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After an optimizer step."""
        averages = [local_shard(self.average[name]) for name in self._live]
        torch._foreach_lerp_(averages, [local_shard(p) for p in self._live.values()], 1 - self.decay)
