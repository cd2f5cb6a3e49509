"""The loader between the stream and the trainer: the death of a data worker stops the run on every rank."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset

from scone_pl.data.stream import Batch, StreamPosition
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.sequence import SequenceFormat
from scone_pl.processes import PREEMPTION_SIGNALS

_GRACE_SECONDS = 60
"""How long a worker survives a preemption signal."""


def _ignore_signals(worker: int) -> None:
    """Leaves signals to the main process, which finishes its step and saves first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in PREEMPTION_SIGNALS:
        signal.signal(number, lambda number, frame: signal.alarm(_GRACE_SECONDS))


class PackLoader:
    """A DataLoader for datasets that yield whole batches."""

    def __init__(self, dataset: IterableDataset[Batch], sequence_format: SequenceFormat, num_workers: int) -> None:
        """`sequence_format`: for the empty batch that carries a failure."""
        self.dataset = dataset
        self.num_workers = num_workers
        self._sequence_format = sequence_format
        # Workers are not persistent: every pass must start from the current cursor.
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=2 if num_workers else None,
            worker_init_fn=_ignore_signals,
        )

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from self._batches()
        except Exception as error:  # of any type: the other ranks would wait for this one
            failure = self._failure_message(error)
            if failure is None:
                raise
            yield Batch(
                SequenceBuilder(self._sequence_format).build(), StreamPosition(0, 0, 0), seed=0, failure=failure
            )

    def _failure_message(self, error: Exception) -> str | None:
        """Message for all ranks; None = raise instead (a single process, and no worker died)."""
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raised_in_worker = "in DataLoader worker process" in text
        if self.num_workers and isinstance(error, (RuntimeError, OSError, EOFError)) and not raised_in_worker:
            # A dead worker shows as PyTorch's RuntimeError, or as a connection closed while a batch is received.
            return (
                f"a data worker process ended ({text}): out of memory or shared memory? Use fewer data.num_workers; "
                "run the same command to resume from the last checkpoint"
            )
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            traceback.print_exception(error)
            return f"reading data failed on rank {dist.get_rank()} ({text}); its traceback is in the log"
        return None

    def _batches(self) -> Iterator[Batch]:
        if not self.num_workers or threading.current_thread() is not threading.main_thread():
            yield from self._loader
            return
        before, existing = signal.getsignal(signal.SIGCHLD), set(multiprocessing.active_children())
        iterator = iter(self._loader)
        workers = [process for process in multiprocessing.active_children() if process not in existing]
        # PyTorch's handler would raise in the middle of a step on this rank, while the others wait in a collective.
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        while True:
            with _watched(workers):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch


@contextlib.contextmanager
def _watched(workers: list[BaseProcess]) -> Iterator[None]:
    """Raises while a batch is awaited if a worker dies: one killed while sending leaves half a batch in an open pipe.

    Raises:
        RuntimeError: a worker has died.
    """

    def check(*_: object) -> None:
        if dead := [worker.pid for worker in workers if worker.exitcode]:
            raise RuntimeError(f"process {dead[0]} was killed or failed")

    before = signal.signal(signal.SIGCHLD, check)
    try:
        check()
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
