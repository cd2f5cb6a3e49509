"""Runs the arms of a study by seeds, some side by side, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scone_pl.errors import UserError
from scone_pl.files import read_json
from scone_pl.processes import watch
from scone_pl.study.run import check_evaluations, check_folder, folder_of, origin_of, prepare, result_file
from scone_pl.study.spec import Study
from scone_pl.study.training import Fit

_POLL = 0.5
_SHELL_STATUS = 128
"""Plus the signal's number: what a shell reports for it."""


@dataclass(frozen=True)
class Job:
    """One arm with one seed."""

    study: Study
    arm: str
    seed: int
    folder: Path
    result: Path
    """Its file, which exists when it is finished."""
    quick: bool = False

    @property
    def command(self) -> list[str]:
        """`python -m scone_pl` with these arguments is the run."""
        options = [str(self.study.file), self.arm, "--scale", self.study.scale, "--seed", str(self.seed)]
        options += ["--quick", "true"] if self.quick else []
        overrides = self.study.overrides
        options += ["--evaluators", json.dumps(overrides.evaluators)] if overrides.evaluators else []
        options += ["--result", str(self.result), "--runner", str(os.getpid())]
        return ["study", "arm", *options, *(["--", *overrides.fit] if overrides.fit else [])]

    def start(self) -> subprocess.Popen[bytes]:
        """A process, its output in `log.txt` of its folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        threads = str(self.study.threads)
        limits = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} if self.study.threads else {}
        with (self.folder / "log.txt").open("ab") as log:
            command = [sys.executable, "-m", "scone_pl", *self.command]
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **limits})


def run_study(
    study: Study, seeds: int, fit: Fit, *, jobs: int, quick: bool = False, arms: Sequence[str] = ()
) -> list[Job]:
    """Runs every arm with every seed, before them whatever their weights come from, quick as well if they are.

    Args:
        study: as read.
        seeds: runs of each arm.
        fit: the verb, for recipes to be prepared.
        jobs: runs side by side.
        quick: see `Study.quick`.
        arms: only these; by default all.

    Returns:
        The jobs, all finished.

    Raises:
        UserError: a run failed, or cannot work.
    """
    chosen, numbers = list(arms) or list(study.arms), range(study.first_seed, study.first_seed + seeds)
    _check(study, chosen, quick=quick)
    return _run_arms(study, chosen, numbers, fit, jobs=jobs, quick=quick)


def _check(study: Study, arms: Sequence[str], *, quick: bool) -> None:
    """Raises `UserError` if an evaluation of these arms, or of those that they need, cannot work."""
    for name, evaluation in study.evaluations.items():
        evaluation.check_inputs(f"{study.name}, evaluations.{name}")
    check_evaluations(study, arms, quick=quick)
    for other, names in sources_of(study, arms).items():
        if other != study.name:
            _check(study.other(other), names, quick=quick)


def _run_arms(
    study: Study, arms: Sequence[str], numbers: Sequence[int], fit: Fit, *, jobs: int, quick: bool
) -> list[Job]:
    prepare(study, fit)
    for other, names in sources_of(study, arms).items():
        _run_arms(study.other(other), names, numbers, fit, jobs=jobs, quick=quick)
    planned = jobs_of(study, arms, numbers, quick=quick)
    run_all(planned, side_by_side=jobs)
    return planned


def sources_of(study: Study, arms: Sequence[str]) -> dict[str, list[str]]:
    """Study -> its arms whose weights `arms` start from or evaluate."""
    sources: dict[str, list[str]] = {}
    for arm in arms:
        if origin := origin_of(study, arm):
            names = sources.setdefault(origin[0], [])
            names += [origin[1]] if origin[1] not in names else []
    return sources


def jobs_of(study: Study, arms: Sequence[str], numbers: Sequence[int], *, quick: bool = False) -> list[Job]:
    """`arms` with every seed of `numbers`, seeds outermost, so that an interrupted study has whole comparisons.

    Raises:
        UserError: an arm starts from weights that do not exist yet, or a run's data have changed since.
    """
    return [_job(study, arm, seed, quick=quick) for arm, seed in pairs_of(study, arms, numbers)]


def pairs_of(study: Study, arms: Sequence[str], numbers: Sequence[int]) -> list[tuple[str, int]]:
    """(arm, seed) of every run: what is only evaluated and comes from no run has one seed."""
    return [
        (arm, seed)
        for seed in numbers
        for arm in arms
        if study.arm(arm).trained or origin_of(study, arm) or seed == numbers[0]
    ]


def _job(study: Study, arm: str, seed: int, *, quick: bool) -> Job:
    folder = folder_of(study, arm, seed, quick=quick)
    check_folder(study, arm, folder, quick=quick)
    return Job(study, arm, seed, folder, result_file(study, folder, quick=quick), quick)


def run_all(jobs: Sequence[Job], *, side_by_side: int) -> None:
    """Runs what is not finished; prints a line for each run that ends, with the remaining time.

    Raises:
        UserError: a run failed; names its log.
    """
    waiting = [job for job in jobs if not job.result.is_file()]
    print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} already finished, {side_by_side} side by side", flush=True)
    running: dict[subprocess.Popen[bytes], tuple[Job, float]] = {}
    began, done, total = time.perf_counter(), 0, len(waiting)
    with _ended_with_us(running) as stop_signals:
        while waiting or running:
            if stop_signals:
                sys.exit(_SHELL_STATUS + stop_signals[0])
            while waiting and len(running) < side_by_side:
                job = waiting.pop(0)
                running[job.start()] = job, time.perf_counter()
            time.sleep(_POLL)
            for process in [p for p in running if p.poll() is not None]:
                job, since = running.pop(process)
                if process.returncode or not job.result.is_file():
                    last = (job.folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
                    raise UserError(f"{job.arm} seed {job.seed} failed ({' '.join(last)}); see {job.folder}/log.txt")
                done += 1
                now = time.perf_counter()
                left = (now - began) / done * (total - done) / 60
                name = f"{job.study.name} {job.arm} seed {job.seed}"
                print(
                    f"[{done}/{total}] {name}: {_summary(job)} ({now - since:.0f} s), {left:.1f} min left", flush=True
                )


@contextlib.contextmanager
def _ended_with_us(running: dict[subprocess.Popen[bytes], Any]) -> Iterator[list[int]]:
    """Stops the runs with this process; they resume from their last checkpoint next time.

    Yields:
        Stop signals received: only noted, as one may arrive while a process is being started.
    """
    received: list[int] = []
    # Under nohup the terminal's end is ignored, and stays so.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with(runner: int) -> None:
    """Stops this process, as by SIGTERM, once its parent `runner` is gone, however that ended."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal's end is the runner's to pass on, as SIGTERM
    watch(runner)


def _summary(job: Job) -> str:
    reports = read_json(job.result, dict)["evaluations"]
    parts = [f"{name} {type(job.study.evaluations[name]).summary(report)}" for name, report in reports.items()]
    return ", ".join(parts[:2])
