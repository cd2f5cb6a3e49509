"""A data worker that dies is a message at the next batch, whatever it was doing."""

import dataclasses
import multiprocessing
import os
import signal
import threading
import time

import pytest
from data_helpers import make_sample
from torch.utils.data import IterableDataset, get_worker_info

from scone_pl.data.loading import PackLoader
from scone_pl.data.stream import Batch, StreamPosition
from scone_pl.model.builder import SequenceBuilder


class Batches(IterableDataset):
    """Batches that do not fit into a pipe (64 kB) if they are `large`."""

    def __init__(self, sequence_format, large, count=4):
        self.sequence_format, self.large, self.count = sequence_format, large, count

    def __iter__(self):
        for number in range(get_worker_info().id, self.count, get_worker_info().num_workers):
            sample = dataclasses.replace(make_sample(number), target=bytes(200_000 if self.large else 1))
            yield Batch(
                SequenceBuilder(self.sequence_format).build(),
                StreamPosition(0, number, number),
                seed=0,
                samples=(sample,),
            )


@pytest.fixture(autouse=True)
def children():
    """Children of this process before the test; torch's handler of their deaths, of earlier tests' loaders, is off."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield set(multiprocessing.active_children())
    signal.signal(signal.SIGCHLD, before)


def numbers(batches):
    return [batch.position.number for batch in batches]


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_while_it_sends(sequence_format, workers, children):
    batches = iter(PackLoader(Batches(sequence_format, large=True, count=40), sequence_format, workers))
    before = signal.getsignal(signal.SIGCHLD)
    assert next(batches).failure is None
    time.sleep(1)  # nobody reads: the pipe is full, a worker is in the middle of a batch
    for worker in set(multiprocessing.active_children()) - children:
        worker.kill()
        worker.join()
    began = time.monotonic()
    assert "a data worker process ended" in list(batches)[-1].failure
    assert time.monotonic() - began < 60
    assert signal.getsignal(signal.SIGCHLD) is before


def test_killed_while_it_is_waited_for(sequence_format, children):
    class Stuck(Batches):
        def __iter__(self):
            yield from super().__iter__()
            time.sleep(600)

    batches = iter(PackLoader(Stuck(sequence_format, large=False, count=1), sequence_format, 1))
    assert next(batches).failure is None
    (worker,) = set(multiprocessing.active_children()) - children
    threading.Timer(0.5, os.kill, (worker.pid, signal.SIGKILL)).start()
    assert "a data worker process ended" in next(batches).failure


@pytest.mark.parametrize("workers", [1, 2])
def test_the_end_of_the_data_is_no_death(sequence_format, workers):
    assert numbers(PackLoader(Batches(sequence_format, large=False), sequence_format, workers)) == [0, 1, 2, 3]
