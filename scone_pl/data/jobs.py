"""Jobs over worker processes: results in the order of the jobs, few of them waiting, and nobody left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from scone_pl.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
Tick = Callable[[], None]
"""Called by a job after each of its items; moves the progress bar."""

_MOST_WORKERS = 64
"""On a machine of few cores; each process takes seconds to start and some hundred MB."""

_task: Any = None
_shared: Any = None
_done: Any = None


def check_workers(workers: int) -> None:
    """Raises a `UserError` for a number of processes that no machine starts."""
    most = max(_MOST_WORKERS, 4 * len(os.sched_getaffinity(0)))
    if not 1 <= workers <= most:
        raise UserError(f"--workers is {workers}; it must be 1 to {most}")


def run_jobs(
    task: Callable[[Any, Job, Tick], Result], shared: Any, jobs: Iterable[Job], *, workers: int, bar: tqdm
) -> Iterator[Result]:
    """Yields `task(shared, job, tick)` for every job, in order.

    Args:
        task: a module's function.
        shared: what all jobs need; sent to each worker once.
        jobs: taken as workers get free, so they may be many.
        workers: processes; 1 = this one.
        bar: counts ticks.

    Raises:
        UserError: a worker died.
    """
    if workers <= 1:
        for job in jobs:
            yield task(shared, job, lambda: bar.update() and None)
        return
    context = multiprocessing.get_context("spawn")  # threads of pyarrow and torch do not survive a fork
    done = context.Value("q", 0)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _begin, (task, shared, done))
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(_run, job))
            if len(waiting) > 2 * workers:
                yield _wait(waiting.popleft(), done, bar)
        while waiting:
            yield _wait(waiting.popleft(), done, bar)
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (out of memory?); run the same command again, with fewer --workers"
        ) from None
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        # The pool's own thread joins them: joined by two threads, an ended process can seem to run.
        pool.shutdown(wait=True, cancel_futures=True)


def _wait(future: Future[Result], done: Any, bar: tqdm) -> Result:
    while True:
        wait([future], timeout=0.5)
        with done.get_lock():
            ticks, done.value = done.value, 0
        bar.update(ticks)
        if future.done():
            return future.result()


def _begin(task: Callable[..., Any], shared: Any, done: Any) -> None:
    global _task, _shared, _done
    _task, _shared, _done = task, shared, done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this a killed conversion would leave its workers waiting for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(job: Any) -> Any:
    return _task(_shared, job, _tick)


def _tick() -> None:
    with _done.get_lock():
        _done.value += 1
