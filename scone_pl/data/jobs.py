"""A process pool that yields results in order, bounds pending jobs, and leaves no worker behind."""

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

from scone_pl.errors import UserError
from scone_pl.progress import Progress

Job = TypeVar("Job")
Result = TypeVar("Result")
Tick = Callable[[], None]
"""Called by a job after each of its items; advances the progress bar."""

_MAX_WORKERS = 64
"""Or 4 per core if that is more; each process takes seconds to start and a few hundred MB."""

_task: Any = None
_shared: Any = None
_ticks: Any = None


def check_workers(workers: int) -> None:
    """Raises a `UserError` for an unreasonable number of processes."""
    limit = max(_MAX_WORKERS, 4 * len(os.sched_getaffinity(0)))
    if not 1 <= workers <= limit:
        raise UserError(f"--workers is {workers}; it must be 1 to {limit}")


def run_jobs(
    task: Callable[[Any, Job, Tick], Result], shared: Any, jobs: Iterable[Job], *, workers: int, bar: Progress
) -> Iterator[Result]:
    """Yields `task(shared, job, tick)` for every job, in order.

    Args:
        task: a module-level function.
        shared: argument of all jobs, sent to each worker once.
        jobs: consumed lazily.
        workers: number of processes; 1 = the calling process.
        bar: advanced by ticks.

    Raises:
        UserError: a worker process died.
    """
    if workers <= 1:
        for job in jobs:
            yield task(shared, job, bar.advance)
        return
    context = multiprocessing.get_context("spawn")  # pyarrow's and torch's threads do not survive a fork
    ticks = context.Value("q", 0)
    existing = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _init_worker, (task, shared, ticks))
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(_run, job))
            if len(waiting) > 2 * workers:
                yield _wait(waiting.popleft(), ticks, bar)
        while waiting:
            yield _wait(waiting.popleft(), ticks, bar)
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (out of memory?); run the same command again, with fewer --workers"
        ) from None
    finally:
        for process in set(multiprocessing.active_children()) - existing:
            process.terminate()
        # The pool's own thread joins them; a process joined by two threads can appear alive after it ended.
        pool.shutdown(wait=True, cancel_futures=True)


def _wait(future: Future[Result], ticks: Any, bar: Progress) -> Result:
    while True:
        wait([future], timeout=0.5)
        with ticks.get_lock():
            count, ticks.value = ticks.value, 0
        bar.advance(count)
        if future.done():
            return future.result()


def _init_worker(task: Callable[..., Any], shared: Any, ticks: Any) -> None:
    global _task, _shared, _ticks
    _task, _shared, _ticks = task, shared, ticks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent terminates its workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exits when the parent process is gone, so that a killed conversion leaves no idle workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(job: Any) -> Any:
    return _task(_shared, job, _tick)


def _tick() -> None:
    with _ticks.get_lock():
        _ticks.value += 1
