"""The loader between the stream and the trainer: a data worker that dies ends the run on every rank, none hangs."""

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

_GRACE = 60
"""Seconds that a worker lives on after SIGTERM."""


def _outlive_signals(worker: int) -> None:
    """Signals to the whole process group are the main process's to answer: it finishes its step and saves first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_GRACE))


class PackLoader:
    """A DataLoader of batches that are made by the dataset."""

    def __init__(self, dataset: IterableDataset, sequence_format: SequenceFormat, num_workers: int) -> None:
        """`sequence_format`: for the empty batch that carries a failure."""
        self.dataset = dataset
        self.num_workers = num_workers
        self._sequence_format = sequence_format
        # Not persistent: a new pass must start from the cursor as it is then.
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=2 if num_workers else None,
            worker_init_fn=_outlive_signals,
        )

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from self._batches()
        except Exception as error:  # whatever it is, the other ranks would wait for this one
            failure = self._failure(error)
            if failure is None:
                raise
            yield Batch(
                SequenceBuilder(self._sequence_format).build(), StreamPosition(0, 0, 0), seed=0, failure=failure
            )

    def _failure(self, error: Exception) -> str | None:
        """What to tell all ranks; None = there are no others and it is no dead worker, so it may be raised."""
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raised_there = "in DataLoader worker process" in text
        if self.num_workers and isinstance(error, (RuntimeError, OSError, EOFError)) and not raised_there:
            # A dead worker shows as PyTorch's RuntimeError, or as a connection that ends while a batch is received.
            return (
                f"a data worker process ended ({text}): out of memory or shared memory? Use fewer data.num_workers; "
                "the same command goes on from the last checkpoint"
            )
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            traceback.print_exception(error)
            return f"reading data failed on rank {dist.get_rank()} ({text}); its traceback is in the log"
        return None

    def _batches(self) -> Iterator[Batch]:
        if not self.num_workers or threading.current_thread() is not threading.main_thread():
            yield from self._loader
            return
        before, others = signal.getsignal(signal.SIGCHLD), set(multiprocessing.active_children())
        iterator = iter(self._loader)
        workers = [process for process in multiprocessing.active_children() if process not in others]
        # PyTorch's handler would raise in mid-step, on this rank alone, while the others wait in a collective.
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        while True:
            with _alive(workers):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch


@contextlib.contextmanager
def _alive(workers: list[BaseProcess]) -> Iterator[None]:
    """Waits for workers only while all live: one killed as it sends leaves half a batch in a pipe that stays open.

    Raises:
        RuntimeError: a worker has died before, or dies meanwhile.
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
