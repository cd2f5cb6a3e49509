"""The optimizer of all stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from scone_pl.ranges import check_number, check_whole


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up to a constant rate (docs/specification.md 6), which may fall at the end."""

    lr: float = 2e-5
    """Learning rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the moment estimates."""
    eps: float = 1e-15
    """Added to the denominator."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    warmup_steps: int = 2000
    """Steps from 0 to `lr`. The release's 2000 means that a 1000-step stage never reaches `lr`; kept as its default."""
    decay_steps: int = 0
    """Beyond the paper: last steps of the run, over which the rate falls linearly to 0; 0 = constant to the end."""

    def __post_init__(self) -> None:
        check_number("model.optimizer.lr", self.lr, minimum=0, maximum=1e30)
        for i, beta in enumerate(self.betas):
            check_number(f"model.optimizer.betas[{i}]", beta, minimum=0, below=1)
        check_number("model.optimizer.eps", self.eps, minimum=0, maximum=1)
        check_number("model.optimizer.weight_decay", self.weight_decay, minimum=0, maximum=1e4)
        check_whole("model.optimizer.warmup_steps", self.warmup_steps)
        check_whole("model.optimizer.decay_steps", self.decay_steps)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
        """AdamW over `parameters`, at its full rate."""
        return torch.optim.AdamW(
            list(parameters), lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True
        )

    def rate_factor(self, step: int, max_steps: int) -> float:
        """What `lr` is multiplied by in step number `step`, from 0, of `max_steps`."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        return warm * min(1.0, max(max_steps - step, 0) / self.decay_steps) if self.decay_steps else warm
