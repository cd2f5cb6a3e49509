"""When a run writes snapshots: every N steps, at the end, and on a stop request."""

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
from scone_pl.processes import PREEMPTION_SIGNALS
from scone_pl.ranges import check_whole
from scone_pl.training.lightning_internals import flush_step_metrics, recount_packs, replace_signal_handlers
from scone_pl.training.sharding import FullySharded
from scone_pl.training.snapshots import SingleFileIO, prune, snapshot_name, snapshots
from scone_pl.training.trainer_attributes import is_trial

_SHELL_STATUS = 128
"""Plus the signal's number: what a shell reports for it."""
_MAX_FAILURES = 2
"""Consecutive snapshots that cannot be written before the run stops, as further training could not be saved."""
_SNAPSHOT_BYTES = 12
"""Per trained weight: itself and AdamW's two moments, in float32."""
_AVERAGE_BYTES = 4
"""Per trained weight, for its moving average if there is one."""


class Stopped(SystemExit):
    """Raised after a stop request, once the state is saved; running the same command again resumes."""


class Saving(Checkpoint):
    """Writes snapshots, counted in optimizer steps, and keeps the newest.

    On a stop request, SIGTERM or SIGUSR1 (preemption) or Ctrl-C, the current step is finished, a snapshot written, and
    the process exits with status 143, 138 or 130. A second Ctrl-C stops at once.
    """

    def __init__(
        self, every_n_steps: int = 500, keep_last: int = 2, keep_every_n_steps: int = 0, background: bool = True
    ) -> None:
        """When to save and what to keep.

        Args:
            every_n_steps: Optimizer steps between two snapshots; 0 = only at the end and on a stop request.
            keep_last: Number of newest snapshots that are kept.
            keep_every_n_steps: Snapshots at multiples of this are never deleted; 0 = none.
            background: Continue training while a snapshot is written; it is copied to host memory first.

        Raises:
            UserError: a number out of range, or `keep_every_n_steps` is no multiple of `every_n_steps`.
        """
        check_whole("checkpoint.every_n_steps", every_n_steps)
        check_whole("checkpoint.keep_last", keep_last, minimum=1)
        check_whole("checkpoint.keep_every_n_steps", keep_every_n_steps)
        if keep_every_n_steps and (every_n_steps == 0 or keep_every_n_steps % every_n_steps):
            raise UserError(
                f"checkpoint.keep_every_n_steps {keep_every_n_steps} must be a multiple of checkpoint.every_n_steps "
                f"({every_n_steps}): other steps have no snapshot to keep"
            )
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.keep_every_n_steps = keep_every_n_steps
        self.background = background
        self.folder = Path("checkpoints")
        self.failed = self._failed_in_a_row = 0
        """Snapshots that could not be written."""
        self._saved = self._seen = 0
        """Optimizer steps of the newest snapshot, and of the last step that was looked at."""
        self._signal = 0
        """Number of the signal received, 0 if none."""
        self._previous_handlers: dict[int, Any] = {}
        self._group: dist.ProcessGroup | None = None

    # ------------------------------------------------------------------ stop requests
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not isinstance(trainer.strategy, FullySharded):
            trainer.strategy.checkpoint_io = SingleFileIO()
        if stage == "fit":
            replace_signal_handlers(trainer, self._register_handlers)

    def _register_handlers(self) -> None:
        for number in (*PREEMPTION_SIGNALS, signal.SIGINT):
            self._previous_handlers[number] = signal.signal(number, self._handle)

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
        if not is_trial(trainer):
            check_disk(self.folder, trained * size, self.keep_last)
        self._stop_if_requested(trainer)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Nothing more: the signal may interrupt a collective or the writing of a file.
        if self._signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def _signal_of_any_rank(self) -> int:
        """The signal that any rank received, 0 if none; the same on all ranks."""
        if self._group is None:
            return self._signal
        number = torch.tensor(self._signal)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self._group)
        return int(number)

    def _stop_if_requested(self, trainer: pl.Trainer, *, logged: bool = True) -> None:
        """Saves and stops on a stop request; `logged`: this step's metrics have reached the loggers already."""
        number = self._signal_of_any_rank()
        if not number:
            return
        if not logged:  # no later run makes this step again
            flush_step_metrics(trainer)
        self.save(trainer)
        self._wait(trainer, must=True)
        name = signal.Signals(number).name
        rank_zero_info(
            f"stopped by {name} after step {trainer.global_step}, state saved; run the same command to resume"
        )
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
        self._stop_if_requested(trainer, logged=False)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_requested(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last snapshot must have been written: exports and later training start from it."""
        self.save(trainer)
        self._wait(trainer, must=True)
        self._stop_if_requested(trainer)  # meanwhile: no later stage may start

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        while self._previous_handlers:
            signal.signal(*self._previous_handlers.popitem())

    def save(self, trainer: pl.Trainer) -> None:
        """Begins a snapshot of the current step, unless there is one or this is a trial run."""
        step = trainer.global_step
        path = self.folder / snapshot_name(step)
        self._wait(trainer)
        if step == self._saved or is_trial(trainer):
            return
        trainer.save_checkpoint(path, weights_only=False)
        self._saved = step
        if not self.background:
            self._wait(trainer)

    def _wait(self, trainer: pl.Trainer, *, must: bool = False) -> None:
        """Waits for the snapshot being written; failures are logged and counted, and the run continues.

        Raises:
            UserError: it could not be written, and it `must` be or too many in a row could not.
        """
        if isinstance(trainer.strategy, FullySharded):
            try:
                if trainer.strategy.wait_for_snapshot():
                    self._failed_in_a_row = 0
            except UserError as error:
                self.failed += 1
                self._failed_in_a_row += 1
                self._saved = -1
                if must or self._failed_in_a_row >= _MAX_FAILURES:
                    raise
                warn(f"{error}; training continues until the next one ({self.failed} failed so far)")
                return
        if trainer.is_global_zero:
            prune(self.folder, self.keep_last, self.keep_every_n_steps)


def check_disk(folder: Path, size: int, keep_last: int) -> None:
    """Raises `UserError` if the disk has no room for the snapshots to come, before hours of training.

    Room is needed for one more of `size` bytes than `keep_last`, until the oldest is deleted; those of a resumed run
    are there already.
    """
    needed = size * max(1, keep_last + 1 - len(snapshots(folder)))
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 1e9:.1f} GB free, but the snapshots to come need {needed / 1e9:.1f} GB there; make "
            "room, choose another --output_dir, or lower checkpoint.keep_last"
        )
