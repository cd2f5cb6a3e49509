"""Public attributes of Lightning's Trainer that it sets from outside the class, where type checkers do not see them."""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl

from scone_pl.data.datamodule import PackedDataModule


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """All callbacks, Lightning's own among them."""
    return list(cast(Any, trainer).callbacks)


def data_module(trainer: pl.Trainer) -> PackedDataModule:
    """The data of the run."""
    data = cast(Any, trainer).datamodule
    assert isinstance(data, PackedDataModule)
    return data


def is_trial(trainer: pl.Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which saves nothing."""
    return bool(cast(Any, trainer).fast_dev_run)


def log_interval(trainer: pl.Trainer) -> int:
    """Optimizer steps from one line of the log to the next."""
    return int(cast(Any, trainer).log_every_n_steps)
