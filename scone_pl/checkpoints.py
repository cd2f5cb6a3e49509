"""The published folder layout in and out (SPEC 8): the only weight format of the project.

A folder holds `llm_config.json`, `vit_config.json`, weights (`model.safetensors`, `ema.safetensors` or an index of
many files), the autoencoder (`ae.safetensors`) and the tokenizer. Small models also have a `vae_config.json`; without
it the autoencoder is the FLUX one. Sizes that the configs do not say (position tables, latent patch) are read off the
weights' shapes, so they can not be set wrongly. One key of `llm_config.json` is ours: `separate_experts`, false for a
dense decoder (absent = true); of such a folder a generation expert's weights are not read.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scone_pl.errors import UserError
from scone_pl.files import appearing, write_json
from scone_pl.model.config import AutoencoderConfig, DecoderConfig, SconeConfig, ViTConfig
from scone_pl.model.embeddings import PositionTable
from scone_pl.model.experts import is_generation_parameter
from scone_pl.model.lora import is_lora_parameter
from scone_pl.model.scone import Scone
from scone_pl.tensor_files import TensorSource, WeightFiles, write_tensors

_log = logging.getLogger(__name__)

WEIGHT_FILES = ("ema.safetensors", "model.safetensors")
"""BAGEL's EMA weights are what Scone starts from, so they go first where both exist (SPEC 6)."""
AUTOENCODER_FILE = "ae.safetensors"
AUTOENCODER_PREFIX = "autoencoder."
TRAINING_FILE = "training.json"
"""How weights came about."""
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


def _weight_files(folder: Path) -> list[Path]:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [folder / file for file in sorted(set(_read_json(index).get("weight_map", {}).values()))]
    raise UserError(f"{folder}: no weights; expected one of {', '.join(WEIGHT_FILES)} there")


@contextmanager
def open_weights(folder: str | os.PathLike[str]) -> Iterator[WeightFiles]:
    """The weights of a checkpoint folder, memory-mapped; of a dense one without a generation expert's."""
    path = check_folder(folder)
    separate = _separate_experts(path, _read_json(path / "llm_config.json"))
    with ExitStack() as stack:
        yield WeightFiles(_weight_files(path), stack, leave_out=None if separate else is_generation_parameter)


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder as a path.

    Raises:
        UserError: it does not exist or lacks its configs; the message says what a folder needs.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint folder")
    for name in ("llm_config.json", "vit_config.json"):
        if not (path / name).is_file():
            raise UserError(f"{path}: not a checkpoint folder, {name} is missing")
    return path


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: must hold one JSON object")
    return content


def _separate_experts(folder: Path, llm: Mapping[str, Any]) -> bool:
    value = llm.get("separate_experts", True)
    if not isinstance(value, bool):
        raise UserError(f"{folder / 'llm_config.json'}: separate_experts is {value!r}; it must be true or false")
    return value


def read_config(folder: str | os.PathLike[str]) -> SconeConfig:
    """All sizes of the model in a checkpoint folder, from its configs and the shapes of its weights."""
    path = check_folder(folder)
    llm, vit = _read_json(path / "llm_config.json"), _read_json(path / "vit_config.json")
    with open_weights(path) as weights:
        try:
            shapes = {
                name: weights.shape(name)
                for name in ("latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed", "vae2llm.weight")
            }
        except KeyError as error:
            raise UserError(f"{path}: the weights lack {error}; is this a BAGEL or Scone checkpoint?") from error
    if llm.get("tie_word_embeddings"):
        raise UserError(f"{path / 'llm_config.json'}: tie_word_embeddings must be false, BAGEL's head is untied")
    if vit.get("hidden_act", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise UserError(f"{path / 'vit_config.json'}: hidden_act {vit['hidden_act']} is not gelu_pytorch_tanh (SigLIP)")
    try:
        autoencoder = _read_autoencoder_config(path)
        return SconeConfig(
            decoder=DecoderConfig(
                vocab_size=llm["vocab_size"],
                hidden_size=llm["hidden_size"],
                intermediate_size=llm["intermediate_size"],
                num_layers=llm["num_hidden_layers"],
                num_heads=llm["num_attention_heads"],
                num_kv_heads=llm["num_key_value_heads"],
                rope_theta=llm.get("rope_theta", 1e6),
                rms_norm_eps=llm.get("rms_norm_eps", 1e-6),
                max_position_embeddings=llm.get("max_position_embeddings", 32768),
                separate_experts=_separate_experts(path, llm),
            ),
            vit=ViTConfig(
                hidden_size=vit["hidden_size"],
                intermediate_size=vit["intermediate_size"],
                num_layers=vit["num_hidden_layers"] - 1,  # the second-last layer is the feature layer
                num_heads=vit["num_attention_heads"],
                patch_size=vit["patch_size"],
                positions_per_side=_side(shapes["vit_pos_embed.pos_embed"]),
                layer_norm_eps=vit.get("layer_norm_eps", 1e-6),
            ),
            autoencoder=autoencoder,
            latent_patch_size=math.isqrt(shapes["vae2llm.weight"][1] // autoencoder.channels),
            latent_positions_per_side=_side(shapes["latent_pos_embed.pos_embed"]),
        )
    except KeyError as error:
        raise UserError(f"{path}: llm_config.json, vit_config.json or vae_config.json lacks the key {error}") from error


def _side(shape: tuple[int, ...]) -> int:
    return math.isqrt(shape[0])


def _read_autoencoder_config(folder: Path) -> AutoencoderConfig:
    file = folder / "vae_config.json"
    if not file.is_file():
        return AutoencoderConfig()
    raw = _read_json(file)
    if raw.get("kind") == "space_to_depth":
        return AutoencoderConfig(kind="space_to_depth", block_size=raw["block_size"])
    return AutoencoderConfig(
        base_channels=raw["ch"],
        channel_multipliers=tuple(raw["ch_mult"]),
        num_res_blocks=raw["num_res_blocks"],
        latent_channels=raw["z_channels"],
        scale_factor=raw["scale_factor"],
        shift_factor=raw["shift_factor"],
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
    """Recomputes the fixed tables, which loading leaves as stored (SPEC 2)."""
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
            write_json(training, aside / TRAINING_FILE)
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
            write_json(dict(training), aside / TRAINING_FILE)


def config_files(config: SconeConfig) -> dict[str, dict[str, Any]]:
    """The JSON files of a checkpoint folder, in the published form. FLUX's own sizes need no `vae_config.json`."""
    decoder, vit, autoencoder = config.decoder, config.vit, config.autoencoder
    files: dict[str, dict[str, Any]] = {
        "llm_config.json": {
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.intermediate_size,
            "num_hidden_layers": decoder.num_layers,
            "num_attention_heads": decoder.num_heads,
            "num_key_value_heads": decoder.num_kv_heads,
            "max_position_embeddings": decoder.max_position_embeddings,
            "rope_theta": decoder.rope_theta,
            "rms_norm_eps": decoder.rms_norm_eps,
            "tie_word_embeddings": False,
            # Only where it is not as published, so that published folders come out as they went in.
            **({} if decoder.separate_experts else {"separate_experts": False}),
        },
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
