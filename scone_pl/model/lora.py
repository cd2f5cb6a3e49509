"""LoRA (arXiv 2106.09685): a frozen linear map plus a trained one of low rank, W x + (alpha / rank) B A x.

Names are peft's: `q_proj.lora_A.weight` of (rank, in) and `q_proj.lora_B.weight` of (out, rank) beside the published
`q_proj.weight`. B starts at zero, so the network is unchanged at first.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from scone_pl.errors import UserError
from scone_pl.model.experts import is_generation_parameter, without_mark
from scone_pl.model.quantized import QuantizableLinear
from scone_pl.ranges import check_number, check_whole

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MARK = ".lora_"
"""Part of the names of all adapter parameters."""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters in place of training an expert's weights."""

    rank: int = 16
    """LoRA rank."""
    alpha: float = 32.0
    """Adapter outputs are scaled by alpha / rank."""
    targets: tuple[Target, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Projections with an adapter, in every decoder layer."""

    def __post_init__(self) -> None:
        check_whole("lora.rank", self.rank, minimum=1, maximum=4096)
        check_number("lora.alpha", self.alpha, above=0, maximum=1e6)
        if not self.targets:
            raise UserError("lora.targets is empty; name at least one projection, or set lora to null")

    @property
    def scale(self) -> float:
        """Factor of an adapter's output."""
        return self.alpha / self.rank


class LoRALinear(QuantizableLinear):
    """A linear map with an adapter; keeps the map's own parameters under their names."""

    def __init__(self, base: nn.Linear, config: LoRAConfig) -> None:
        """`base`: its weights are taken over, not copied."""
        super().__init__(base)
        device, dtype = base.weight.device, base.weight.dtype
        self.lora_A = nn.Linear(base.in_features, config.rank, bias=False, device=device, dtype=dtype)
        self.lora_B = nn.Linear(config.rank, base.out_features, bias=False, device=device, dtype=dtype)
        self.scale = config.scale

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.product(x) + self.scale * self.lora_B(self.lora_A(x))


def add_lora(decoder_layers: nn.ModuleList, config: LoRAConfig, experts: Collection[str]) -> None:
    """Puts adapters into the projections of `experts` (understanding, generation), in place.

    Without separate experts a projection belongs to both, and gets one adapter.
    """
    for layer in decoder_layers:
        linears = [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
        separate = any(is_generation_parameter(name) for name, _ in linears)
        for name, module in linears:
            expert = "generation" if is_generation_parameter(name) else "understanding"
            adapted = expert in experts or (not separate and "generation" in experts)
            path, _, own = name.rpartition(".")
            if adapted and without_mark(own) in config.targets:
                setattr(layer.get_submodule(path), own, LoRALinear(module, config))


def is_lora_parameter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return MARK in name


def initial_weights(model: nn.Module, seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, parameter and first value (whole, on the CPU) of each adapter's parameter.

    A is uniform as in a fresh linear map, B zero. A value depends on the seed and its name alone, so all ranks agree.
    """
    for name, parameter in model.named_parameters():
        if not is_lora_parameter(name):
            continue
        value = torch.zeros(parameter.shape)
        if name.endswith("lora_A.weight"):
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
            nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
        yield name, parameter, value


def merged(base: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The weight of map and adapter together, in float32: base + scale * b a."""
    return torch.addmm(base.float(), b.float(), a.float(), alpha=scale)
