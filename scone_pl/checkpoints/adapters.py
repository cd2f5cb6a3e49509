"""Reads LoRA adapters in peft's layout: `adapter_config.json` and `adapter_model.safetensors`.

Training here writes that layout (`<run>/weights/adapter`), and so does peft's `save_pretrained`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scone_pl.checkpoints.hub import ADAPTER_FILES, fetch, hub_id
from scone_pl.checkpoints.tensor_files import WeightFiles
from scone_pl.errors import UserError
from scone_pl.files import read_json
from scone_pl.model.lora import merged
from scone_pl.ranges import check_number

_CONFIG, _WEIGHTS = ADAPTER_FILES
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")
_NOT_READ: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "megatron_config": (None,),
}
"""Keys of peft's configuration, and the values under which an adapter is A and B of linear maps, nothing else."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """A LoRA adapter that is merged into the weights as they are read."""

    path: str
    """Folder in peft's layout, or an id on the Hugging Face hub."""
    scale: float = 1.0
    """Its weight; 1 = as it was trained."""

    def __post_init__(self) -> None:
        check_number("adapters: scale", self.scale, minimum=-100, maximum=100)


@dataclass(frozen=True)
class Adapter:
    """Low-rank products by the module that they adapt."""

    source: str
    pairs: Mapping[str, tuple[Tensor, Tensor, float]]
    """Module -> A (rank, in), B (out, rank), factor of B A."""

    def check_binds(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raises `UserError` unless each of its modules is one of the model's, of the same size.

        Args:
            shapes: name of each parameter of the model -> its shape.
        """
        names = [module for module in self.pairs if f"{module}.weight" in shapes]
        if not names:
            raise UserError(
                f"{self.source}: binds to no module of the model (its first is {next(iter(self.pairs))}); was it "
                "trained for another model?"
            )
        for module, (a, b, _) in self.pairs.items():
            if f"{module}.weight" not in shapes:
                raise UserError(f"{self.source}: adapts {module}, which the model does not have")
            size, own = (b.shape[0], a.shape[1]), tuple(shapes[f"{module}.weight"])
            if size != own:
                raise UserError(f"{self.source}: adapts {module} of size {list(size)}, the model's is {list(own)}")


def read_adapter(source: str | os.PathLike[str]) -> Adapter:
    """An adapter from a folder, or an id on the Hugging Face hub.

    Raises:
        UserError: no adapter there, a damaged file, or a variant of LoRA that is not read.
    """
    repository = hub_id(source)
    folder = Path(source) if repository is None else fetch(repository)
    if not folder.is_dir():
        raise UserError(f"{source}: no such folder of an adapter; it is WEIGHTS/adapter of a run, or an id on the hub")
    if not (folder / _CONFIG).is_file():
        inner = folder / "adapter"
        there = f"; did you mean {inner}?" if (inner / _CONFIG).is_file() else ""
        raise UserError(f"{folder}: not an adapter, {_CONFIG} is missing{there}")
    if not (folder / _WEIGHTS).is_file():
        raise UserError(f"{folder}: {_WEIGHTS} is missing; adapters are read from safetensors only")
    config = read_json(folder / _CONFIG, dict)
    _check_config(config, folder / _CONFIG)
    with ExitStack() as stack:
        weights = WeightFiles([folder / _WEIGHTS], stack)
        tensors = _by_module(weights, folder / _WEIGHTS)
        pairs = {}
        for module, parts in tensors.items():
            if set(parts) != {"A", "B"}:
                raise UserError(f"{folder / _WEIGHTS}: {module} has one of lora_A and lora_B only")
            a, b = (weights.source(parts[part]).read() for part in "AB")
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
                raise UserError(f"{folder / _WEIGHTS}: {module} has A {list(a.shape)} and B {list(b.shape)}")
            if not (a.isfinite().all() and b.isfinite().all()):
                raise UserError(f"{folder / _WEIGHTS}: {module} holds NaN or infinite values")
            pairs[module] = (a, b, _factor(config, module, a.shape[0], folder / _CONFIG))
    if not pairs:
        raise UserError(f"{folder / _WEIGHTS}: holds no adapter")
    return Adapter(str(source), pairs)


def adapters_of(paths: Sequence[str] | None, scales: Sequence[float] | None) -> list[AdapterConfig]:
    """Adapters of `--lora` and `--lora_scale`.

    Raises:
        UserError: another number of scales than of adapters.
    """
    paths, scales = paths or (), scales or [1.0] * len(paths or ())
    if len(scales) != len(paths):
        raise UserError(f"--lora_scale: there are {len(scales)} for {len(paths)} --lora; give one each, or none")
    return [AdapterConfig(path=path, scale=scale) for path, scale in zip(paths, scales, strict=True)]


def adapter_identity(source: str) -> str:
    """A hash of an adapter's tensors and factors."""
    digest = hashlib.sha256()
    for module, (a, b, factor) in sorted(read_adapter(source).pairs.items()):
        digest.update(f"{module} {factor} {list(a.shape)} {list(b.shape)}".encode())
        digest.update(a.float().contiguous().numpy().tobytes() + b.float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_adapters(
    adapters: Iterable[AdapterConfig], shapes: Mapping[str, Sequence[int]]
) -> list[tuple[Adapter, float]]:
    """Adapters and their scales, checked against the model; see `Adapter.check_binds`."""
    read = [(read_adapter(config.path), config.scale) for config in adapters]
    for adapter, _ in read:
        adapter.check_binds(shapes)
    return read


def merged_weight(name: str, weight: Tensor, adapters: Iterable[tuple[Adapter, float]]) -> Tensor:
    """A parameter with the adapters of its module merged in, in float32; the tensor itself if there is none."""
    for adapter, scale in adapters:
        if (pair := adapter.pairs.get(name.removesuffix(".weight"))) is not None and name.endswith(".weight"):
            weight = merged(weight, pair[0], pair[1], scale * pair[2])
    return weight


def _by_module(names: Iterable[str], file: Path) -> dict[str, dict[str, str]]:
    """Module -> part (A or B) -> name of the tensor."""
    modules: dict[str, dict[str, str]] = {}
    for name in names:
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise UserError(f"{file}: {name:.120} is no lora_A or lora_B of a linear map; only plain LoRA is read")
        modules.setdefault(match["module"], {})[match["part"]] = name
    return modules


def _check_config(config: Mapping[str, Any], file: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type is {config.get('peft_type')!r:.40}; only LORA is read")
    for key, allowed in _NOT_READ.items():
        if config.get(key) not in allowed:
            raise UserError(f"{file}: {key} is {config[key]!r:.80}, which is not read; only plain LoRA is")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            raise UserError(f"{file}: {key} must map names of modules to numbers")


def _factor(config: Mapping[str, Any], module: str, rank: int, file: Path) -> float:
    """Alpha / rank, or alpha / sqrt(rank) with rsLoRA."""
    stated = _of_pattern(config.get("rank_pattern") or {}, module, config.get("r"))
    if type(stated) is not int or stated != rank:
        raise UserError(f"{file}: the rank of {module} is {stated!r:.40}, but its tensors have {rank}")
    alpha = _of_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha"))
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise UserError(f"{file}: lora_alpha of {module} is {alpha!r:.40}; it must be a number")
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _of_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value for a module: of the first pattern that its name ends in, as peft matches them."""
    try:
        return next((v for p, v in patterns.items() if re.fullmatch(rf"(.*\.)?({p})", module)), default)
    except re.error as error:
        raise UserError(f"adapter_config.json: a pattern of modules is no regular expression ({error})") from None
