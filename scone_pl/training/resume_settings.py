"""What may change when a run is resumed, compared with the configuration that its last start left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.strategies import Strategy

from scone_pl.errors import UserError
from scone_pl.files import read_text
from scone_pl.messages import warn
from scone_pl.training.sharding import FullySharded

FREE = {
    *("init_from", "attention", "activation_checkpointing", "layers_kept", "sharding", "nonfinite_gradient"),
    *("sampling", "mask_sampling", "sampling_round"),
}
"""Settings of `model` that may change: where and how it computes, not what."""
LOGGED = ("precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")
"""Settings of `trainer` that change what is computed, and may change all the same; that is logged."""


def check_strategy(snapshot: Path, strategy: Strategy) -> None:
    """Raises `UserError` if `strategy` cannot read `snapshot`."""
    if snapshot.is_dir() != isinstance(strategy, FullySharded):
        name = "fully_sharded" if snapshot.is_dir() else "another than fully_sharded"
        raise UserError(f"{snapshot}: of trainer.strategy {name}; go on with it, or choose another --output_dir")


def check_unchanged(file: Path, current: Mapping[str, Any]) -> None:
    """Refuses to resume a run, or to call it finished, when what it trains has other settings now.

    A resumed optimizer keeps its state, so a new learning rate would not even take effect.

    Args:
        file: configuration that the run's last start left.
        current: present configuration, of the same structure.

    Raises:
        UserError: names the settings that differ; or `file` is damaged.
    """
    recorded = recorded_settings(file)
    before, now = recorded["model"], current["model"]
    changed = ["class_path"] if _stage(before["class_path"]) != _stage(now["class_path"]) else []
    names = before["init_args"].keys() & now["init_args"].keys() - FREE
    changed += sorted(n for n in names if _differ(before["init_args"][n], now["init_args"][n]))
    if changed:
        raise UserError(
            f"{file.parent}: began with another model.{', model.'.join(changed)}; restore it, or "
            "choose another --output_dir"
        )
    for name in LOGGED:
        was, value = recorded["trainer"].get(name), current["trainer"].get(name)
        if name in recorded["trainer"] and was != value:
            warn(f"trainer.{name}: was {was} when {file.parent} was last started and is now {value}")


def recorded_settings(file: Path) -> dict[str, Any]:
    """The settings of a run's last start: `model` with `class_path` and `init_args`, and `trainer`, all objects.

    Raises:
        UserError: `file` is damaged.
    """
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError:
        content = None
    settings: dict[str, Any] = content if isinstance(content, dict) else {}
    model = settings.get("model")
    whole = isinstance(model, dict) and "class_path" in model and isinstance(model.get("init_args"), dict)
    if not whole or not isinstance(settings.get("trainer"), dict):
        raise UserError(f"{file}: not the configuration of a run; move it aside to resume without comparing settings")
    return settings


def _stage(class_path: str) -> str:
    """A class by its path; our own stages by their name, as they can be imported from several modules."""
    return class_path.rpartition(".")[2] if class_path.startswith("scone_pl.") else class_path


def _differ(before: Any, now: Any) -> bool:
    """Whether two values of a setting differ; keys that only one of them has are of another version of the program."""
    if isinstance(before, dict) and isinstance(now, dict):
        return any(_differ(before[key], now[key]) for key in before.keys() & now.keys())
    return bool(before != now)
