"""What Lightning does not document is as it was when it was used; a test that fails names what has changed."""

from __future__ import annotations

import copy
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import pytest
from lightning.fabric.loggers import logger as lightning_loggers
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from scone_pl.training.lightning_internals import (
    flush_step_metrics,
    recount_packs,
    replace_signal_handlers,
    silent_experiment,
)


class Model(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("value", float(self.global_step))
        return super().training_step(batch, batch_idx)


class Callback(pl.Callback):
    """Notes what happens at the first step, and flushes its metrics."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.registered = 0
        replace_signal_handlers(trainer, self.register)

    def register(self) -> None:
        self.registered += 1

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)
        with patch.object(trainer.logger, "log_metrics") as log:
            flush_step_metrics(trainer)
        self.logged = log.call_args.kwargs["metrics"]


def trainer_in(folder: Path, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_epochs=-1,
        **settings,
    )


def test_own_signal_handlers_and_metrics_of_the_last_step(tmp_path: Path) -> None:
    before, callback = signal.getsignal(signal.SIGTERM), Callback()
    trainer_in(tmp_path, max_steps=1, callbacks=[callback]).fit(Model())
    assert callback.registered == 1
    assert callback.handler is before, "Lightning's own handlers are not registered"
    assert callback.logged["value"] == 0.0


def test_packs_are_counted_anew(tmp_path: Path) -> None:
    """Saved after 3 steps of 2 packs; resumed with 4 packs a step, the next step takes 4 again."""
    trainer = trainer_in(tmp_path, max_steps=3, accumulate_grad_batches=2)
    trainer.fit(Model())
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    packs: list[int] = []

    class Counting(Model):
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            recount_packs(checkpoint, 4)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            packs.append(self.trainer.global_step)
            return super().training_step(batch, batch_idx)

    resumed = trainer_in(tmp_path, max_steps=5, accumulate_grad_batches=4)
    resumed.fit(Counting(), ckpt_path=tmp_path / "saved.ckpt", weights_only=True)
    assert packs == [3, 3, 3, 3, 4, 4, 4, 4]


def test_a_silent_experiment_takes_every_call() -> None:
    silent_experiment().add_scalar("name", 1.0, global_step=3)


def test_a_changed_lightning_is_named() -> None:
    class Other:
        pass

    for act in (lambda: replace_signal_handlers(Other(), lambda: None), lambda: flush_step_metrics(Other())):
        with pytest.raises(RuntimeError, match=r"Lightning [\d.]+\S* differs in Other\._\w+_connector; adapt"):
            act()
    for state in ({"loops": {}}, {"loops": {"fit_loop": {"epoch_loop.batch_progress": {"total": 3}}}}):
        with pytest.raises(RuntimeError, match="differs in the batch progress in a checkpoint"):
            recount_packs(copy.deepcopy(state), 1)
    dummy = lightning_loggers._DummyExperiment
    try:
        del lightning_loggers._DummyExperiment
        with pytest.raises(RuntimeError, match="_DummyExperiment"):
            silent_experiment()
    finally:
        lightning_loggers._DummyExperiment = dummy
