"""Opens a checkpoint folder: weight files and model sizes.

No tensor is read here; configs, indices and headers are checked against each other before anything is built from them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scone_pl.checkpoints.formats import format_of
from scone_pl.checkpoints.hub import advice, local_folder
from scone_pl.checkpoints.tensor_files import WeightFiles
from scone_pl.errors import UserError
from scone_pl.files import read_json
from scone_pl.model.config import NetworkConfig
from scone_pl.model.experts import is_generation_parameter

WEIGHT_FILES = ("ema.safetensors", "model.safetensors")
"""In order of preference: Scone starts from BAGEL's EMA weights (docs/specification.md 6)."""


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
def open_weights(folder: str | os.PathLike[str], *, understanding_only: bool = False) -> Iterator[WeightFiles]:
    """The memory-mapped weights of a checkpoint folder, but for tensors that its format leaves out.

    Args:
        folder: published layout.
        understanding_only: leave the decoder's generation expert out too.
    """
    path = check_folder(folder)
    left_out = _of_generation if understanding_only else format_of(path).left_out(path)
    files, index_files = _weight_files(path)
    with ExitStack() as stack:
        yield WeightFiles(files, stack, exclude=left_out, index_files=index_files)


def _of_generation(name: str) -> bool:
    return name.startswith("language_model.") and is_generation_parameter(name)


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder as a path; an id on the Hugging Face hub becomes a folder of the cache (`checkpoints/hub.py`).

    Raises:
        UserError: it does not exist or has no configs, or cannot be downloaded.
    """
    path = local_folder(folder)
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint folder; {advice(path)}")
    for name in format_of(path).CONFIG_FILES:
        if not (path / name).is_file():
            raise UserError(f"{path}: not a checkpoint folder, {name} is missing")
    return path


def read_config(folder: str | os.PathLike[str]) -> NetworkConfig:
    """The model config of a checkpoint folder, from its config files and the shapes of its weights.

    Raises:
        UserError: a file is damaged, describes an unsupported model, or contradicts the weights' shapes.
    """
    path = check_folder(folder)
    with open_weights(path) as weights:
        return format_of(path).read_config(path, weights)


def is_checkpoint_folder(path: Path) -> bool:
    """Whether a folder has the configs of a checkpoint."""
    return all((path / name).is_file() for name in format_of(path).CONFIG_FILES)
