"""The settings of a stage, as recipes have them under `model.init_args`."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from scone_pl.checkpoints.adapters import AdapterConfig
from scone_pl.errors import UserError
from scone_pl.model.config import BridgeConfig
from scone_pl.model.lora import LoRAConfig
from scone_pl.model.quantized import Quantization
from scone_pl.ranges import check_number, check_whole
from scone_pl.sampling.settings import MAX_SHIFT, SamplingConfig
from scone_pl.training.ema import EMAConfig
from scone_pl.training.losses import AlignmentConfig
from scone_pl.training.optimizer import OptimizerConfig
from scone_pl.training.parts import Part
from scone_pl.training.sharding import ShardingConfig


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """What a stage starts from, trains and computes with.

    Args:
        init_from: Checkpoint folder in the published layout to start from.
        trainable: Parts that train; all others are frozen.
        bridge: The understanding bridge; null = no mask.
        optimizer: AdamW settings.
        timestep_shift: Shift of the training noise levels (docs/specification.md 4: 1).
        text_loss_weight: Weight of the cross-entropy on labelled text, the samples' answers.
        alignment: Optional supervision of the bridge's similarity.
        attention: Attention backend: split (any device), varlen (CUDA in bfloat16, the fastest there) or flex (CUDA).
        compile: Compile norms and elementwise operations into one kernel each; null = on CUDA.
        autoencoder_dtype: Precision of the autoencoder; bfloat16 encodes in two thirds of the time on an H100, and
            changes latents by 2.6 % there (docs/performance.md).
        activation_checkpointing: Recompute each decoder layer in the backward pass to save memory.
        recompute_attention: Recompute attention with its layer; false keeps its output (a hidden state a layer).
        layers_kept: The last N decoder layers are not recomputed, where memory is left: less time.
        nonfinite_gradient: If a step's gradient is non-finite: stop, naming step and samples, or skip that step.
        sharding: FSDP2 settings, used by trainer.strategy fully_sharded.
        lora: Train low-rank adapters of the trainable experts instead of their weights, for few GPUs; null = off.
            The exported weights have them merged in.
        quantization: Decoder layers' weights in int8 or nf4 (QLoRA; pip install bitsandbytes), each rank with all of
            them; everything else as without. Trains with `lora` only; the export is merged into the original weights.
        ema: Moving average of the weights that train (needs trainer.strategy fully_sharded).
        sampling: How previews and predictions are sampled. The noise of a prediction depends on the seed, the round
            and the sample's key alone; with a target, the target's size counts.
        mask_sampling: Apply `bridge` while sampling too (the release samples without).
        adapters: LoRA adapters to merge into the weights for predict, validate and test; training continues one with
            `lora` only.
        sampling_round: Number of the round, where a benchmark asks for several; give each its own output_dir.
    """

    init_from: str
    trainable: Sequence[Part]
    bridge: BridgeConfig | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    timestep_shift: float = 1.0
    text_loss_weight: float = 1.0
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    attention: Literal["split", "varlen", "flex"] = "split"
    compile: bool | None = None
    autoencoder_dtype: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = True
    recompute_attention: bool = True
    layers_kept: int = 0
    nonfinite_gradient: Literal["stop", "skip"] = "stop"
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    lora: LoRAConfig | None = None
    quantization: Quantization | None = None
    ema: EMAConfig = field(default_factory=EMAConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    mask_sampling: bool = False
    sampling_round: int = 0
    adapters: Sequence[AdapterConfig] = ()

    def __post_init__(self) -> None:
        """Raises `UserError` for numbers out of their range, and for settings that contradict each other."""
        check_number("model.timestep_shift", self.timestep_shift, above=0, maximum=MAX_SHIFT)
        check_number("model.text_loss_weight", self.text_loss_weight, minimum=0, maximum=1e6)
        check_whole("model.layers_kept", self.layers_kept)
        check_whole("model.sampling_round", self.sampling_round)
        if not self.trainable:
            raise UserError("model.trainable names no part; give at least one, such as understanding")
        if self.alignment.weight and self.bridge is None:
            raise UserError(
                "model.alignment.weight needs model.bridge (with apply_mask: false where nothing is hidden)"
            )
        if self.alignment.weight and self.bridge is not None and self.bridge.oracle:
            raise UserError("model.alignment trains a similarity, which bridge.oracle replaces; leave one of them out")
        if self.mask_sampling and self.bridge is None:
            raise UserError(
                "model.mask_sampling applies model.bridge, which is null; set the bridge, or mask_sampling false"
            )
        if self.mask_sampling and self.sampling.bridge is not None:
            raise UserError(
                "model.mask_sampling applies model.bridge in place of model.sampling.bridge; give one of them"
            )
        if self.mask_sampling and self.sampling.attention_rebalancing is not None:
            raise UserError(
                "model.mask_sampling and model.sampling.attention_rebalancing both steer what a target sees of "
                "references; leave one of them out"
            )
        if self.lora is not None and not {"understanding", "generation"} & set(self.trainable):
            raise UserError(
                "model.lora adapts experts, but model.trainable names none; add one, or set model.lora to null"
            )
        if not self.ema.export and not self.ema.decay:
            raise UserError("model.ema.export chooses between weights and their average; it needs model.ema.decay")
        if self.layers_kept and not self.activation_checkpointing:
            raise UserError("model.layers_kept leaves layers out of model.activation_checkpointing, which is false")
        if self.activation_checkpointing and not self.recompute_attention and self.attention == "flex":
            raise UserError(
                "model.recompute_attention is false, but flex cannot keep attention; set it to true, or "
                "model.attention to varlen or split"
            )
        if self.sampling.seed is None:
            raise UserError("model.sampling.seed is null; previews and predictions must be repeatable, give a number")

    def check_trains(self) -> None:
        """Raises `UserError` if experts would train whose weights are quantised."""
        if (
            self.quantization is not None
            and self.lora is None
            and {"understanding", "generation"} & set(self.trainable)
        ):
            raise UserError(
                f"model.quantization {self.quantization}: quantised weights do not train; add model.init_args.lora "
                "{rank: 16}, or set it to null"
            )

    @property
    def effective_sampling(self) -> SamplingConfig:
        """`sampling`, with `bridge` applied if `mask_sampling`."""
        return dataclasses.replace(self.sampling, bridge=self.bridge if self.mask_sampling else self.sampling.bridge)

    @classmethod
    def signature(cls, defaults: Mapping[str, Any]) -> inspect.Signature:
        """Signature of a constructor that takes all settings as arguments, with a stage's own defaults."""
        types = typing.get_type_hints(cls)
        parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        for entry in dataclasses.fields(cls):
            default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
            default = defaults.get(entry.name, default)
            parameters.append(
                inspect.Parameter(
                    entry.name,
                    inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=inspect.Parameter.empty if default is dataclasses.MISSING else default,
                    annotation=types[entry.name],
                )
            )
        return inspect.Signature(parameters)
