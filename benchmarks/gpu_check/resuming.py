"""FSDP2 on one rank: a run of the command line, killed by SIGKILL and resumed, against one that ran through.

The mini-world's shards are made on the spot and Stage I of the mini recipes trains on them, in bfloat16 over float32
master weights, so that FSDP2 has something to do (on the CPU in float32, which it leaves whole).

Also how long training stands still for a snapshot, against how long it takes until that is safe on disk.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.settings import ROOT, Settings, wait
from scone_pl.training.snapshots import SnapshotWriter, snapshot_name, snapshots, step_of

STEPS, EVERY = 60, 10
TOLERANCE = 2e-2
"""Of each step's loss, relative. Nothing is drawn from a state that a kill loses, but CUDA adds atomically in an order
of its own (`index_add`, gradients of lookups), and bfloat16 rounds the difference up to 2^-8 of a value. On one CPU
process the curves are bit-identical, and the tolerance is 0."""
START_SECONDS = 600
"""For the first snapshot; on a GPU the limit of the step comes first."""


def run(settings: Settings, report: Report) -> None:
    """The killed run and the straight one, then the snapshot."""
    steps, every = (STEPS, EVERY) if settings.cuda else (6, 2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "experiments").symlink_to(ROOT / "experiments")
        sets = {"questions": 200, "base_single": 200, "validation": 8}
        nothing = ("question_pairs", "plain", "refined_single", "multi_candidate")
        sizes = [f"--{name}={size}" for name, size in {**sets, **dict.fromkeys(nothing, 0)}.items()]
        finish(scone(["mini", "shards", "--output=data_shards/mini", "--progress=false", *sizes], folder))
        straight = scone(fit_arguments(settings, steps, every, "straight"), folder)
        killed = scone(fit_arguments(settings, steps, every, "killed"), folder)
        last = kill_after(killed, folder / "killed/checkpoints", every, report)
        resumed = scone(fit_arguments(settings, steps, every, "killed"), folder)
        finish(straight)
        finish(resumed)
        expected, found = (losses(folder / name / "tensorboard") for name in ("straight", "killed"))
        stalls = scalars(folder / "straight/tensorboard", "speed/checkpoint_seconds")
        report.record(snapshot_at_kill=last, compute="bfloat16" if settings.cuda else "float32")
        compare_losses(expected, found, steps, TOLERANCE if settings.cuda else 0.0, report)
        report.record(stall_in_run_seconds=max(stalls.values(), default=math.nan))
        report.record(snapshot=snapshot_stall(settings, folder / "snapshot"))
    if not settings.cuda:
        report.skip("needs CUDA: gloo and float32 on the CPU")


def fit_arguments(settings: Settings, steps: int, every: int, output: str) -> list[str]:
    """Of a run of the mini recipe."""
    device = "gpu" if settings.cuda else "cpu"
    return [
        *("fit", "--config", "experiments/mini/stage1.yaml", "--chain", "null", "--output_dir", output),
        *("--trainer.accelerator", device, "--trainer.max_steps", str(steps), "--trainer.log_every_n_steps", "1"),
        *("--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0"),
        *("--model.init_args.sharding.compute_dtype", "bfloat16" if settings.cuda else "float32"),
        *("--data.packing.token_budget", "1200", "--data.num_workers", "1", "--checkpoint.every_n_steps", str(every)),
    ]


def scone(arguments: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """Starts `python -m scone_pl ...` in `folder`, in this process group, which is killed at the time limit."""
    return subprocess.Popen(
        [sys.executable, "-m", "scone_pl", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for a process and returns what it printed.

    Raises:
        RuntimeError: it failed.
    """
    output = process.communicate()[0]
    print(output, flush=True)
    if process.returncode:
        last = (output.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(f"{process.args[3]} ended with status {process.returncode}: {last}")  # type: ignore[index]
    return output


def kill_after(process: subprocess.Popen[str], checkpoints: Path, step: int, report: Report) -> int:
    """Kills a run by SIGKILL as soon as the snapshot of `step` is there; the newest snapshot's step.

    Raises:
        RuntimeError: it ended before, or never came so far.
    """
    deadline = time.monotonic() + START_SECONDS
    while not (checkpoints / snapshot_name(step)).exists():
        if process.poll() is not None:
            finish(process)
            raise RuntimeError("the run ended before it could be killed")
        if time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"no snapshot after {START_SECONDS} s")
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    print(process.communicate()[0], flush=True)
    report.require(process.returncode == -signal.SIGKILL, f"the run ended with status {process.returncode}, not killed")
    return step_of(snapshots(checkpoints)[-1])


def scalars(folder: Path, name: str) -> dict[int, float]:
    """By step; where a step ran twice, its last value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def losses(folder: Path) -> dict[int, float]:
    """Training loss by step."""
    return scalars(folder, "train/loss")


def compare_losses(
    expected: dict[int, float], found: dict[int, float], steps: int, tolerance: float, report: Report
) -> None:
    """Every step of both runs must be there, and agree."""
    report.require(len(expected) == steps, f"the straight run logged {len(expected)} of {steps} steps")
    report.require(found.keys() == expected.keys(), "the resumed run logged other steps than the straight one")
    both = sorted(expected.keys() & found.keys())
    errors = {step: abs(found[step] - expected[step]) / abs(expected[step]) for step in both}
    worst = max(errors, key=lambda step: errors[step], default=None)
    error = math.nan if worst is None else errors[worst]
    report.record(steps=steps, tolerance=tolerance, worst_loss_error=error, worst_step=worst)
    report.record(first_loss=expected.get(0), last_losses=[expected.get(steps - 1), found.get(steps - 1)])
    report.require(error <= tolerance, f"loss of step {worst} differs by {error:.2e}; the tolerance is {tolerance:.0e}")


def snapshot_stall(settings: Settings, folder: Path) -> dict[str, float]:
    """Seconds that a snapshot of tensors on the device keeps training waiting, and until it is on disk."""
    count, width = (64, 4096) if settings.cuda else (8, 512)  # 4.3 GB on CUDA
    state = {"model": {f"w{i}": torch.randn(width, width, device=settings.device) for i in range(count)}}
    size = sum(t.nbytes for t in state["model"].values())
    writer = SnapshotWriter()
    folder.mkdir()
    seconds: dict[str, float] = {"bytes": size}
    for number, name in ((1, "first_"), (2, "")):  # the first one allocates what later ones use again
        wait(settings.device)
        begun = time.perf_counter()
        writer.write(state, {}, folder / snapshot_name(number))
        seconds[f"{name}stall_seconds"] = time.perf_counter() - begun
        writer.wait()
        seconds[f"{name}safe_seconds"] = time.perf_counter() - begun
    return seconds
