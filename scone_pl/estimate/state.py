"""Persistent memory of a rank: weights, gradients, optimizer state, buffers; exact."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from scone_pl.model.config import NetworkConfig
from scone_pl.model.embeddings import PositionTable
from scone_pl.model.lora import LoRAConfig
from scone_pl.model.quantized import Quantization, quantized_weights, weight_shapes
from scone_pl.training.network import network_on_meta
from scone_pl.training.parts import Part, part_of

MASTER_BYTES = 4
"""Of a weight that trains, its gradient, and either moment of AdamW: float32."""
SIZES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Plan:
    """How the model is distributed over the ranks."""

    kind: str
    """`sharded` (FSDP2), `replicated` (DDP) or `whole` (one device)."""
    ranks: int = 1
    replicas: int = 1
    """Copies of the sharded model (hybrid sharding)."""
    compute: str = "bfloat16"
    """Precision of forward and backward."""
    reduce: str = "float32"
    """Precision in which gradients are reduced."""
    reshard: bool = True
    """Whether a layer's gathered weights are freed after its forward."""

    @property
    def parts(self) -> int:
        """Ranks that share one copy."""
        return self.ranks // self.replicas if self.kind == "sharded" else 1

    @property
    def name(self) -> str:
        if self.kind != "sharded" or self.ranks == 1:
            return "whole" if self.ranks == 1 else "replicated (DDP)"
        return "full shard" if self.replicas == 1 else f"{self.replicas} x {self.parts} hybrid"


@dataclass(frozen=True)
class Unit:
    """Parameters that are gathered together under FSDP2."""

    weights: int
    trained: int


@dataclass(frozen=True)
class RankState:
    """Bytes of the first rank, whose shards are the largest."""

    weights: int
    """Shards: float32 where they train, else in the precision they compute in; quantised ones in full; without the
    autoencoder."""
    autoencoder: int
    """Whole on every rank."""
    gradients: int
    optimizer: int
    """AdamW's two moments."""
    ema: int
    """The average of the weights that train."""
    buffers: int
    """Position tables."""
    trained: int
    """Elements of this rank that train."""

    @property
    def total(self) -> int:
        return self.weights + self.autoencoder + self.gradients + self.optimizer + self.ema + self.buffers


@dataclass(frozen=True)
class Network:
    """The parameters of a network as a stage trains it, by name, without their values."""

    shapes: dict[str, tuple[int, ...]]
    trains: frozenset[str]
    buffers: int
    """Elements of the position tables."""
    quantized: dict[str, int]
    """Bytes of each quantised weight, which every rank holds in full."""

    @classmethod
    def of(
        cls,
        config: NetworkConfig,
        trained: Collection[Part],
        lora: LoRAConfig | None = None,
        quantization: Quantization | None = None,
    ) -> Network:
        """Built on the meta device; with `lora` only adapters of the experts train."""
        model = network_on_meta(config, trained, lora, quantization=quantization)
        tables = [m for m in model.modules() if isinstance(m, PositionTable)]
        return cls(
            shapes={name: tuple(shape) for name, shape in weight_shapes(model).items()},
            trains=frozenset(name for name, p in model.named_parameters() if p.requires_grad),
            buffers=sum(b.numel() for table in tables for b in table.buffers()),
            quantized={name: m.codes.nbytes + m.scales.nbytes for name, m in quantized_weights(model)},
        )

    def count(self, *, trained: bool = False) -> dict[Part, int]:
        """Parameters of each part, or those of them that train."""
        counts: dict[Part, int] = {}
        for name, shape in self.shapes.items():
            if name in self.trains or not trained:
                counts[part_of(name)] = counts.get(part_of(name), 0) + math.prod(shape)
        return counts

    def state(self, plan: Plan, *, ema: bool = False, autoencoder_dtype: str = "float32") -> RankState:
        """What a rank holds, with an average of the weights that train if `ema`."""
        # FSDP2 casts what computes, so frozen weights are kept that small (`training.sharding.freeze_dtype`).
        frozen = SIZES[plan.compute] if plan.kind == "sharded" else MASTER_BYTES
        weights = autoencoder = own = 0
        for name, shape in self.shapes.items():
            if name.startswith("autoencoder."):
                autoencoder += math.prod(shape) * SIZES[autoencoder_dtype]
                continue
            if name in self.quantized:
                weights += self.quantized[name]
                continue
            size = -(-shape[0] // plan.parts) * math.prod(shape[1:])  # split along the first axis
            trains = name in self.trains
            weights += size * (MASTER_BYTES if trains else frozen)
            own += size * trains
        return RankState(
            weights=weights,
            autoencoder=autoencoder,
            gradients=own * MASTER_BYTES,
            optimizer=2 * own * MASTER_BYTES,
            ema=own * MASTER_BYTES * ema,
            buffers=self.buffers * MASTER_BYTES,
            trained=own,
        )

    def units(self) -> tuple[Unit, Unit, Unit]:
        """What `training.sharding.shard` gathers together: a decoder layer, a matrix of the vocabulary (token embedding
        and language head are of one size), and all else.
        """
        layer, vocabulary, root = [0, 0], [0, 0], [0, 0]
        for name, shape in self.shapes.items():
            in_layer = ".layers." in name
            counted_elsewhere = name in self.quantized or name.startswith("autoencoder.") or "encoder.layers" in name
            embeds = name.endswith("model.embed_tokens.weight")
            if counted_elsewhere or embeds or (in_layer and ".layers.0." not in name):
                continue
            unit = layer if in_layer else vocabulary if name.startswith("language_model.lm_head.") else root
            unit[0] += math.prod(shape)
            unit[1] += math.prod(shape) * (name in self.trains)
        return Unit(*layer), Unit(*vocabulary), Unit(*root)
