"""Reads and writes checkpoint folders in the published layout (docs/specification.md 8), the only weight format.

A folder holds configs, weights (`model.safetensors`, `ema.safetensors` or an index of many files), the tokenizer, and
where the model has one with weights, the autoencoder (`ae.safetensors`). Which configs, and what they say, is the base
model's folder format (`formats.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scone_pl.checkpoints import training_record
from scone_pl.checkpoints.adapters import Adapter, AdapterConfig, merged_weight, read_adapters
from scone_pl.checkpoints.folder import check_folder, open_weights, read_config
from scone_pl.checkpoints.formats import AUTOENCODER_FILE, format_for, format_of
from scone_pl.checkpoints.tensor_files import TensorSource, WeightFiles, copy_part, write_tensors
from scone_pl.errors import UserError
from scone_pl.files import appearing, write_json
from scone_pl.model.config import NetworkConfig
from scone_pl.model.embeddings import PositionTable
from scone_pl.model.experts import is_generation_parameter
from scone_pl.model.lora import is_lora_parameter
from scone_pl.model.network import Network
from scone_pl.model.quantized import (
    QuantizableLinear,
    Quantization,
    quantize_layers,
    quantized_weights,
    weight_shapes,
)
from scone_pl.model.vae import Autoencoder, build_autoencoder

_log = logging.getLogger(__name__)

AUTOENCODER_PREFIX = "autoencoder."
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
    adapters: Sequence[AdapterConfig] = (),
    quantization: Quantization | None = None,
    understanding_only: bool = False,
) -> Network:
    """Builds the model of a checkpoint folder and loads its weights, tensor by tensor from memory-mapped files.

    Args:
        folder: published layout, see the module docstring.
        dtype: dtype of the parameters.
        device: device of the parameters.
        adapters: LoRA adapters to merge into the weights.
        quantization: of the decoder layers' weights; each is quantised as it is read, see `model/quantized.py`.
        understanding_only: without the decoder's generation expert, for passes that have no token of it; where there
            would be one, the understanding expert's weights serve it.

    Raises:
        UserError: the folder is not a checkpoint, its keys or shapes are not exactly those of the model, or an adapter
            does not fit.
    """
    config = read_config(folder)
    if understanding_only:
        decoder = dataclasses.replace(config.decoder, separate_experts=False)
        config = dataclasses.replace(config, decoder=decoder)
    with torch.device("meta"):
        model = config.build()
    if quantization is not None:
        quantize_layers(model.language_model.model.layers, quantization)
    model.to(dtype=dtype).to_empty(device=device)
    load_weights(model, folder, adapters)
    return model.eval()


def load_weights(model: Network, folder: str | os.PathLike[str], adapters: Sequence[AdapterConfig] = ()) -> str:
    """Fills a materialised model in place from a checkpoint folder; strict about keys and shapes.

    Each rank reads its own slices only. LoRA adapters of the model are not part of the folder and stay unchanged.

    Args:
        model: sharded or not.
        folder: published layout.
        adapters: LoRA adapters to merge into the weights.

    Returns:
        A line for the log: the number of tensors and their files.

    Raises:
        UserError: missing, unexpected or misshapen keys, with the first few named; or an adapter does not fit.
    """
    path = check_folder(folder)
    merge = read_adapters(adapters, weight_shapes(model))
    tensors: dict[str, Tensor | QuantizableLinear] = dict(quantized_weights(model))
    tensors |= {n: t for n, t in model.state_dict(keep_vars=True).items() if not is_lora_parameter(n)}
    with open_weights(path, understanding_only=not model.config.decoder.separate_experts) as weights:
        main = {n: t for n, t in tensors.items() if not n.startswith(AUTOENCODER_PREFIX)}
        _fill(main, weights, path, merge)
        read = f"{len(main)} tensors of {path}: {weights.files}"
        if weights.num_excluded and format_of(path).left_out(path) is not None:
            _log.warning(
                "%s: separate_experts is false in its llm_config.json, so the understanding expert's weights serve all "
                "tokens and the generation expert's %d tensors are not read",
                path,
                weights.num_excluded,
            )
    autoencoder = {
        n.removeprefix(AUTOENCODER_PREFIX): t for n, t in tensors.items() if n.startswith(AUTOENCODER_PREFIX)
    }
    if autoencoder:
        _fill_autoencoder(autoencoder, path)
        read += f", {AUTOENCODER_FILE}"
    reset_position_tables(model)
    return read


def _fill_autoencoder(tensors: dict[str, Tensor | QuantizableLinear], path: Path) -> None:
    file = path / AUTOENCODER_FILE
    if not file.is_file():
        raise UserError(f"{file}: missing; the checkpoint folder must contain the autoencoder's weights")
    with ExitStack() as stack:
        _fill(tensors, WeightFiles([file], stack), file)


def load_autoencoder(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> Autoencoder:
    """The autoencoder of a checkpoint folder alone, in float32.

    Raises:
        UserError: see `load_weights`.
    """
    autoencoder = build_autoencoder(read_config(folder).autoencoder).requires_grad_(False).to(device)
    if weights := autoencoder.state_dict(keep_vars=True):
        _fill_autoencoder(dict(weights), check_folder(folder))
    return autoencoder.eval()


def autoencoder_identity(folder: str | os.PathLike[str]) -> str:
    """A digest that changes with anything in a checkpoint folder that decides latents."""
    digest = hashlib.sha256(repr(read_config(folder).autoencoder).encode())
    file = check_folder(folder) / AUTOENCODER_FILE
    if file.is_file():
        with file.open("rb") as stream:
            while block := stream.read(2**24):
                digest.update(block)
    return digest.hexdigest()[:16]


def reset_position_tables(model: nn.Module) -> None:
    """Recomputes the fixed position tables, which loading overwrites (docs/specification.md 2)."""
    for module in model.modules():
        if isinstance(module, PositionTable):
            module.reset_buffers()


@torch.no_grad()
def _fill(
    tensors: Mapping[str, Tensor | QuantizableLinear],
    weights: WeightFiles,
    where: Path,
    merge: Sequence[tuple[Adapter, float]] = (),
) -> None:
    shapes = {
        name: (t.out_features, t.in_features) if isinstance(t, QuantizableLinear) else tuple(t.shape)
        for name, t in tensors.items()
    }
    stored = set(weights)
    problems = [f"missing {name}" for name in tensors if name not in stored]
    problems += [f"unexpected {name}" for name in sorted(stored - tensors.keys())]
    problems += [
        f"{name} has shape {list(weights.shape(name))}, the model needs {list(shape)}"
        for name, shape in shapes.items()
        if name in stored and weights.shape(name) != shape
    ]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        if not any(map(is_generation_parameter, stored)) and any(map(is_generation_parameter, tensors)):
            more += "; without a generation expert (*_moe_gen), llm_config.json must say separate_experts: false"
        raise UserError(f"{where}: the weights do not fit the model: {'; '.join(problems[:5])}{more}")
    for name, target in tensors.items():
        quantized = target if isinstance(target, QuantizableLinear) else None
        tensor = torch.empty(shapes[name]) if isinstance(target, QuantizableLinear) else target
        if any(name.removesuffix(".weight") in adapter.pairs for adapter, _ in merge):
            copy_part(merged_weight(name, weights.source(name).read(), merge), tensor)
        else:
            weights.copy_into(name, tensor)
        if quantized is not None:
            quantized.set_weight(tensor)


def save_pretrained(
    model: Network,
    folder: str | os.PathLike[str],
    *,
    assets_from: str | os.PathLike[str] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Writes a model to a new checkpoint folder; see `save_derived` for models trained from another folder.

    Args:
        model: the model, not sharded; weights are written in their dtype.
        folder: replaced atomically if it exists.
        assets_from: checkpoint folder from which the tokenizer files are copied.
        training: training provenance, written as `training.json`.
    """
    tensors = model.state_dict()
    main = {n: TensorSource.of(t) for n, t in tensors.items() if not n.startswith(AUTOENCODER_PREFIX)}
    autoencoder = {
        n.removeprefix(AUTOENCODER_PREFIX): TensorSource.of(t)
        for n, t in tensors.items()
        if n.startswith(AUTOENCODER_PREFIX)
    }
    with appearing(Path(folder)) as temporary:
        write_tensors(main, temporary / "model.safetensors")
        if autoencoder:
            write_tensors(autoencoder, temporary / AUTOENCODER_FILE)
        for name, content in config_files(model.config).items():
            write_json(content, temporary / name)
        if training is not None:
            write_json(training, temporary / training_record.FILE)
        for name in (*TOKENIZER_FILES, *format_for(model.config).PROMPT_FILES):
            if assets_from is not None and (Path(assets_from) / name).is_file():
                shutil.copyfile(Path(assets_from) / name, temporary / name)


