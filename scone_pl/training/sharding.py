"""FSDP2 sharding of the network, layer by layer, and the strategy that trains and saves it so."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from scone_pl.dtypes import DTYPES
from scone_pl.errors import UserError
from scone_pl.messages import warn
from scone_pl.model.network import Network
from scone_pl.ranges import check_whole
from scone_pl.training.snapshots import SnapshotReader, SnapshotWriter, read_run, read_tensors

TORCH = torch.__version__
LEAKING = re.compile(r"2\.1[0-2]\.")
"""Versions of torch whose FSDP2 leaks memory with AdamW; pyproject.toml excludes them."""


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """How parameters are sharded and in which precision they compute."""

    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of parameters and activations in forward and backward, and of frozen weights in memory; weights that
    train are kept in float32."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which gradients are reduced over ranks."""
    reshard_after_forward: bool = True
    """Free a layer's gathered weights after its forward pass and gather them again for the backward."""
    replicas: int = 1
    """Hybrid sharding: copies of the sharded model, such as the number of nodes, so that weights are gathered within
    a node and only gradients cross nodes. 1 = sharded over all ranks."""

    def __post_init__(self) -> None:
        check_whole("model.sharding.replicas", self.replicas, minimum=1)


class FullySharded(ModelParallelStrategy):
    """Every device of every node is a data-parallel rank that holds a part of the model (FSDP2).

    With one device nothing is split, so the same recipes run everywhere. Saves snapshots (`snapshots.py`): only what
    trains, every rank its own part, in the background.
    """

    _writer: SnapshotWriter

    def __init__(self, **kwargs: Any) -> None:
        """Arguments: see `ModelParallelStrategy`; the sizes of its mesh follow from the devices."""
        super().__init__(**kwargs)

    def setup_environment(self) -> None:
        check_launcher(self.num_nodes, self.cluster_environment)
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()
        self._writer = SnapshotWriter()

    def setup(self, trainer: pl.Trainer) -> None:
        """Warns before training on a torch that leaks; otherwise as Lightning does."""
        if trainer.state.fn == TrainerFn.FITTING and LEAKING.match(TORCH):
            warn(f"torch {TORCH} leaks memory at each step with FSDP2 and AdamW; use 2.9 or earlier, or 2.13 or later")
        super().setup(trainer)

    @property
    def _network(self) -> Network:
        assert self.lightning_module is not None
        network = self.lightning_module.model
        assert isinstance(network, Network)
        return network

    def _average(self) -> dict[str, Any]:
        """The EMA's section of a snapshot, if there is one."""
        average = getattr(self.lightning_module, "ema", None)
        return {} if average is None else {"ema": average.average}

    # ------------------------------------------------------------------ saving
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights that train, by their published names, sharded."""
        reshard(self._network)
        return {name: p.detach() for name, p in self._network.named_parameters() if p.requires_grad}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """By the names of the weights, sharded, so that it fits any number of ranks."""
        inner = getattr(optimizer, "_optimizer", optimizer)
        reshard(self._network)
        return get_optimizer_state_dict(self._network, inner)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Begins a snapshot once the previous one is written; see `SnapshotWriter.write`."""
        self._writer.wait()
        tensors = {"model": checkpoint.pop("state_dict"), **self._average()}
        for i, state in enumerate(checkpoint.pop("optimizer_states", [])):
            tensors[f"optimizer_{i}"] = state
        self._writer.write(tensors, checkpoint, Path(self.broadcast(filepath)))

    def wait_for_snapshot(self) -> bool:
        """See `SnapshotWriter.wait`."""
        return self._writer.wait()

    # ------------------------------------------------------------------ loading
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Fills weights and optimizer in place from a snapshot; returns its other state.

        What is evaluated is what the run would export: with EMA, the average.

        Raises:
            UserError: it is damaged, or its names or shapes are not those of what trains here.
        """
        path = Path(self.broadcast(checkpoint_path))
        run = read_run(path)
        if getattr(self.lightning_module, "evaluates_average", False):
            if not SnapshotReader(path).shapes("ema"):
                raise UserError(f"{path}: holds no average; evaluate its weights with --model.init_args.ema.decay 0")
            read_tensors(path, {"ema": self.lightning_module_state_dict()}, "ema")
            rank_zero_info(f"{path}: its average is evaluated (model.ema), as the run would export it")
            return run
        tensors: dict[str, Any] = {"model": self.lightning_module_state_dict(), **self._average()}
        for i, optimizer in enumerate(self.optimizers):
            tensors[f"optimizer_{i}"] = self.optimizer_state(optimizer)
        read_tensors(path, tensors, "model")
        for i, optimizer in enumerate(self.optimizers):
            set_optimizer_state_dict(self._network, optimizer, optim_state_dict=tensors[f"optimizer_{i}"])
            if not optimizer.state:
                raise UserError(f"{path}: holds no state of the optimizer; move it aside to resume from the one before")
        return run

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Nothing: `load_checkpoint` has done it."""


