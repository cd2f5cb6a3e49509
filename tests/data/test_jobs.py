"""Jobs over worker processes."""

import multiprocessing
import os
import time

import pytest

from scone_pl.data.jobs import run_jobs
from scone_pl.errors import UserError
from scone_pl.progress import Progress


def double(shared, job, tick):
    tick()
    return shared * job


def die(shared, job, tick):
    os._exit(9)


def test_results_come_in_order_and_other_processes_live_on():
    before = set(multiprocessing.active_children())
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    other.start()
    try:
        with Progress("", None, show=False) as bar:
            assert list(run_jobs(double, 2, range(9), workers=2, bar=bar)) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
        assert set(multiprocessing.active_children()) - before == {other}
        assert other.is_alive()
    finally:
        other.kill()
        other.join()


def test_a_worker_that_dies_is_a_message():
    with (
        Progress("", None, show=False) as bar,
        pytest.raises(UserError, match=r"a worker process died.*fewer --workers"),
    ):
        list(run_jobs(die, None, range(3), workers=2, bar=bar))
