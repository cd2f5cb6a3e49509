"""Runs steps one after the other, each in a process of its own with a time limit; keeps the results file up to date."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.report import read_report
from benchmarks.gpu_check.settings import ROOT
from benchmarks.gpu_check.steps import STEPS, Step
from scone_pl.files import write_json
from scone_pl.markdown import markdown_table

RESULTS = "gpu_check.json"
LOG = "gpu_check.log"


def run_steps(names: Sequence[str], device: str, *, quick: bool, output: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Runs `names`; the results file is rewritten after each of them.

    Args:
        names: keys of `STEPS`.
        device: cuda, cuda:1, ... or cpu.
        quick: toy sizes.
        output: folder for `RESULTS` and `LOG`.
        about: what else the results file says of the run.

    Returns:
        The content of the results file.
    """
    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {**about, "steps": {}}
    with (output / LOG).open("wb") as log:
        for name in names:
            print(f"{name}: {STEPS[name].title}", flush=True)
            found = run_step(name, STEPS[name], device, quick=quick, log=log)
            results["steps"][name] = found
            write_json(results, output / RESULTS)
            print(f"  {found['status']} in {found['seconds']:.1f} s", *found["problems"], sep="\n  ", flush=True)
    return results


def run_step(name: str, step: Step, device: str, *, quick: bool, log: Any) -> dict[str, Any]:
    """Runs one step in a process group of its own, which is killed at the limit, and says how it went."""
    limit = step.limit if device.startswith("cuda") else 10 * step.limit
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        log.write(f"\n===== {name}\n".encode())
        log.flush()
        begun = time.monotonic()
        process = subprocess.Popen(
            command_of(name, device, quick, file),
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment(),
        )
        ended = _wait(process, limit)
        seconds = time.monotonic() - begun
        found = {"values": {}, "problems": [], "skipped": "", **read_report(file)}
    if not ended:
        found["problems"].append(f"stopped at its time limit of {limit} s; values are those measured until then")
    elif process.returncode and not found["problems"]:
        found["problems"].append(f"ended with status {process.returncode}; see {LOG}")
    skipped = found.pop("skipped")
    status = "failed" if found["problems"] else f"skipped: {skipped}" if skipped else "passed"
    return {"status": status, "seconds": round(seconds, 1), "limit": limit, **found}


def command_of(name: str, device: str, quick: bool, file: Path) -> list[str]:
    """Of the process that runs a step and reports into `file`."""
    command = [sys.executable, "-m", "benchmarks.gpu_check.step", name, "--device", device, "--report", str(file)]
    return command + ["--quick"] * quick


def environment() -> dict[str, str]:
    """Of processes that import from this tree."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    absolute = [str(Path(path).resolve()) for part in paths for path in part.split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(absolute)}


def _wait(process: subprocess.Popen[bytes], limit: float) -> bool:
    """Whether the process ended by itself; either way nothing of its group is left."""
    try:
        process.wait(limit)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def summary(results: dict[str, Any]) -> str:
    """A table of the steps, and the problems."""
    rows = [[name, s["status"], f"{s['seconds']:.1f}"] for name, s in results["steps"].items()]
    lines = [markdown_table(["step", "status", "seconds"], rows, text=(0, 1))]
    lines += [f"{name}: {problem}" for name, s in results["steps"].items() for problem in s["problems"]]
    failed = failed_steps(results)
    lines.append(f"failed: {', '.join(failed)}" if failed else "no step failed")
    return "\n".join(lines)


def failed_steps(results: dict[str, Any]) -> list[str]:
    """Names of the steps that failed."""
    return [name for name, step in results["steps"].items() if step["status"] == "failed"]