def save_derived(
    start: str | os.PathLike[str],
    trained: Mapping[str, TensorSource],
    folder: str | os.PathLike[str],
    *,
    training: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    write: bool = True,
) -> None:
    """Writes a copy of the checkpoint folder `start` with some tensors replaced; atomic.

    Everything else is copied bit by bit: weights, position tables, autoencoder, configs, tokenizer. One tensor at a
    time is held in memory.

    Args:
        start: the folder that training started from.
        trained: published name -> new tensor, in the dtype to be written.
        folder: replaced if it exists.
        training: training provenance, written as `training.json`.
        dtype: dtype of all weights; None = unchanged.
        write: false on all ranks but one, which only take part in gathering sharded tensors.

    Raises:
        UserError: `start` lacks a trained tensor, or has it in another shape.
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
        with appearing(Path(folder)) as temporary:
            write_tensors(main, temporary / "model.safetensors")
            own = format_of(source_folder)
            for name in (*own.CONFIG_FILES, *own.OTHER_FILES, *own.PROMPT_FILES, *TOKENIZER_FILES, AUTOENCODER_FILE):
                if (source_folder / name).is_file():
                    shutil.copyfile(source_folder / name, temporary / name)
            write_json(dict(training), temporary / training_record.FILE)


def config_files(config: NetworkConfig) -> dict[str, dict[str, Any]]:
    """The JSON files of a checkpoint folder in the published form of the base model."""
    return format_for(config).config_files(config)
