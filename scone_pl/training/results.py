"""Exports trained weights as a checkpoint folder: from the model in memory, or from a snapshot.

What did not train is copied bit by bit from the folder that training started from. Adapters are merged into the
weights that they adapt, and also written by themselves as peft names them (`adapter/`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scone_pl.checkpoints.folder import check_folder, open_weights
from scone_pl.checkpoints.model import save_derived
from scone_pl.checkpoints.tensor_files import TensorSource, WeightFiles, whole_tensor, write_tensors
from scone_pl.errors import UserError
from scone_pl.files import appearing, write_json
from scone_pl.model.lora import MARK, LoRAConfig, is_lora_parameter, merged
from scone_pl.model.network import Network
from scone_pl.training.provenance import lora_of, provenance_in
from scone_pl.training.runs import weights_identity
from scone_pl.training.sharding import reshard
from scone_pl.training.snapshots import read_run, reader_of

ADAPTER_FOLDER = "adapter"
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class TrainedWeights:
    """What training changed, in memory."""

    model: Network
    init_from: str
    """Checkpoint folder that training started from."""
    average: Mapping[str, Tensor] | None
    """To export in place of the weights themselves, by name."""
    lora: LoRAConfig | None
    description: Mapping[str, Any]
    """For `training.json`."""


def write_result(trained: TrainedWeights, folder: Path, *, write: bool) -> None:
    """Trained weights as a checkpoint folder; a collective if they are sharded.

    Args:
        trained: the weights.
        folder: to appear.
        write: on one rank only; the others take part in gathering.
    """
    reshard(trained.model)
    parameters = dict(trained.model.named_parameters())
    names = [name for name, p in parameters.items() if p.requires_grad]
    live = parameters if trained.average is None else trained.average
    training = {**trained.description, "weights": "raw" if trained.average is None else "ema"}

    def source(name: str) -> TensorSource:
        return TensorSource.of(live[name])

    _write(trained.init_from, names, source, trained.lora, folder, training, write=write)


def export_snapshot(
    snapshot: Path, folder: Path, *, start: Path | None = None, ema: bool = False, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """A snapshot's weights as a checkpoint folder, one tensor in memory at a time, without building a model.

    Args:
        snapshot: `step-...`, a folder or, of a run without `fully_sharded`, a file.
        folder: to appear.
        start: present path of the folder that training started from; None = its former path.
        ema: the average instead of the weights themselves.
        dtype: of all weights; None = as the start has each of them.

    Returns:
        The description that `training.json` holds.

    Raises:
        UserError: no snapshot, without an average, or `start` is another folder than training started from.
    """
    described = provenance_in(read_run(snapshot), snapshot)
    if not described:
        raise UserError(f"{snapshot}: has no training provenance; was it written by scone_pl?")
    start = start or Path(described["init_from"])
    if folder.resolve() == start.resolve():
        raise UserError(f"{folder}: is what {snapshot} started from, and is still needed; choose another folder")
    if not start.is_dir():
        raise UserError(
            f"{start}: does not exist, but {snapshot} holds only what trained; give its present path as --start"
        )
    if weights_identity(start) != described["start"]:
        raise UserError(
            f"{start}: other weights than those that {snapshot} started from; give the path of those as --start"
        )
    section = "ema" if ema else "model"
    reader = reader_of(snapshot)
    shapes = reader.shapes(section)
    if not shapes:
        raise UserError(f"{snapshot}: holds no average; train with model.ema.decay, or leave --weights ema out")

    with open_weights(start) as weights:
        stored = {name: weights.source(name).dtype for name in weights}

    known = {name for name in shapes if name in stored or is_lora_parameter(name)}
    if unknown := sorted(shapes.keys() - known):
        raise UserError(f"{snapshot}: holds {unknown[0]!r:.80}, which {start} lacks; use another snapshot")

    def source(name: str) -> TensorSource:
        default = torch.float32 if is_lora_parameter(name) else stored[name]
        return TensorSource(dtype or default, shapes[name], lambda: reader.read(section, name))

    lora = lora_of(described, snapshot)
    training = {**described, "weights": "ema" if ema else "raw"}
    _write(start, list(shapes), source, lora, folder, training, dtype=dtype, like_start=dtype is None)
    return training


def _write(
    start: str | Path,
    names: Collection[str],
    source: Callable[[str], TensorSource],
    lora: LoRAConfig | None,
    folder: Path,
    training: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = None,
    like_start: bool = False,
    write: bool = True,
) -> None:
    """Writes the folder; `names` are the tensors that trained, `source` returns each."""
    adapters = {name: source(name) for name in names if is_lora_parameter(name)}
    with appearing(folder) if write else nullcontext(folder) as whole:
        with open_weights(check_folder(start)) as weights:
            trained = {name: source(name) for name in names if name not in adapters}
            trained |= _merge(adapters, weights, lora, like_start=like_start)
            save_derived(start, trained, whole, training=training, dtype=dtype, write=write)
        if lora is not None and write:
            named = {_PEFT_PREFIX + name: adapter for name, adapter in adapters.items()}
            write_json(adapter_config(lora, adapters, str(start)), whole / ADAPTER_FOLDER / "adapter_config.json")
            write_tensors(named, whole / ADAPTER_FOLDER / "adapter_model.safetensors")
        elif lora is not None:
            for adapter in adapters.values():
                adapter.read()


def _merge(
    adapters: Mapping[str, TensorSource], weights: WeightFiles, lora: LoRAConfig | None, *, like_start: bool
) -> dict[str, TensorSource]:
    """Adapted weights by published name, in float32 or as the start has them."""
    adapted: dict[str, TensorSource] = {}
    for name, b in adapters.items():
        if lora is None or not name.endswith("lora_B.weight"):
            continue
        target = name.replace("lora_B.weight", "weight")
        a, base = adapters[name.replace("lora_B", "lora_A")], weights.source(target)

        def read(base: TensorSource = base, a: TensorSource = a, b: TensorSource = b) -> Tensor:
            return merged(base.read(), whole_tensor(a.read()).cpu(), whole_tensor(b.read()).cpu(), lora.scale)

        adapted[target] = TensorSource(base.dtype if like_start else torch.float32, base.shape, read)
    return adapted


def adapter_config(lora: LoRAConfig, names: Collection[str], base: str) -> dict[str, Any]:
    """Content of peft's `adapter_config.json`."""
    # A pattern over whole names: peft takes a list for their ends, which the ViT and the other expert have as well.
    modules = {name.split(MARK)[0] for name in names}
    stems = sorted({re.sub(r"\.\d+\.", ".<n>.", module) for module in modules})
    pattern = "|".join(re.escape(stem).replace("<n>", r"\d+") for stem in stems)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": pattern,
    }
