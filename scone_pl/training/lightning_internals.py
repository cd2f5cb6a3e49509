"""The only module that uses what Lightning does not document; each use is checked first and fails clearly.

`tests/training/test_lightning_internals.py` runs all of it, so that an upgrade of Lightning that changes something is
noticed there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
import lightning.pytorch as pl


def replace_signal_handlers(trainer: pl.Trainer, register: Callable[[], None]) -> None:
    """Makes `fit` call `register` in place of registering Lightning's handlers.

    Those save and talk to other ranks from within, wherever the signal interrupted the program.
    """
    connector = _attribute(trainer, "_signal_connector")
    _attribute(connector, "register_signal_handlers")
    connector.register_signal_handlers = register


def flush_step_metrics(trainer: pl.Trainer) -> None:
    """Passes what this training step logged to the loggers, which otherwise happens after its last hook."""
    _attribute(_attribute(trainer, "_logger_connector"), "update_train_step_metrics")()


def silent_experiment() -> Any:
    """A TensorBoard writer that ignores every call."""
    from lightning.fabric.loggers import logger

    return _attribute(logger, "_DummyExperiment")()


def recount_packs(checkpoint: dict[str, Any], accumulate_grad_batches: int) -> None:
    """Lets the next pack begin an optimizer step, whatever `accumulate_grad_batches` was when the snapshot was written.

    Lightning counts a rank's packs and makes a step where that number divides their count.

    Args:
        checkpoint: what a snapshot holds beside tensors; changed in place.
        accumulate_grad_batches: packs of a rank and step from now on.
    """
    try:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            surplus = checkpoint["global_step"] * accumulate_grad_batches - counts["ready"]
            counts.update({stage: count + surplus for stage, count in counts.items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise _changed("the batch progress in a checkpoint") from error


def _attribute(owner: Any, name: str) -> Any:
    if not hasattr(owner, name):
        raise _changed(f"{getattr(owner, '__name__', type(owner).__name__)}.{name}")
    return getattr(owner, name)


def _changed(what: str) -> RuntimeError:
    return RuntimeError(
        f"Lightning {lightning.__version__} differs in {what}; adapt {__name__}, or pin another version"
    )
