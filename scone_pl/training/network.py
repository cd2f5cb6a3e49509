"""The network of a stage: which parts train, how it computes, and how its weights are loaded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh

from scone_pl.checkpoints.folder import read_config
from scone_pl.checkpoints.model import load_weights
from scone_pl.checkpoints.tensor_files import copy_part
from scone_pl.data.seeding import seed_of
from scone_pl.dtypes import DTYPES
from scone_pl.errors import UserError
from scone_pl.model.compiled import set_compiled
from scone_pl.model.config import NetworkConfig
from scone_pl.model.lora import LoRAConfig, add_lora, initial_weights
from scone_pl.model.network import Network
from scone_pl.model.quantized import Quantization, check_quantization, quantize_layers
from scone_pl.training.heap import trim_heap_before
from scone_pl.training.parts import Part, set_trainable
from scone_pl.training.settings import StageSettings
from scone_pl.training.sharding import freeze_dtype, needs_wrapping, shard


def network_on_meta(
    config: NetworkConfig,
    trainable: Collection[Part],
    lora: LoRAConfig | None = None,
    dtype: torch.dtype | None = None,
    quantization: Quantization | None = None,
) -> Network:
    """The network without memory for its weights, all parts but `trainable` frozen.

    Args:
        config: sizes.
        trainable: parts that train.
        lora: low-rank adapters that train instead of the experts' weights.
        dtype: of the weights; None = torch's default.
        quantization: of the decoder layers' weights.

    Raises:
        UserError: see `check_quantization`.
    """
    with torch.device("meta"):
        model = config.build().to(dtype or torch.get_default_dtype())
        if lora is not None:
            add_lora(model.language_model.model.layers, lora, trainable)
        if quantization is not None:
            quantize_layers(model.language_model.model.layers, quantization)
    set_trainable(model, trainable, lora=lora is not None)
    return model


@dataclass(frozen=True)
class StageNetwork:
    """The network that a stage trains, not built yet."""

    folder: Path
    """Checkpoint folder with its starting weights."""
    config: NetworkConfig
    """Read from `folder`."""
    settings: StageSettings

    @classmethod
    def open(cls, folder: Path, settings: StageSettings) -> StageNetwork:
        """Reads the configuration in `folder` and checks the settings that refer to decoder layers.

        Raises:
            UserError: naming a layer or a number of layers that the decoder does not have.
        """
        check_quantization(settings.quantization)
        config = read_config(folder)
        layers, bridge = config.decoder.num_layers, settings.bridge
        if bridge is not None and bridge.last_masked_layer > layers - 1:
            raise UserError(
                f"model.bridge.last_masked_layer is {bridge.last_masked_layer}, but the last decoder layer of "
                f"{folder} is {layers - 1}"
            )
        if not 0 <= settings.layers_kept <= layers:
            raise UserError(f"model.layers_kept is {settings.layers_kept}, but {folder} has {layers} decoder layers")
        return cls(folder, config, settings)

    def on_meta(self) -> Network:
        """The network without memory for its weights, with all but the trainable parts frozen."""
        settings = self.settings
        model = network_on_meta(self.config, settings.trainable, settings.lora, quantization=settings.quantization)
        model.attention = settings.attention
        if settings.autoencoder_dtype != "float32":  # else trainer.precision decides
            model.autoencoder.to(DTYPES[settings.autoencoder_dtype])
        decoder = model.language_model.model
        decoder.activation_checkpointing = settings.activation_checkpointing
        decoder.recompute_attention = settings.recompute_attention
        decoder.layers_kept = settings.layers_kept
        return model

    def build(self, device: torch.device, mesh: DeviceMesh | None) -> tuple[Network, str]:
        """Builds on the meta device, freezes, shards over `mesh`, and only then reads this rank's weights.

        Returns:
            The network, and a line on how many tensors came from which files.

        Raises:
            UserError: a setting that `device` does not support, or unusable weights.
        """
        attention, sharding = self.settings.attention, self.settings.sharding
        if attention == "flex" and device.type == "cpu":
            raise UserError("model.attention: flex has no backward on the CPU; use split")
        if attention == "varlen" and (device.type != "cuda" or sharding.compute_dtype != "bfloat16"):
            raise UserError("model.attention: varlen needs CUDA and model.sharding.compute_dtype bfloat16; use split")
        model = self.on_meta()
        set_compiled(model, device.type == "cuda" if self.settings.compile is None else self.settings.compile)
        if mesh is not None and needs_wrapping(mesh, sharding):
            freeze_dtype(model, sharding)
            shard(model, mesh, sharding)
        model.to_empty(device=device)
        if device.type == "cpu":
            trim_heap_before(model.language_model.model.layers)
        read = load_weights(model, self.folder, self.settings.adapters)
        for _, parameter, value in initial_weights(model, seed_of("lora")):
            copy_part(value, parameter)
        return model, read
