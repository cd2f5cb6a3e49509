"""The loader between the stream and the trainer: a data worker that dies ends the run on every rank, none hangs."""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset

from scone_pl.data.stream import Batch, Place
from scone_pl.model.sequence import SequenceBuilder, SequenceFormat


class PackLoader:
    """A DataLoader of batches that are made by the dataset."""

    def __init__(self, dataset: IterableDataset, form: SequenceFormat, num_workers: int) -> None:
        """`form`: for the empty batch that carries a failure."""
        self.dataset = dataset
        self.num_workers = num_workers
        self._form = form
        # Not persistent: a new pass must start from the cursor as it is then.
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=2 if num_workers else None,
        )

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from self._begin()
        except Exception as error:  # whatever it is, the other ranks would wait for this one
            failure = self._failure(error)
            if failure is None:
                raise
            yield Batch(SequenceBuilder(self._form).build(), Place(0, 0, 0), seed=0, failure=failure)

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

    def _begin(self) -> Iterator[Batch]:
        if not self.num_workers or threading.current_thread() is not threading.main_thread():
            return iter(self._loader)
        # PyTorch would raise from a signal handler in mid-step, on this rank alone, while the others wait in a
        # collective. Without it the loss shows at the next batch, where ranks agree on going on.
        before = signal.getsignal(signal.SIGCHLD)
        iterator = iter(self._loader)
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        return iterator
