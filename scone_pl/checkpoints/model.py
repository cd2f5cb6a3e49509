"""The published folder layout in and out (docs/specification.md 8): the only weight format of the project.

A folder holds `llm_config.json`, `vit_config.json`, weights (`model.safetensors`, `ema.safetensors` or an index of
many files), the autoencoder (`ae.safetensors`) and the tokenizer. Small models also have a `vae_config.json`; without
it the autoencoder is the FLUX one. Sizes that the configs do not say (position tables, latent patch) are read off the
weights' shapes, so they can not be set wrongly. One key of `llm_config.json` is ours: `separate_experts`, false for a
dense decoder (absent = true); of such a folder a generation expert's weights are not read.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scone_pl.checkpoints import training_record
from scone_pl.checkpoints.configs import decoder_keys
from scone_pl.checkpoints.folder import AUTOENCODER_FILE, check_folder, open_weights, read_config
from scone_pl.checkpoints.tensor_files import TensorSource, WeightFiles, write_tensors
from scone_pl.errors import UserError
from scone_pl.files import appearing, write_json
from scone_pl.model.config import AutoencoderConfig, SconeConfig
from scone_pl.model.embeddings import PositionTable
from scone_pl.model.experts import is_generation_parameter
from scone_pl.model.lora import is_lora_parameter
from scone_pl.model.scone import Scone

_log = logging.getLogger(__name__)

AUTOENCODER_PREFIX = "autoencoder."
CONFIG_FILES = (
    "llm_config.json",
    "vit_config.json",
    "vae_config.json",
    "config.json",
    "generation_config.json",
    "LICENSE",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


def from_pretrained(
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Scone:
    """Builds the model of a checkpoint folder and fills it, tensor by tensor from memory-mapped files.

    Args:
        folder: published layout, see the module docstring.
        dtype: of the parameters.
        device: where they are put.

    Raises:
        UserError: the folder is no checkpoint, or its keys or shapes are not exactly those of the model.
    """
    config = read_config(folder)
    with torch.device("meta"):
        model = Scone(config)
    model.to(dtype=dtype).to_empty(device=device)
    load_weights(model, folder)
    return model.eval()


def load_weights(model: Scone, folder: str | os.PathLike[str]) -> str:
    """Fills a materialised model in place from a checkpoint folder; strict about keys and shapes.

    Each rank reads its own parts only. Adapters (LoRA) are none of the folder's and stay as they are.

    Returns:
        What was read from where, in a line.

    Raises:
        UserError: missing, unexpected or misshapen keys, with the first few named.
    """
    path = check_folder(folder)
    tensors = {n: t for n, t in model.state_dict(keep_vars=True).items() if not is_lora_parameter(n)}
    with open_weights(path) as weights:
        main = {n: t for n, t in tensors.items() if not n.startswith(AUTOENCODER_PREFIX)}
        _fill(main, weights, path)
        read = f"{len(main)} tensors of {path}: {weights.files}"
        if weights.left_out:
            _log.warning(
                "%s: separate_experts is false in its llm_config.json, so the understanding expert's weights serve all "
                "tokens and the generation expert's %d tensors are not read",
                path,
                weights.left_out,
            )
    autoencoder = {
        n.removeprefix(AUTOENCODER_PREFIX): t for n, t in tensors.items() if n.startswith(AUTOENCODER_PREFIX)
    }
    if autoencoder:
        file = path / AUTOENCODER_FILE
        if not file.is_file():
            raise UserError(f"{file}: missing; the autoencoder's weights belong into the checkpoint folder")
        with ExitStack() as stack:
            _fill(autoencoder, WeightFiles([file], stack), file)
        read += f", {AUTOENCODER_FILE}"
    reset_position_tables(model)
    return read


def reset_position_tables(model: nn.Module) -> None:
    """Recomputes the fixed tables, which loading leaves as stored (docs/specification.md 2)."""
    for module in model.modules():
        if isinstance(module, PositionTable):
            module.reset_buffers()


@torch.no_grad()
def _fill(tensors: dict[str, Tensor], weights: WeightFiles, where: Path) -> None:
    found = set(weights)
    problems = [f"missing {name}" for name in tensors if name not in found]
    problems += [f"unexpected {name}" for name in sorted(found - tensors.keys())]
    problems += [
        f"{name} has shape {list(weights.shape(name))}, the model needs {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in found and weights.shape(name) != tuple(tensor.shape)
    ]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        if not any(map(is_generation_parameter, found)) and any(map(is_generation_parameter, tensors)):
            more += "; without a generation expert (*_moe_gen), llm_config.json must say separate_experts: false"
        raise UserError(f"{where}: the weights do not fit the model: {'; '.join(problems[:5])}{more}")
    for name, tensor in tensors.items():
        weights.copy_into(name, tensor)


def save_pretrained(
    model: Scone,
    folder: str | os.PathLike[str],
    *,
    assets_from: str | os.PathLike[str] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Writes a model that is no descendant of another folder; see `save_derived` for those that are.

    Args:
        model: the weights to write, in their dtype; not sharded.
        folder: replaced if it exists; appears whole or not at all.
        assets_from: checkpoint folder whose tokenizer files are copied along.
        training: how the weights came about, written as `training.json`.
    """
    tensors = model.state_dict()
    main = {n: TensorSource.of(t) for n, t in tensors.items() if not n.startswith(AUTOENCODER_PREFIX)}
    autoencoder = {
        n.removeprefix(AUTOENCODER_PREFIX): TensorSource.of(t)
        for n, t in tensors.items()
        if n.startswith(AUTOENCODER_PREFIX)
    }
    with appearing(Path(folder)) as aside:
        write_tensors(main, aside / "model.safetensors")
        if autoencoder:
            write_tensors(autoencoder, aside / AUTOENCODER_FILE)
        for name, content in config_files(model.config).items():
            write_json(content, aside / name)
        if training is not None:
            write_json(training, aside / training_record.FILE)
        for name in TOKENIZER_FILES:
            if assets_from is not None and (Path(assets_from) / name).is_file():
                shutil.copyfile(Path(assets_from) / name, aside / name)


