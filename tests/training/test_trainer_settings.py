"""Every argument of Lightning's Trainer is obeyed or refused; none is accepted and without effect."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest

from scone_pl.errors import UserError
from scone_pl.training.trainer_settings import OBEYED, RULES, check_trainer

ARGUMENTS = {name: p.default for name, p in inspect.signature(pl.Trainer.__init__).parameters.items() if name != "self"}


def callback(path: str) -> SimpleNamespace:
    return SimpleNamespace(class_path=path)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_each_argument_is_in_one_table(name: str) -> None:
    """If this fails with a new Lightning: see what the argument does here, and put it into one of the tables."""
    assert (name in OBEYED) + (name in RULES) == 1


def test_the_defaults_are_allowed() -> None:
    check_trainer(ARGUMENTS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_epochs", 3),
        ("min_epochs", 1),
        ("max_steps", 0),
        ("max_steps", -2),
        ("limit_train_batches", 4),
        ("limit_train_batches", 0.5),
        ("limit_train_batches", 0),
        ("limit_val_batches", 0.5),
        ("limit_test_batches", -1),
        ("limit_predict_batches", 0.1),
        ("overfit_batches", 0.5),
        ("overfit_batches", 1.0),
        ("overfit_batches", -1),
        ("val_check_interval", 0.25),
        ("val_check_interval", 0),
        ("check_val_every_n_epoch", 2),
        ("log_every_n_steps", 0),
        ("enable_checkpointing", False),
        ("accumulate_grad_batches", 0),
        ("gradient_clip_val", -1.0),
        ("gradient_clip_algorithm", "value"),
        ("use_distributed_sampler", False),
        ("barebones", True),
        ("sync_batchnorm", True),
        ("reload_dataloaders_every_n_epochs", 1),
        ("default_root_dir", "elsewhere"),
        ("model_registry", "name"),
        ("precision", "bf16-true"),
        ("precision", 16),
        ("strategy", "fsdp"),
        ("strategy", "deepspeed_stage_2"),
        ("strategy", callback("lightning.pytorch.strategies.ModelParallelStrategy")),
        ("plugins", [callback("lightning.pytorch.plugins.precision.MixedPrecision")]),
        ("callbacks", [callback("lightning.pytorch.callbacks.ModelCheckpoint")]),
        ("callbacks", callback("lightning.pytorch.callbacks.Timer")),
        ("min_steps", 7),
        ("accelerator", "foo"),
        ("strategy", "foo"),
        ("strategy", "ddp_spawn"),
        ("strategy", "ddp_notebook_find_unused_parameters_true"),
        ("devices", 0),
        ("devices", -2),
        ("devices", "0"),
        ("devices", "two"),
        ("devices", "1.5"),
        ("devices", "0,a"),
        ("devices", []),
        ("devices", [0, 0]),
        ("devices", [-1]),
    ],
)
def test_what_would_not_be_obeyed_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"trainer\.{name} .+: .+"):
        check_trainer({**ARGUMENTS, "max_steps": 6, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_steps", -1),
        ("limit_val_batches", 0),
        ("limit_val_batches", 1.0),
        ("overfit_batches", 2),
        ("val_check_interval", 1),
        ("val_check_interval", "00:01:00:00"),
        ("check_val_every_n_epoch", None),
        ("gradient_clip_val", 0.5),
        ("precision", "bf16-mixed"),
        ("strategy", "fully_sharded"),
        ("strategy", "ddp"),
        ("plugins", [callback("lightning.pytorch.plugins.environments.SLURMEnvironment")]),
        ("callbacks", [callback("lightning.pytorch.callbacks.LearningRateMonitor")]),
        ("min_steps", 6),
        *(("accelerator", name) for name in ("auto", "cpu", "gpu", "cuda")),
        *(("devices", value) for value in ("auto", -1, 1, 8, "2", "0,1", "0,", [1, 0], [3])),
    ],
)
def test_what_is_obeyed_is_allowed(name: str, value: Any) -> None:
    check_trainer({**ARGUMENTS, "max_steps": 6, name: value})


@pytest.mark.parametrize("devices", [-1, "-1", [0], "0,1", 100_000, "100000"])
def test_processes_on_cpus_are_a_reasonable_number(devices: Any) -> None:
    with pytest.raises(UserError, match=r"trainer\.devices .+: .+"):
        check_trainer({**ARGUMENTS, "accelerator": "cpu", "devices": devices})
    check_trainer({**ARGUMENTS, "accelerator": "cpu", "devices": "2"})


def test_early_stopping_needs_validations() -> None:
    stopping = {**ARGUMENTS, "callbacks": [callback("lightning.pytorch.callbacks.EarlyStopping")]}
    with pytest.raises(UserError, match=r"set trainer\.val_check_interval"):
        check_trainer(stopping)
    check_trainer({**stopping, "val_check_interval": 5})


def test_weights_that_are_not_updated_may_be_rounded() -> None:
    settings = {**ARGUMENTS, "max_steps": 6, "precision": "bf16-true"}
    check_trainer(settings, trains=False)
    with pytest.raises(UserError, match="would round the weights"):
        check_trainer(settings)
