"""Lightning's Trainer arguments, each of which is obeyed or refused: no setting is accepted and then without effect.

A test compares both tables with the Trainer's signature, so that an argument of a new Lightning is looked at first.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from scone_pl.errors import UserError
from scone_pl.ranges import LARGEST

OBEYED = frozenset(
    {
        *("logger", "enable_progress_bar", "enable_model_summary", "deterministic", "benchmark"),
        *("inference_mode", "profiler", "detect_anomaly", "enable_autolog_hparams"),
    }
)
"""Whatever their value, they act. (Nothing logs hyperparameters, so `enable_autolog_hparams` has nothing to leave out.)
"""


@dataclass(frozen=True)
class Rule:
    """Which values of an argument are obeyed."""

    allows: Callable[[Any], bool]
    reason: str
    """Why others are refused, and what to write instead."""


def _only(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(value is v or (type(value) is type(v) and value == v) for v in values)


def _count(least: int, *others: Any) -> Callable[[Any], bool]:
    return lambda value: _only(*others)(value) or (type(value) is int and least <= value <= LARGEST)


_MAX_PROCESSES = 64
"""On CPUs of one machine, or 4 per core if that is more."""
_LIMIT = "give a number of batches, or 0.0 or 1.0: streams have no length to take a fraction of"
_ENDLESS = "training data is an endless stream in which no epoch ends; use trainer.max_steps"
_STRATEGIES = ("fsdp", "deepspeed", "model_parallel", "xla")
_IN_CHILDREN = re.compile(r"_(spawn|fork|notebook)(_|$)")
"""Strategies that train in child processes, whose steps and outcome this process would not learn of."""
_CALLBACKS = {
    "ModelCheckpoint": "snapshots are written by `checkpoint` (checkpoint.every_n_steps, keep_last)",
    "OnExceptionCheckpoint": "snapshots are written by `checkpoint` (checkpoint.every_n_steps, keep_last)",
    "Timer": "use trainer.max_time, which a resumed run gets anew",
    "GradientAccumulationScheduler": "token counts of a step need a constant trainer.accumulate_grad_batches",
    "StochasticWeightAveraging": "use model.ema.decay",
    "WeightAveraging": "use model.ema.decay",
    "EMAWeightAveraging": "use model.ema.decay",
    "BatchSizeFinder": "a batch is one pack of data.packing.token_budget tokens; `estimate` says which fits",
    "LearningRateFinder": "set model.optimizer.lr",
    "BackboneFinetuning": "set model.trainable",
    "ModelPruning": "pruned weights would not be written",
}


def _plugins(value: Any) -> bool:
    return all(_is_environment(entry) for entry in (value if isinstance(value, list) else [value]) if entry)


def _is_environment(entry: Any) -> bool:
    path = getattr(entry, "class_path", None)
    if not isinstance(path, str):
        return isinstance(entry, ClusterEnvironment)
    module, _, name = path.rpartition(".")
    return issubclass(getattr(importlib.import_module(module), name), ClusterEnvironment)


def _strategy(value: Any) -> bool:
    name = getattr(value, "class_path", value)
    if isinstance(value, str) and value not in ("auto", "fully_sharded", *StrategyRegistry):
        return False
    if _IN_CHILDREN.search(str(name)) or "start_method" in str(getattr(value, "init_args", "")):
        return False
    return not str(name).rpartition(".")[2].lower().startswith(_STRATEGIES) and "ModelParallel" not in str(name)


def _accelerator(value: Any) -> bool:
    return not isinstance(value, str) or value in ("auto", "gpu", *AcceleratorRegistry.available_accelerators())


def _devices(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(type(i) is int and 0 <= i <= LARGEST for i in value) and len({*value}) == len(value)
    if isinstance(value, str) and value not in ("auto", "-1"):
        indices = [int(part) if part.strip().isdecimal() else None for part in value.rstrip(",").split(",")]
        return _devices(indices if "," in value else indices[0])
    return value in ("auto", "-1") or (type(value) is int and (value == -1 or 1 <= value <= LARGEST))


def _whole_interval(value: Any) -> bool:
    return not isinstance(value, (int, float)) or _count(1, 1.0)(value)


def _duration(value: Any) -> bool:
    return not isinstance(value, str) or bool(re.fullmatch(r"\d{1,6}:\d\d:\d\d:\d\d", value.strip()))


RULES: dict[str, Rule] = {
    "accelerator": Rule(_accelerator, "give auto, cpu or gpu"),
    "devices": Rule(_devices, "give the number of devices per machine, a list of their indices, -1 for all, or auto"),
    "strategy": Rule(_strategy, "use fully_sharded, which is FSDP2 with snapshots for any number of ranks"),
    "precision": Rule(
        lambda value: str(value) in ("None", "32", "32-true", "bf16-mixed"),
        "would round the weights that the optimizer updates; use 32-true with model.sharding.compute_dtype bfloat16 "
        "(fully_sharded), or bf16-mixed",
    ),
    "num_nodes": Rule(_count(1), "give the number of machines, at least 1"),
    "fast_dev_run": Rule(_count(0, True, False), "give a number of batches, or true for 1"),
    "min_steps": Rule(_count(0, None), "give a number of optimizer steps"),
    "num_sanity_val_steps": Rule(_count(-1, None), "give a number of batches, or -1 for all"),
    "max_epochs": Rule(_only(None, -1), _ENDLESS),
    "min_epochs": Rule(_only(None, 0), _ENDLESS),
    "max_steps": Rule(_count(1, -1), "give a number of optimizer steps, at least 1; -1 trains until it is stopped"),
    "limit_train_batches": Rule(
        _only(None, 1.0), f"{_ENDLESS}, or trainer.overfit_batches to repeat the first packs over and over"
    ),
    "limit_val_batches": Rule(_count(0, None, 0.0, 1.0), _LIMIT),
    "limit_test_batches": Rule(_count(0, None, 0.0, 1.0), _LIMIT),
    "limit_predict_batches": Rule(_count(0, None, 0.0, 1.0), _LIMIT),
    "overfit_batches": Rule(_count(0, 0.0), "give a number of packs a rank, to be repeated over and over"),
    "val_check_interval": Rule(
        lambda value: value is None or _whole_interval(value),
        "give a number of optimizer steps, or a time (DD:HH:MM:SS): an endless stream has no fractions",
    ),
    "check_val_every_n_epoch": Rule(_only(None, 1), "no epoch ends; use trainer.val_check_interval"),
    "log_every_n_steps": Rule(_count(1, None), "give a number of optimizer steps; trainer.logger false logs nothing"),
    "enable_checkpointing": Rule(
        _only(None, True), "a run always leaves a snapshot at its end; checkpoint.every_n_steps 0 writes no others"
    ),
    "accumulate_grad_batches": Rule(_count(1), "give a number of packs a rank and optimizer step"),
    "max_time": Rule(_duration, "give a duration as DD:HH:MM:SS"),
    "gradient_clip_val": Rule(
        lambda value: value is None or 0 <= value < math.inf,
        "give the largest norm of a gradient; 0 or null: it is not clipped",
    ),
    "gradient_clip_algorithm": Rule(_only(None, "norm"), "only norm is supported"),
    "use_distributed_sampler": Rule(_only(True), "there is no sampler: a rank's packs follow from their numbers"),
    "barebones": Rule(_only(False), "a run writes its weights, logs and snapshots; use trainer.fast_dev_run to try it"),
    "plugins": Rule(_plugins, "only cluster environments are supported; for precision see model.sharding"),
    "sync_batchnorm": Rule(_only(False), "the model has no batch normalisation"),
    "reload_dataloaders_every_n_epochs": Rule(_only(0), "no epoch ends, so nothing would be reloaded"),
    "default_root_dir": Rule(_only(None), "use --output_dir"),
    "model_registry": Rule(_only(None), "weights are written to --output_dir"),
    "callbacks": Rule(lambda value: refused_callback(value) is None, ""),
}
"""Arguments of which some values would have no effect here, or the wrong one."""


def refused_callback(callbacks: Any) -> tuple[str, str] | None:
    """Name of the first callback that is refused, and the reason."""
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        name = str(getattr(callback, "class_path", type(callback).__name__)).rpartition(".")[2]
        if name in _CALLBACKS:
            return name, _CALLBACKS[name]
    return None


def check_trainer(settings: Mapping[str, Any], *, trains: bool = True) -> None:
    """Refuses what would not be obeyed, before anything is built.

    Args:
        settings: the Trainer's arguments as parsed.
        trains: whether weights will be updated; without that, they may be held in a lower precision.

    Raises:
        UserError: naming the key, its value, and what to write instead.
    """
    for name, rule in RULES.items():
        value = settings.get(name)
        if name not in settings or rule.allows(value) or (name == "precision" and not trains):
            continue
        callback = refused_callback(value) if name == "callbacks" else None
        shown, reason = callback or (str(value), rule.reason)
        raise UserError(f"trainer.{name} {shown}: {reason}")
    if settings.get("accelerator") == "cpu":
        _check_processes(settings.get("devices", "auto"))
    max_steps, min_steps = settings.get("max_steps", -1), settings.get("min_steps") or 0
    if 0 <= max_steps < min_steps:
        raise UserError(f"trainer.min_steps {min_steps}: is more than trainer.max_steps {max_steps}")
    stops_early = "EarlyStopping" in str(settings.get("callbacks") or "")
    if stops_early and type(settings.get("val_check_interval")) in (float, type(None)):
        raise UserError(
            "trainer.callbacks EarlyStopping: looks at each validation, but there is none; set "
            "trainer.val_check_interval to a number of optimizer steps"
        )


def _check_processes(devices: Any) -> None:
    """Raises `UserError` unless `devices` is a reasonable number of processes on CPUs."""
    limit = max(_MAX_PROCESSES, 4 * (os.cpu_count() or 1))
    number = int(devices) if isinstance(devices, str) and devices.isdecimal() else devices
    if number != "auto" and not (type(number) is int and 1 <= number <= limit):
        raise UserError(f"trainer.devices {devices}: on CPUs, give a number of processes from 1 to {limit}")