def check_launcher(num_nodes: int, environment: ClusterEnvironment | None) -> None:
    """Raises `UserError` if several machines were asked for, but nothing says which of them this is."""
    if num_nodes > 1 and isinstance(environment, LightningEnvironment) and "NODE_RANK" not in os.environ:
        raise UserError(
            f"trainer.num_nodes {num_nodes}: this process would wait for the other machines for ever; start it on each "
            "of them by srun or torchrun (docs/distributed.md), or set MASTER_ADDR, MASTER_PORT and NODE_RANK"
        )


# Makes `fully_sharded` a name for recipes and --trainer.strategy.
StrategyRegistry.register("fully_sharded", FullySharded, description="FSDP2 over all devices, resumable on any number")


def check_sharding(config: ShardingConfig, trainer: pl.Trainer) -> None:
    """Refuses sharding settings that this trainer would not obey.

    Raises:
        UserError: naming the key.
    """
    ranks = trainer.world_size
    if ranks % config.replicas:
        raise UserError(f"model.sharding.replicas is {config.replicas}, which does not divide the {ranks} ranks")
    if isinstance(trainer.strategy, FullySharded):
        return
    default = ShardingConfig()
    for name in ("replicas", "reduce_dtype", "reshard_after_forward"):
        if getattr(config, name) != getattr(default, name):
            raise UserError(f"model.sharding.{name}: needs trainer.strategy fully_sharded")
    if config.compute_dtype == "bfloat16" and trainer.precision != "bf16-mixed":
        warn(
            f"model.sharding.compute_dtype bfloat16 needs trainer.strategy fully_sharded; trainer.precision is "
            f"{trainer.precision}, so that is what this run computes in"
        )


def needs_wrapping(mesh: DeviceMesh, config: ShardingConfig) -> bool:
    """Whether FSDP has anything to do: to split, or to compute in another precision than that of the weights."""
    return mesh["data_parallel"].size() > 1 or config.compute_dtype != "float32"


def freeze_dtype(model: Network, config: ShardingConfig) -> None:
    """Keeps frozen weights in the precision that they compute in anyway, so nothing but memory changes.

    The autoencoder stays as it is: it runs outside of what FSDP casts.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and not name.startswith("autoencoder."):
            parameter.data = parameter.data.to(DTYPES[config.compute_dtype])


def shard(model: Network, mesh: DeviceMesh, config: ShardingConfig) -> None:
    """Shards every decoder (and ViT) layer, the token embedding, the language head, then the rest, in place.

    Each is gathered by itself and over the mesh's data-parallel axis. The rest stays gathered for a whole step, so the
    two matrices of the vocabulary (0.54 B weights each at 7B) are no part of it.
    The autoencoder stays whole: it is small, frozen, and runs outside of the model's forward.

    Raises:
        UserError: `config.replicas` does not divide the number of ranks.
    """
    # Inputs stay as they are: a cast would rebuild the whole pack and round its timesteps; the model casts by itself.
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[config.compute_dtype], reduce_dtype=DTYPES[config.reduce_dtype], cast_forward_inputs=False
    )
    axes = _data_mesh(mesh, config.replicas)
    language = model.language_model
    for unit in (*model.layers_to_shard, language.model.embed_tokens, language.lm_head):
        fully_shard(unit, mesh=axes, mp_policy=policy, reshard_after_forward=config.reshard_after_forward)
    model.runs_towers_always = True
    fully_shard(model, mesh=axes, mp_policy=policy, ignored_params=set(model.autoencoder.parameters()))


def _data_mesh(mesh: DeviceMesh, replicas: int) -> DeviceMesh:
    """One axis to shard over, or two: copies, and parts of a copy."""
    ranks = mesh["data_parallel"].size()
    if ranks % replicas:
        raise UserError(f"model.sharding.replicas is {replicas}, which does not divide the {ranks} ranks")
    if replicas == 1:
        return mesh["data_parallel"]
    return init_device_mesh(mesh.device_type, (replicas, ranks // replicas), mesh_dim_names=("replica", "part"))


def reshard(model: Network) -> None:
    """Reshards all modules: frees gathered weights, so that the model's parameters are its shards again.

    FSDP leaves the outermost ones gathered after a forward pass that no backward follows: a validation, a preview.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(model: Network) -> bool:
    """Whether each rank holds only a part of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
