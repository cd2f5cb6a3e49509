"""A linear map with any number of LoRA adapters that can be weighted, switched and fused, for sampling.

Training has one adapter whose parameters train (`lora.py`); here adapters are constants.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scone_pl.model.lora import merged
from scone_pl.model.quantized import QuantizableLinear


class AdaptedLinear(QuantizableLinear):
    """A linear map plus weighted adapters; keeps the map's own parameters under their names.

    Adapters are buffers that follow `to`, and are not part of the state dict.
    """

    def __init__(self, base: nn.Linear) -> None:
        """`base`: its weights are taken over, not copied."""
        super().__init__(base)
        self.factors: dict[str, float] = {}
        """Adapter -> factor of its product, without the weight that a user gives it."""
        self.active: dict[str, float] = {}
        """Adapter -> factor with that weight; others do not act."""
        self._unfused: Tensor | None = None
        """The weight before `fuse`, on the CPU."""

    @property
    def is_unfused(self) -> bool:
        """Whether adapters act beside the weight."""
        return self._unfused is None

    def add(self, name: str, a: Tensor, b: Tensor, factor: float, dtype: torch.dtype) -> None:
        """Adds an adapter, which does not act yet; `a` is (rank, in), `b` (out, rank), `dtype` that of the model."""
        for part, tensor in (("A", a), ("B", b)):
            self.register_buffer(f"adapter_{part}_{name}", tensor.to(self.device, dtype), persistent=False)
        self.factors[name] = factor

    def remove(self, name: str) -> None:
        """Removes an adapter, if it has it."""
        if name in self.factors:
            del self.factors[name]
            self.active.pop(name, None)
            delattr(self, f"adapter_A_{name}")
            delattr(self, f"adapter_B_{name}")

    def activate(self, weights: Mapping[str, float]) -> None:
        """Lets the adapters among `weights` act, each times its weight, and no others."""
        self.active = {name: weights[name] * factor for name, factor in self.factors.items() if name in weights}

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = self.product(x)
        if self._unfused is None:
            for name, factor in self.active.items():
                a, b = getattr(self, f"adapter_A_{name}"), getattr(self, f"adapter_B_{name}")
                y = y + factor * F.linear(F.linear(x, a), b)
        return y

    @torch.no_grad()
    def fuse(self, weights: Mapping[str, float]) -> None:
        """Adds the product of each adapter among `weights` to the weight, whose copy is kept on the CPU."""
        chosen = {name: weights[name] * factor for name, factor in self.factors.items() if name in weights}
        self._unfused = self.weight.detach().to("cpu", copy=True)
        whole = self.weight.float()
        for name, factor in chosen.items():
            a, b = getattr(self, f"adapter_A_{name}"), getattr(self, f"adapter_B_{name}")
            whole = merged(whole, a, b, factor)
        self.weight.copy_(whole)

    @torch.no_grad()
    def unfuse(self) -> None:
        """Restores the weight bit by bit."""
        if self._unfused is not None:
            self.weight.copy_(self._unfused)
            self._unfused = None

    def plain(self) -> nn.Linear:
        """The linear map without adapters; a fused weight stays fused."""
        if self.quantization is not None:
            return QuantizableLinear(self)
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear
