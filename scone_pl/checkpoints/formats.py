"""The folder format of a base model: which files a checkpoint folder has, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from scone_pl.checkpoints.tensor_files import WeightFiles
from scone_pl.model.bases import BASES, Base, base_of
from scone_pl.model.config import NetworkConfig

AUTOENCODER_FILE = "ae.safetensors"


class FolderFormat(Protocol):
    """A module with these names; `model.bases.Base.folder` names it."""

    CONFIG_FILES: tuple[str, ...]
    """What every folder has beside weights and tokenizer."""
    OTHER_FILES: tuple[str, ...]
    """What it may have."""
    PROMPT_FILES: tuple[str, ...]
    """What belongs to the tokenizer beside its own files."""
    PUBLISHED_FILES: tuple[str, ...]
    """What the published folder has beside weights and tokenizer."""

    @staticmethod
    def left_out(folder: Path) -> Callable[[str], bool] | None:
        """Which tensors are not read, by name; None = all are."""

    @staticmethod
    def read_config(folder: Path, weights: WeightFiles) -> NetworkConfig:
        """The model config, from config files and the weights' shapes.

        Raises:
            UserError: a file is damaged, describes an unsupported model, or contradicts the weights' shapes.
        """

    @staticmethod
    def config_files(config: Any) -> dict[str, dict[str, Any]]:
        """The JSON files of a folder in the published form."""


def format_of(folder: Path) -> FolderFormat:
    """The format of a checkpoint folder."""
    return base_format(base_of(folder))


def base_format(base: Base) -> FolderFormat:
    """The format of a base model."""
    return cast(FolderFormat, import_module(base.folder))


def format_for(config: NetworkConfig) -> FolderFormat:
    """The format in which a model of `config` is saved."""
    return base_format(next(base for base in BASES.values() if isinstance(config, base.config)))
