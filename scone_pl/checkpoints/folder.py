"""Opens a checkpoint folder: weight files and model sizes.

No tensor is read here; configs, indices and headers are checked against each other before anything is built from them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scone_pl.checkpoints.configs import ConfigFile, check_root, read_autoencoder, read_decoder, read_vit
from scone_pl.checkpoints.hub import advice, local_folder
from scone_pl.checkpoints.tensor_files import WeightFiles
from scone_pl.errors import UserError
from scone_pl.files import read_json
from scone_pl.model.config import DecoderConfig, SconeConfig, ViTConfig
from scone_pl.model.experts import is_generation_parameter

WEIGHT_FILES = ("ema.safetensors", "model.safetensors")
"""In order of preference: Scone starts from BAGEL's EMA weights (docs/specification.md 6)."""
AUTOENCODER_FILE = "ae.safetensors"
_VIT_TABLE = "vit_model.vision_model.embeddings.position_embedding.weight"
_CONNECTOR_TABLE = "vit_pos_embed.pos_embed"
_LATENT_TABLE = "latent_pos_embed.pos_embed"


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, Path] | None]:
    """The weight files, and tensor name -> file if there is an index."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name], None
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            index_files = {tensor: folder / file for tensor, file in _weight_map(index).items()}
            return sorted(set(index_files.values())), index_files
    raise UserError(f"{folder}: no weights; expected one of {', '.join(WEIGHT_FILES)} there")


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index, dict).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: weight_map must map names of tensors to files")
    for tensor, file in weight_map.items():
        # A plain file name: an index must not refer outside its folder.
        if not isinstance(file, str) or file in ("", ".", "..") or len(file) > 255 or set("/\\\0") & set(file):
            raise UserError(f"{index}: weight_map has {tensor!r:.80} in {file!r:.80}, not a file of its folder")
    checked: dict[str, str] = weight_map
    return checked


@contextmanager
def open_weights(folder: str | os.PathLike[str]) -> Iterator[WeightFiles]:
    """The memory-mapped weights of a checkpoint folder; the generation expert is excluded for dense decoders."""
    path = check_folder(folder)
    separate = ConfigFile(path / "llm_config.json", "llm").flag("separate_experts", True)
    files, index_files = _weight_files(path)
    with ExitStack() as stack:
        yield WeightFiles(files, stack, exclude=None if separate else is_generation_parameter, index_files=index_files)


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder as a path; an id on the Hugging Face hub becomes a folder of the cache (`checkpoints/hub.py`).

    Raises:
        UserError: it does not exist or has no configs, or cannot be downloaded.
    """
    path = local_folder(folder)
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint folder; {advice(path)}")
    for name in ("llm_config.json", "vit_config.json"):
        if not (path / name).is_file():
            raise UserError(f"{path}: not a checkpoint folder, {name} is missing")
    return path


def read_config(folder: str | os.PathLike[str]) -> SconeConfig:
    """The model config of a checkpoint folder, from its config files and the shapes of its weights.

    Raises:
        UserError: a file is damaged, describes an unsupported model, or contradicts the weights' shapes.
    """
    path = check_folder(folder)
    with open_weights(path) as weights:
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
