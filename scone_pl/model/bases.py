"""The registry of base models: the only file that names them all.

A base model is a network, a prompt layout, a folder format and a guidance rule. Its `NetworkConfig` leads to the first
two and names the last. Everything else asks the pack, the network or its configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scone_pl.files import read_json
from scone_pl.model.config import PRESETS as SCONE_PRESETS
from scone_pl.model.config import NetworkConfig, SconeConfig
from scone_pl.model.neo.config import NEO_PRESETS, NeoConfig


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model. Modules of packages above this one are named, not imported."""

    config: type[NetworkConfig]
    presets: Mapping[str, Callable[..., NetworkConfig]]
    """Sizes by name."""
    folder: str
    """Module with its `checkpoints.formats.FolderFormat`."""
    parity: str
    """Module with its `ParityCase`, which compares with the published implementation."""
    tokenizer: str
    """Module with its `Tokenizer`."""
    model_types: tuple[str, ...] = ()
    """`model_type` in the `config.json` of its folders; empty = every folder that is no other base's."""


BASES: dict[str, Base] = {
    "bagel": Base(
        config=SconeConfig,
        presets=SCONE_PRESETS,
        folder="scone_pl.checkpoints.bagel",
        parity="scone_pl.parity.bagel",
        tokenizer="scone_pl.data.tokenizer",
    ),
    "neo": Base(
        config=NeoConfig,
        presets=NEO_PRESETS,
        folder="scone_pl.checkpoints.neo",
        parity="scone_pl.parity.neo",
        tokenizer="scone_pl.data.neo",
        model_types=("neo_chat",),
    ),
}

PRESETS: dict[str, Callable[..., NetworkConfig]] = {n: p for base in BASES.values() for n, p in base.presets.items()}
"""The presets of all bases, by name."""


def base_of(folder: Path) -> Base:
    """The base model of a checkpoint folder, by its `config.json`.

    Raises:
        UserError: that file is damaged.
    """
    file = folder / "config.json"
    model_type = read_json(file, dict).get("model_type") if file.is_file() else None
    return next((base for base in BASES.values() if model_type in base.model_types), default_base())


def default_base() -> Base:
    """That of folders that name no other."""
    return next(base for base in BASES.values() if not base.model_types)
