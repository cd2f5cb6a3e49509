"""A checkpoint folder opened: which files hold its weights, and the sizes of its model.

Nothing here reads a tensor; configs, indices and headers are checked against each other before anything of their sizes
is built.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scone_pl.checkpoints.configs import ConfigFile, check_root, read_autoencoder, read_decoder, read_vit
from scone_pl.checkpoints.tensor_files import WeightFiles
from scone_pl.errors import UserError
from scone_pl.files import read_json
from scone_pl.model.config import DecoderConfig, SconeConfig, ViTConfig
from scone_pl.model.experts import is_generation_parameter

WEIGHT_FILES = ("ema.safetensors", "model.safetensors")
"""BAGEL's EMA weights are what Scone starts from, so they go first where both exist (docs/specification.md 6)."""
AUTOENCODER_FILE = "ae.safetensors"
_VIT_TABLE = "vit_model.vision_model.embeddings.position_embedding.weight"
_CONNECTOR_TABLE = "vit_pos_embed.pos_embed"
_LATENT_TABLE = "latent_pos_embed.pos_embed"


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, Path] | None]:
    """The files, and where an index says that each tensor lies if there is one."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name], None
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            listed = {tensor: folder / file for tensor, file in _weight_map(index).items()}
            return sorted(set(listed.values())), listed
    raise UserError(f"{folder}: no weights; expected one of {', '.join(WEIGHT_FILES)} there")


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index, dict).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise UserError(f"{index}: weight_map must map names of tensors to files")
    for tensor, file in found.items():
        # A plain name: an index must not reach outside of its folder.
        if not isinstance(file, str) or file in ("", ".", "..") or len(file) > 255 or set("/\\\0") & set(file):
            raise UserError(f"{index}: weight_map has {tensor!r:.80} in {file!r:.80}, not a file of its folder")
    return found


@contextmanager
def open_weights(folder: str | os.PathLike[str]) -> Iterator[WeightFiles]:
    """The weights of a checkpoint folder, memory-mapped; of a dense one without a generation expert's."""
    path = check_folder(folder)
    separate = ConfigFile(path / "llm_config.json", "llm").flag("separate_experts", True)
    files, listed = _weight_files(path)
    with ExitStack() as stack:
        yield WeightFiles(files, stack, leave_out=None if separate else is_generation_parameter, listed=listed)


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


def read_config(folder: str | os.PathLike[str]) -> SconeConfig:
    """All sizes of the model in a checkpoint folder, from its configs and the shapes of its weights.

    Raises:
        UserError: a file is damaged, describes a model that is not implemented, or contradicts the weights' shapes.
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
    same = tables[_CONNECTOR_TABLE] == vit.positions_per_side
    return SconeConfig(
        decoder=decoder,
        vit=vit,
        autoencoder=autoencoder,
        latent_patch_size=latent_patch_size,
        latent_positions_per_side=tables[_LATENT_TABLE],
        connector_positions_per_side=None if same else tables[_CONNECTOR_TABLE],
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
    """Compares configs with shapes before anything of those sizes is built, so that a message can name the key."""
    llm_file, vit_file = folder / "llm_config.json", folder / "vit_config.json"
    of_decoder = "language_model.model.layers.0."
    of_vit = "vit_model.vision_model."
    expected = (
        (llm_file, "vocab_size", decoder.vocab_size, "language_model.model.embed_tokens.weight", 0),
        (llm_file, "hidden_size", decoder.hidden_size, "language_model.model.embed_tokens.weight", 1),
        (llm_file, "intermediate_size", decoder.intermediate_size, f"{of_decoder}mlp.gate_proj.weight", 0),
        (llm_file, "hidden_size / num_attention_heads", decoder.head_dim, f"{of_decoder}self_attn.q_norm.weight", 0),
        (
            llm_file,
            "num_key_value_heads * head dimension",
            decoder.num_kv_heads * decoder.head_dim,
            f"{of_decoder}self_attn.k_proj.weight",
            0,
        ),
        (vit_file, "hidden_size", vit.hidden_size, f"{of_vit}embeddings.patch_embedding.weight", 0),
        (vit_file, "3 * patch_size^2", 3 * vit.patch_size**2, f"{of_vit}embeddings.patch_embedding.weight", 1),
        (vit_file, "intermediate_size", vit.intermediate_size, f"{of_vit}encoder.layers.0.mlp.fc1.weight", 0),
    )
    names = set(weights)
    for file, key, value, name, dimension in expected:
        shape = weights.shape(name) if name in names else ()
        if len(shape) > dimension and shape[dimension] != value:
            raise UserError(f"{file}: {key} is {value}, but {name} has shape {list(shape)}")
    for file, value, prefix in (
        (llm_file, decoder.num_layers, "language_model.model.layers."),
        (vit_file, vit.num_layers, f"{of_vit}encoder.layers."),
    ):
        found = len({n.removeprefix(prefix).split(".")[0] for n in names if n.startswith(prefix)})
        if found != value:
            less = " less the last, which is no feature layer," if file == vit_file else ""
            raise UserError(f"{file}: num_hidden_layers{less} is {value}, but the weights have {found} layers")
