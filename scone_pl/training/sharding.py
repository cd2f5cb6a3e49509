"""FSDP2 sharding of the network, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from scone_pl.model.scone import Scone


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """How parameters are sharded and in which precision they compute."""

    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of parameters and activations in forward and backward; master weights keep the trainer's precision."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which gradients are reduced over ranks."""
    reshard_after_forward: bool = True
    """Free a layer's gathered weights after its forward pass and gather them again for the backward."""


class FullySharded(ModelParallelStrategy):
    """Lightning's FSDP2 strategy over all devices: its own default would split tensors instead of data."""

    def __init__(self, **kwargs: Any) -> None:
        """Arguments: see `ModelParallelStrategy`; the sizes of its mesh follow from the devices."""
        super().__init__(**kwargs)

    def setup_environment(self) -> None:
        """Every device of every node is a data-parallel rank."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()


def shard(model: Scone, mesh: DeviceMesh, config: ShardingConfig) -> None:
    """Shards every decoder and ViT layer, then the rest, over the mesh's data-parallel axis, in place.

    The autoencoder stays whole: it is small, frozen, and runs outside of the model's forward.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    # Inputs stay as they are: a cast would rebuild the whole pack and round its timesteps; the model casts by itself.
    policy = MixedPrecisionPolicy(
        param_dtype=dtypes[config.compute_dtype], reduce_dtype=dtypes[config.reduce_dtype], cast_forward_inputs=False
    )
    data_mesh = mesh["data_parallel"]
    for layer in (*model.language_model.model.layers, *model.vit_model.vision_model.encoder.layers):
        fully_shard(layer, mesh=data_mesh, mp_policy=policy, reshard_after_forward=config.reshard_after_forward)
    model.runs_towers_always = True
    fully_shard(model, mesh=data_mesh, mp_policy=policy, ignored_params=set(model.autoencoder.parameters()))


def is_sharded(model: Scone) -> bool:
    """Whether each rank holds only a part of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
