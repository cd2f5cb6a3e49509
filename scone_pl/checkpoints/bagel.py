"""The folder format of BAGEL and Scone (docs/specification.md 8).

A folder holds `llm_config.json`, `vit_config.json`, weights, the autoencoder (`ae.safetensors`) and the tokenizer.
Small models also have a `vae_config.json`; without it the autoencoder is FLUX's. Sizes that the configs lack (position
tables, latent patch) are inferred from the weights' shapes. One key of `llm_config.json` is an extension:
`separate_experts`, false for a dense decoder (default true), whose folder's generation expert is not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scone_pl.checkpoints.configs import ConfigFile, check_root, decoder_keys, read_autoencoder, read_decoder, read_vit
from scone_pl.checkpoints.formats import AUTOENCODER_FILE
from scone_pl.checkpoints.tensor_files import WeightFiles
from scone_pl.errors import UserError
from scone_pl.model.config import AutoencoderConfig, DecoderConfig, SconeConfig, ViTConfig
from scone_pl.model.experts import is_generation_parameter

CONFIG_FILES = ("llm_config.json", "vit_config.json")
PROMPT_FILES = ()
PUBLISHED_FILES = (*CONFIG_FILES, AUTOENCODER_FILE)
OTHER_FILES = ("vae_config.json", "config.json", "generation_config.json", "preprocessor_config.json", "LICENSE")
_VIT_TABLE = "vit_model.vision_model.embeddings.position_embedding.weight"
_CONNECTOR_TABLE = "vit_pos_embed.pos_embed"
_LATENT_TABLE = "latent_pos_embed.pos_embed"


def left_out(folder: Path) -> Callable[[str], bool] | None:
    """A dense decoder's folder may hold a generation expert, which is not read."""
    separate = ConfigFile(folder / "llm_config.json", "llm").flag("separate_experts", True)
    return None if separate else is_generation_parameter


def read_config(path: Path, weights: WeightFiles) -> SconeConfig:
    """See `FolderFormat.read_config`."""
    tables = {name: _table_side(weights, name, path) for name in (_VIT_TABLE, _CONNECTOR_TABLE, _LATENT_TABLE)}
    decoder, vit = read_decoder(path), read_vit(path, tables[_VIT_TABLE])
    autoencoder = read_autoencoder(path)
    patch_values = _shape(weights, "vae2llm.weight", path)[1]
    latent_patch_size = math.isqrt(patch_values // autoencoder.channels)
    if latent_patch_size**2 * autoencoder.channels != patch_values or not patch_values:
        raise UserError(
            f"{path}: vae2llm.weight reads {patch_values} values, which are no square patch of latents with "
            f"{autoencoder.channels} channels; does vae_config.json belong to these weights?"
        )
    _check_sizes(path, weights, decoder, vit)
    if (path / AUTOENCODER_FILE).exists():
        with ExitStack() as stack:
            WeightFiles([path / AUTOENCODER_FILE], stack)
    sizes = {
        "latent_patch_size": latent_patch_size,
        "max_latent_size": tables[_LATENT_TABLE],
        "vit_max_num_patch_per_side": tables[_CONNECTOR_TABLE],
    }
    check_root(path, decoder, autoencoder, sizes)
    equal_sides = tables[_CONNECTOR_TABLE] == vit.positions_per_side
    return SconeConfig(
        decoder=decoder,
        vit=vit,
        autoencoder=autoencoder,
        latent_patch_size=latent_patch_size,
        latent_positions_per_side=tables[_LATENT_TABLE],
        connector_positions_per_side=None if equal_sides else tables[_CONNECTOR_TABLE],
    )


def _shape(weights: WeightFiles, name: str, folder: Path) -> tuple[int, ...]:
    if name not in set(weights):
        raise UserError(f"{folder}: the weights lack {name}; is this a BAGEL or Scone checkpoint?")
    shape = weights.shape(name)
    if len(shape) != 2:
        raise UserError(f"{folder}: {name} has shape {list(shape)}; it must be a matrix")
    return shape


def _table_side(weights: WeightFiles, name: str, folder: Path) -> int:
    rows = _shape(weights, name, folder)[0]
    side = math.isqrt(rows)
    if not rows or side**2 != rows:
        raise UserError(f"{folder}: {name} has {rows} rows; a square position table has 1, 4, 9, ... of them")
    return side


def _check_sizes(folder: Path, weights: WeightFiles, decoder: DecoderConfig, vit: ViTConfig) -> None:
    """Compares configs with shapes before the model is built, so that messages can name the key."""
    llm_file, vit_file = folder / "llm_config.json", folder / "vit_config.json"
    decoder_prefix = "language_model.model.layers.0."
    vit_prefix = "vit_model.vision_model."
    expected = (
        (llm_file, "vocab_size", decoder.vocab_size, "language_model.model.embed_tokens.weight", 0),
        (llm_file, "hidden_size", decoder.hidden_size, "language_model.model.embed_tokens.weight", 1),
        (llm_file, "intermediate_size", decoder.intermediate_size, f"{decoder_prefix}mlp.gate_proj.weight", 0),
        (
            llm_file,
            "hidden_size / num_attention_heads",
            decoder.head_dim,
            f"{decoder_prefix}self_attn.q_norm.weight",
            0,
        ),
        (
            llm_file,
            "num_key_value_heads * head dimension",
            decoder.num_kv_heads * decoder.head_dim,
            f"{decoder_prefix}self_attn.k_proj.weight",
            0,
        ),
        (vit_file, "hidden_size", vit.hidden_size, f"{vit_prefix}embeddings.patch_embedding.weight", 0),
        (vit_file, "3 * patch_size^2", 3 * vit.patch_size**2, f"{vit_prefix}embeddings.patch_embedding.weight", 1),
        (vit_file, "intermediate_size", vit.intermediate_size, f"{vit_prefix}encoder.layers.0.mlp.fc1.weight", 0),
    )
    names = set(weights)
    for file, key, value, name, dimension in expected:
        shape = weights.shape(name) if name in names else ()
        if len(shape) > dimension and shape[dimension] != value:
            raise UserError(f"{file}: {key} is {value}, but {name} has shape {list(shape)}")
    for file, value, prefix in (
        (llm_file, decoder.num_layers, "language_model.model.layers."),
        (vit_file, vit.num_layers, f"{vit_prefix}encoder.layers."),
    ):
        num_layers = len({n.removeprefix(prefix).split(".")[0] for n in names if n.startswith(prefix)})
        if num_layers != value:
            note = " less the last, which is no feature layer," if file == vit_file else ""
            raise UserError(f"{file}: num_hidden_layers{note} is {value}, but the weights have {num_layers} layers")


def config_files(config: SconeConfig) -> dict[str, dict[str, Any]]:
    """The JSON files of a checkpoint folder in the published format; FLUX's autoencoder needs no `vae_config.json`."""
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
            **({"norm_groups": autoencoder.norm_groups} if autoencoder.norm_groups != 32 else {}),
            "z_channels": autoencoder.latent_channels,
            "scale_factor": autoencoder.scale_factor,
            "shift_factor": autoencoder.shift_factor,
        }
    return files
