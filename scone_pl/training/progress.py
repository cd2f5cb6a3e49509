"""Progress of the trainer's loops: Lightning's rich bar on a terminal, lines in a log."""

from __future__ import annotations

import math
import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

from scone_pl.data.stream import Batch
from scone_pl.progress import Lines


def trainer_progress() -> ProgressBar:
    """For where the output goes: a bar would be written to a log again and again, and wrap."""
    return StepProgressBar() if sys.stdout.isatty() else StepLines()


def short_names(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics without the logger's version, `train/loss` as `loss`."""
    return {name.rsplit("/", 1)[-1]: value for name, value in metrics.items() if name != "v_num"}


class StepLines(ProgressBar):
    """Lines on standard error: the first and the last step or batch, and some between (`scone_pl.progress.Lines`)."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._loop = ""
        self._lines = Lines()

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def _show(self, loop: str, done: int, total: float, values: dict[str, Any] | None = None) -> None:
        if not self._enabled:
            return
        first, self._loop = self._loop != loop, loop
        end = f" of {total:.0f}" if 0 <= total < math.inf else ""
        named = [f"{name} {v:.4g}" for name, v in (values or {}).items() if isinstance(v, (int, float))]
        self._lines.show(lambda: ", ".join([f"{loop} {done}{end}", *named]), must=first or done == total)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        values = short_names(self.get_metrics(trainer, pl_module))
        self._show("training: step", trainer.global_step, trainer.max_steps, values)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = trainer.callback_metrics.get("val/loss")
        if self._enabled and trainer.state.fn == "fit" and not trainer.sanity_checking and loss is not None:
            line = f"validation: step {trainer.global_step}, val/loss {float(loss):.4g}"
            print(line, file=sys.stderr, flush=True)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.has_dataloader_changed(dataloader_idx)
        if trainer.state.fn == "validate":
            self._show("validate: pack", batch_idx + 1, self.total_val_batches_current_dataloader)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.has_dataloader_changed(dataloader_idx)
        self._show("test: pack", batch_idx + 1, self.total_test_batches_current_dataloader)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.has_dataloader_changed(dataloader_idx)
        self._show("predict: sample", batch_idx + 1, self.total_predict_batches_current_dataloader)


class StepProgressBar(RichProgressBar):
    """A bar over the stage's steps, as the data are an infinite stream."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        return short_names(super().get_metrics(trainer, pl_module))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)  # it adds 1

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"
