"""When a run saves itself: every so many steps, at the end, and when it is told to stop."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

from scone_pl.errors import UserError
from scone_pl.messages import warn
from scone_pl.training.sharding import FullySharded
from scone_pl.training.snapshots import SingleFileIO, prune, snapshot_name, snapshots

_SHELL_STATUS = 128
"""Plus the signal's number: what a shell reports for it."""
_MOST_FAILED = 2
"""Snapshots in a row that cannot be written before the run stops: what it trained on would be lost anyway."""
_SNAPSHOT_BYTES = 12
"""Of a weight that trains: itself and AdamW's two moments, in float32."""
_AVERAGE_BYTES = 4
"""Of its average, if there is one."""


class Stopped(SystemExit):
    """A run that saved itself because it was told to stop; running the same command again goes on."""


class Saving(Checkpoint):
    """Writes snapshots, counted in optimizer steps, and keeps the newest.

    On SIGTERM (preemption) or Ctrl-C the step under way is finished, a snapshot written, and the process ends with
    status 143 or 130. A second Ctrl-C stops at once.
    """

    def __init__(
        self, every_n_steps: int = 500, keep_last: int = 2, keep_every_n_steps: int = 0, background: bool = True
    ) -> None:
        """When to save and what to keep.

        Args:
            every_n_steps: Optimizer steps between two snapshots; 0 = only at the end and when stopped.
            keep_last: So many of the newest snapshots stay.
            keep_every_n_steps: Snapshots at multiples of this stay for good; 0 = none.
            background: Train on while a snapshot is written; it is copied to host memory first.

        Raises:
            UserError: a number that makes no sense.
        """
        if every_n_steps < 0 or keep_every_n_steps < 0 or keep_last < 1:
            raise UserError(
                "checkpoint: every_n_steps and keep_every_n_steps must be at least 0, and keep_last at least 1"
            )
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.keep_every_n_steps = keep_every_n_steps
        self.background = background
        self.folder = Path("checkpoints")
        self.failed = self._failed_in_a_row = 0
        """Snapshots that could not be written."""
        self._saved = self._seen = 0
        """Steps of the newest snapshot and of the last look."""
        self._told = 0
        self._handlers: dict[int, Any] = {}
        self._group: dist.ProcessGroup | None = None

    # ------------------------------------------------------------------ being told to stop
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not isinstance(trainer.strategy, FullySharded):
            trainer.strategy.checkpoint_io = SingleFileIO()
        # Lightning's own handlers save and talk to other ranks from within, wherever the signal came in.
        if stage == "fit":
            trainer._signal_connector.register_signal_handlers = self._listen  # type: ignore[method-assign]

    def _listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._note)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        recount_packs(checkpoint, trainer.accumulate_grad_batches)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")
        self._saved = self._seen = trainer.global_step
        trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        size = _SNAPSHOT_BYTES + _AVERAGE_BYTES * (getattr(pl_module, "ema", None) is not None)
        if not trainer.fast_dev_run:
            check_disk(self.folder, trained * size, self.keep_last)
        self._stop_if_told(trainer)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Nothing more: the signal may come in the middle of a collective or of a file.
        if self._told == number == signal.SIGINT:
            raise KeyboardInterrupt
        self._told = number

    def _told_by_any(self) -> int:
        """The signal that any rank got; the same answer on all."""
        if self._group is None:
            return self._told
        told = torch.tensor(self._told)
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self._group)
        return int(told)

    def _stop_if_told(self, trainer: pl.Trainer, *, logged: bool = True) -> None:
        """Saves and stops; `logged` = Lightning has passed this step's metrics to the loggers already."""
        number = self._told_by_any()
        if not number:
            return
        if not logged:  # no later run makes this step again
            trainer._logger_connector.update_train_step_metrics()
        self.save(trainer)
        self._wait(trainer, must=True)
        name = signal.Signals(number).name
        rank_zero_info(f"stopped by {name} after step {trainer.global_step}, all is saved; the same command goes on")
        # Lightning, which started the other ranks, would take their status for a crash and kill the first one.
        raise Stopped(_SHELL_STATUS + number if trainer.is_global_zero else 0)

    # ------------------------------------------------------------------ saving
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._seen:
            return  # within the packs of one optimizer step
        self._seen = step
        if self.every_n_steps and step % self.every_n_steps == 0:
            self.save(trainer)
        self._stop_if_told(trainer, logged=False)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_told(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last snapshot has to be there: what is exported and trained on starts from it."""
        self.save(trainer)
        self._wait(trainer, must=True)
        self._stop_if_told(trainer)  # in the meantime: no stage behind this one may start

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def save(self, trainer: pl.Trainer) -> None:
        """Begins a snapshot of the present step, unless there is one; of a trial run nobody wants any."""
        step = trainer.global_step
        path = self.folder / snapshot_name(step)
        self._wait(trainer)
        if step == self._saved or trainer.fast_dev_run:
            return
        trainer.save_checkpoint(path, weights_only=False)
        self._saved = step
        if not self.background:
            self._wait(trainer)

    def _wait(self, trainer: pl.Trainer, *, must: bool = False) -> None:
        """For the snapshot under way; one that fails is told and counted, and the run goes on with those before."""
        if isinstance(trainer.strategy, FullySharded):
            try:
                if trainer.strategy.wait_for_snapshot():
                    self._failed_in_a_row = 0
            except UserError as error:
                self.failed += 1
                self._failed_in_a_row += 1
                self._saved = -1
                if must or self._failed_in_a_row >= _MOST_FAILED:
                    raise
                warn(f"{error}; training goes on until the next one ({self.failed} failed so far)")
                return
        if trainer.is_global_zero:
            prune(self.folder, self.keep_last, self.keep_every_n_steps)


def recount_packs(checkpoint: dict[str, Any], packs: int) -> None:
    """Lets the packs of a step, of which there may be more or fewer than when it was saved, begin with the next one.

    Lightning counts a rank's packs and makes a step where `packs` divides their number.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        surplus = checkpoint["global_step"] * packs - counts["ready"]
        counts.update({stage: count + surplus for stage, count in counts.items()})


def check_disk(folder: Path, size: int, keep_last: int) -> None:
    """Raises `UserError` if the disk under `folder` has no room for the snapshots to come: before hours of training.

    One more of `size` bytes than `keep_last`, until the oldest goes; those of a run that goes on are there already.
    """
    needed = size * max(1, keep_last + 1 - len(snapshots(folder)))
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 1e9:.1f} GB free, but the snapshots to come need {needed / 1e9:.1f} GB there; make "
            "room, choose another --output_dir, or lower checkpoint.keep_last"
        )
