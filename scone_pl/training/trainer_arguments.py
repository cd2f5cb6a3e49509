"""Arguments of Lightning's Trainer that follow from a recipe's `trainer` section and the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from scone_pl.training.callbacks import DataProgress
from scone_pl.training.outcome import TimeLimit
from scone_pl.training.progress import trainer_progress


def trainer_arguments(trainer: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What differs from the section itself.

    The data module repeats packs, not Lightning's `overfit_batches`; `TimeLimit` stands in for `max_time`, which would
    not start anew when a run is resumed.

    Args:
        trainer: the section, its classes instantiated.
        folder: of the run.
    """
    changed: dict[str, Any] = {"default_root_dir": str(folder), "overfit_batches": 0.0, "max_time": None}
    if isinstance(interval := trainer.get("val_check_interval"), int):  # Lightning counts packs
        changed["val_check_interval"] = interval * trainer["accumulate_grad_batches"]
    if trainer.get("logger") in (None, True):
        changed["logger"] = TensorBoardLogger(folder, name="", version="tensorboard")
    callbacks = [DataProgress(), *_listed(trainer.get("callbacks"))]
    if trainer.get("max_time") is not None:
        callbacks.append(TimeLimit(trainer["max_time"]))
    if trainer.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks.append(trainer_progress())
    return {**changed, "callbacks": callbacks}


def _listed(callbacks: Any) -> list[Any]:
    return callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