def save_derived(
    start: str | os.PathLike[str],
    trained: Mapping[str, TensorSource],
    folder: str | os.PathLike[str],
    *,
    training: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    write: bool = True,
) -> None:
    """Writes the checkpoint folder `start` with some of its tensors replaced; appears whole or not at all.

    All that was not trained is copied bit by bit: weights, position tables, autoencoder, configs, tokenizer. Memory is
    needed for one tensor at a time.

    Args:
        start: the folder that training started from.
        trained: the new tensors by published name, in the dtype to write them in.
        folder: replaced if it exists.
        training: how the weights came about, written as `training.json`.
        dtype: write all weights so; None = as `start` has them, and trained ones as they come.
        write: false on all ranks but one: they only take part in gathering what is sharded.

    Raises:
        UserError: a trained tensor is none of `start`'s, or has another shape there.
    """
    source_folder = check_folder(start)
    with open_weights(source_folder) as weights:
        stored = set(weights)
        for name, source in trained.items():
            if name not in stored or weights.shape(name) != source.shape:
                raise UserError(f"{source_folder}: has no {name} of shape {list(source.shape)}; is it the right start?")
        if not write:
            for name in weights:
                if name in trained:
                    trained[name].read()
            return
        main = {name: trained.get(name) or weights.source(name) for name in weights}
        if dtype is not None:
            main = {name: dataclasses.replace(source, dtype=dtype) for name, source in main.items()}
        with appearing(Path(folder)) as aside:
            write_tensors(main, aside / "model.safetensors")
            for name in (*CONFIG_FILES, *TOKENIZER_FILES, AUTOENCODER_FILE):
                if (source_folder / name).is_file():
                    shutil.copyfile(source_folder / name, aside / name)
            write_json(dict(training), aside / training_record.FILE)


def config_files(config: SconeConfig) -> dict[str, dict[str, Any]]:
    """The JSON files of a checkpoint folder, in the published form. FLUX's own sizes need no `vae_config.json`."""
    decoder, vit, autoencoder = config.decoder, config.vit, config.autoencoder
    files: dict[str, dict[str, Any]] = {
        "llm_config.json": decoder_keys(decoder),
        "vit_config.json": {
            "hidden_size": vit.hidden_size,
            "intermediate_size": vit.intermediate_size,
            "num_hidden_layers": vit.num_layers + 1,
            "num_attention_heads": vit.num_heads,
            "patch_size": vit.patch_size,
            "image_size": vit.patch_size * vit.positions_per_side,
            "layer_norm_eps": vit.layer_norm_eps,
            "hidden_act": "gelu_pytorch_tanh",
        },
    }
    if autoencoder.kind == "space_to_depth":
        files["vae_config.json"] = {"kind": "space_to_depth", "block_size": autoencoder.block_size}
    elif autoencoder != AutoencoderConfig():
        files["vae_config.json"] = {
            "in_channels": 3,
            "out_ch": 3,
            "downsample": autoencoder.downsample,
            "ch": autoencoder.base_channels,
            "ch_mult": list(autoencoder.channel_multipliers),
            "num_res_blocks": autoencoder.num_res_blocks,
            "z_channels": autoencoder.latent_channels,
            "scale_factor": autoencoder.scale_factor,
            "shift_factor": autoencoder.shift_factor,
        }
    return files
