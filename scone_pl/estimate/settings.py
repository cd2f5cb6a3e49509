"""What an estimate needs of a recipe: its stages as the command line would run them, with or without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scone_pl.checkpoints.folder import read_config
from scone_pl.checkpoints.hub import cached_folder, hub_id
from scone_pl.data.packing import PackingConfig
from scone_pl.errors import UserError
from scone_pl.estimate.state import Plan
from scone_pl.model.bases import PRESETS
from scone_pl.model.config import BridgeConfig, NetworkConfig
from scone_pl.model.lora import LoRAConfig
from scone_pl.model.quantized import Quantization
from scone_pl.training.parts import Part, check_parts, has_parts


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe."""

    name: str
    trained: tuple[Part, ...]
    lora: LoRAConfig | None
    quantization: Quantization | None
    ema: bool
    bridge: BridgeConfig | None
    steps: int
    """Optimizer steps; -1 = until stopped."""
    accumulate: int
    """Packs a rank and step."""
    attention: str
    checkpointing: bool
    recompute_attention: bool
    """Whether checkpointing recomputes attention too."""
    layers_kept: int
    """Layers that are not recomputed with checkpointing."""
    packing: PackingConfig
    autoencoder_dtype: str
    latents: bool
    """Whether training reads latents that were computed before."""
    plan: Plan
    """The recipe's."""
    num_nodes: int


@dataclass(frozen=True)
class Recipe:
    """A recipe's stages and the model that they train."""

    stages: tuple[Stage, ...]
    config: NetworkConfig
    source: str
    """Source of its sizes."""


def recipe_of(stages: Sequence[tuple[str, Any]], preset: str | None = None) -> Recipe:
    """What the parsed settings of a recipe's stages say, without asking for weights or data.

    Args:
        stages: name in the chain, or nothing, and settings of each stage.
        preset: sizes to take, a key of `PRESETS`; None = those of the folder to start from, or else published ones.

    Raises:
        UserError: an unknown preset.
    """
    config, source = _sizes(stages[0][1].model.init_args, preset)
    return Recipe(tuple(_stage(name, settings) for name, settings in stages), config, source)


def _sizes(settings: Any, preset: str | None) -> tuple[NetworkConfig, str]:
    folder: str = settings.init_from
    repository = hub_id(folder)
    cached = Path(folder) if repository is None else cached_folder(repository)
    if preset is None and cached is not None and cached.is_dir():
        return read_config(cached), folder
    if preset is not None and preset not in PRESETS:
        raise UserError(f"--preset {preset}: one of {', '.join(PRESETS)}")
    if preset is None:  # the recipes for a laptop keep everything in a folder of runs
        small = {"mini": "mini", "photos": "mini_photo", "icons": "icons", "icons_large": "icons_large"}
        first = next((small[part] for part in Path(folder).parts if part in small), "bagel_7b")
        # Otherwise the first of about this size that has the parts that train.
        others = sorted(PRESETS, key=lambda name: name.startswith("mini") != first.startswith("mini"))
        preset = next((name for name in (first, *others) if has_parts(settings.trainable, PRESETS[name]())), first)
    config = PRESETS[preset]()
    check_parts(settings.trainable, config)
    return config, f"preset {preset}, as {folder} is not there"


def _stage(name: str, settings: Any) -> Stage:
    model, trainer = settings.model.init_args, settings.trainer
    bridge, lora = model.get("bridge"), model.get("lora")
    num_nodes = int(trainer.num_nodes)
    return Stage(
        name=name or settings.model.class_path.rsplit(".", 1)[-1],
        trained=tuple(model.trainable),
        lora=None if lora is None else LoRAConfig(**lora.as_dict()),
        quantization=model.quantization,
        ema=model.ema.decay > 0,
        bridge=None if bridge is None else BridgeConfig(**bridge.as_dict()),
        steps=trainer.max_steps,
        accumulate=trainer.accumulate_grad_batches,
        attention=model.attention,
        checkpointing=model.activation_checkpointing,
        recompute_attention=model.recompute_attention,
        layers_kept=model.layers_kept,
        packing=PackingConfig.parsed(settings.data.packing),
        autoencoder_dtype=model.autoencoder_dtype,
        latents=settings.data.latents,
        plan=_plan(trainer, model.sharding, _devices(trainer.devices) * num_nodes),
        num_nodes=num_nodes,
    )


def _devices(devices: Any) -> int:
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if str(devices).isdigit() else 1


def _plan(trainer: Any, sharding: Any, ranks: int) -> Plan:
    """The strategy's plan; FSDP2 with nothing to split or cast is none (`sharding.needs_wrapping`)."""
    strategy = str(getattr(trainer.strategy, "class_path", trainer.strategy)).lower()
    sharded = "sharded" in strategy or "modelparallel" in strategy
    if sharded and (ranks > 1 or sharding.compute_dtype != "float32"):
        return Plan(
            "sharded",
            ranks,
            sharding.replicas,
            sharding.compute_dtype,
            sharding.reduce_dtype,
            sharding.reshard_after_forward,
        )
    compute = "bfloat16" if str(trainer.precision) == "bf16-mixed" else "float32"
    return Plan("replicated" if ranks > 1 else "whole", ranks, 1, compute)
