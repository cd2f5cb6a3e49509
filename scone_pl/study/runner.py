"""Runs the arms of an experiment by seeds, some side by side, each in a process with one thread."""

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
from scone_pl.processes import watch
from scone_pl.study.spec import Experiment
from scone_pl.study.work import check_folder, check_looks, folder_of, origin_of, prepare, result_file

_POLL = 0.5
_SHELL_STATUS = 128
"""Plus the signal's number: what a shell reports for it."""


@dataclass(frozen=True)
class Job:
    """One arm with one seed."""

    experiment: str
    arm: str
    seed: int
    folder: Path
    result: Path
    """Its file, there when it is done."""

    def start(self, *, quick: bool) -> subprocess.Popen[bytes]:
        """A process of its own, its output in `log.txt` of its folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ["--table", self.experiment, "--arm", self.arm, "--seed", str(self.seed)]
        options += ["--quick", "true"] if quick else []
        options += ["--result", str(self.result), "--runner", str(os.getpid())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with (self.folder / "log.txt").open("ab") as log:
            command = [sys.executable, "-m", "scone_pl", "mini", "arm", *options]
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def run_experiment(experiment: Experiment, seeds: int, *, side_by_side: int, quick: bool = False) -> list[Job]:
    """Runs every arm with every seed, before them whatever their weights come from; returns the jobs, all finished."""
    numbers = range(experiment.first_seed, experiment.first_seed + seeds)
    return _run_arms(experiment, list(experiment.arms), numbers, side_by_side=side_by_side, quick=quick)


def _run_arms(
    experiment: Experiment, arms: Sequence[str], numbers: Sequence[int], *, side_by_side: int, quick: bool
) -> list[Job]:
    check_looks(experiment, arms, quick=quick)
    prepare(experiment)
    looked_at = [arm for arm in arms if experiment.arm(arm).weights_of]
    others = [arm for arm in arms if arm not in looked_at]
    for group, shorter in ((looked_at, quick), (others, False)):  # what arms start from is whole in a quick look too
        for other, names in sources_of(experiment, group).items():
            _run_arms(Experiment.read(other), names, numbers, side_by_side=side_by_side, quick=shorter)
    jobs = jobs_of(experiment, arms, numbers, quick=quick)
    run_all(jobs, side_by_side=side_by_side, quick=quick)
    return jobs


def sources_of(experiment: Experiment, arms: Sequence[str]) -> dict[str, list[str]]:
    """Experiment -> its arms whose weights `arms` start from or look at."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        if origin := origin_of(experiment, arm):
            names = found.setdefault(origin[0], [])
            names += [origin[1]] if origin[1] not in names else []
    return found


def jobs_of(experiment: Experiment, arms: Sequence[str], numbers: Sequence[int], *, quick: bool = False) -> list[Job]:
    """`arms` with every seed of `numbers`, seeds outermost, so that a stopped run has whole comparisons.

    Raises:
        UserError: an arm starts from weights that are not there yet, or a run's data have changed since.
    """
    return [
        _job(experiment, arm, seed, quick=quick)
        for seed in numbers
        for arm in arms
        # What is only looked at and comes from no run has no seed.
        if experiment.arms[arm].trained or origin_of(experiment, arm) or seed == numbers[0]
    ]


def _job(experiment: Experiment, arm: str, seed: int, *, quick: bool) -> Job:
    folder = folder_of(experiment, arm, seed, quick=quick)
    check_folder(experiment, arm, folder, quick=quick)
    return Job(experiment.name, arm, seed, folder, result_file(experiment, folder, quick=quick))


def run_all(jobs: Sequence[Job], *, side_by_side: int, quick: bool = False) -> None:
    """Runs what is not finished; prints a line for each that ends, with the time that is left.

    Raises:
        UserError: a run failed; names its log.
    """
    waiting = [job for job in jobs if not job.result.is_file()]
    print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} finished before, {side_by_side} side by side", flush=True)
    running: dict[subprocess.Popen[bytes], tuple[Job, float]] = {}
    began, done, total = time.perf_counter(), 0, len(waiting)
    with _ended_with_us(running) as told:
        while waiting or running:
            if told:
                sys.exit(_SHELL_STATUS + told[0])
            while waiting and len(running) < side_by_side:
                job = waiting.pop(0)
                running[job.start(quick=quick)] = job, time.perf_counter()
            time.sleep(_POLL)
            for process in [p for p in running if p.poll() is not None]:
                job, since = running.pop(process)
                if process.returncode or not job.result.is_file():
                    last = (job.folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
                    raise UserError(f"{job.arm} seed {job.seed} failed ({' '.join(last)}); see {job.folder}/log.txt")
                done += 1
                now = time.perf_counter()
                left = (now - began) / done * (total - done) / 60
                scores = _short(json.loads(job.result.read_text()))
                name = f"{job.experiment} {job.arm} seed {job.seed}"
                print(f"[{done}/{total}] {name}: {scores} ({now - since:.0f} s), {left:.1f} min left", flush=True)


@contextlib.contextmanager
def _ended_with_us(running: dict[subprocess.Popen[bytes], Any]) -> Iterator[list[int]]:
    """Whatever stops us stops them; they go on from their last checkpoint next time.

    Yields:
        The signals that told us to stop: only noted, as one may come while a process is being started.
    """
    told: list[int] = []
    # Under nohup the terminal's end is ignored, and stays so.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: told.append(number)) for number in numbers}
    try:
        yield told
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with(runner: int) -> None:
    """Tells this process to stop, as by SIGTERM, once `runner`, its parent, is gone, however that ended."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal's end is the runner's to pass on, as SIGTERM
    watch(runner)


def _short(result: dict[str, Any]) -> str:
    parts = []
    for name, look in result["evaluations"].items():
        if look.get("average"):
            average = look["average"]
            parts.append(f"{name} COM {average['COM']:.2f} DIS {average['DIS']:.2f}")
    return ", ".join(parts[:2]) or "done"


def collect(experiment: Experiment, jobs: Sequence[Job]) -> dict[str, Any]:
    """All results as one JSON object, see `docs/evidence/*.json`."""
    results = [json.loads(job.result.read_text()) for job in jobs]
    looks = experiment.looks(quick=results[0]["quick"])
    arms: dict[str, Any] = {}
    for name, arm in experiment.arms.items():
        runs = [r for r in results if r["arm"] == name]
        shared = {key: runs[0][key] for key in ("settings", "recipes", "training")}
        shared["settings"] = {k: v for k, v in shared["settings"].items() if k != "seed_everything"}
        keep = ("seed", "evaluations", "seconds", "commit", "versions", "trained")  # the last is missing in old results
        arms[name] = {
            "label": arm.label,
            "paper": arm.paper,
            **shared,
            "runs": [{key: run[key] for key in keep if key in run} for run in runs],
        }
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "question": experiment.question,
        "findings": experiment.findings,
        "baseline": experiment.baseline,
        "paper_table": experiment.paper_table,
        "quick": results[0]["quick"],
        "evaluations": {name: vars(look) for name, look in looks.items()},
        "arms": arms,
    }


def num_seeds(file: Path) -> int:
    """How many runs the arms of a collected result have; 0 where there is none."""
    if not file.is_file():
        return 0
    return max(len(arm["runs"]) for arm in json.loads(file.read_text())["arms"].values())
