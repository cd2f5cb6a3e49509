"""A killed run, started again by the same command, ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from running import run_scone, start_scone
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = 12
ARGS = [
    *("fit", "--config", "experiments/mini/stage1.yaml", "--chain", "null"),
    *("--trainer.max_steps", str(STEPS), "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"),
    *(
        "--data.packing.token_budget",
        "600",
        "--trainer.limit_val_batches",
        "0",
        "--checkpoint.every_n_steps",
        "2",
    ),
]


def scalars(folder: Path, name: str) -> dict[int, float]:
    """By step; where a step ran twice, its last value."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


@pytest.mark.parametrize("workers", [pytest.param("0", marks=pytest.mark.slow), "2"])
def test_killed_twice_equals_straight(workers: str, mini_world: Path, tmp_path: Path) -> None:
    common = [*ARGS, "--data.num_workers", workers, "--output_dir"]
    straight = run_scone(*common, str(tmp_path / "straight"), cwd=mini_world)
    assert straight.returncode == 0, straight.stderr
    killed = tmp_path / "killed"
    for step in (2, 4):
        _run_until(killed / f"checkpoints/step-{step:06d}", [*common, str(killed)], mini_world)
        assert not (killed / "weights").exists()
    last = run_scone(*common, str(killed), cwd=mini_world)
    assert last.returncode == 0, last.stderr
    assert "data.train: resuming at pack" in last.stderr
    expected, result = (scalars(run, "train/loss") for run in (tmp_path / "straight", killed))
    assert len(expected) == STEPS
    assert result == expected
    ours, theirs = (load_file(f / "weights/model.safetensors") for f in (killed, tmp_path / "straight"))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.slow
def test_a_finished_run_goes_on_to_a_later_end(mini_world: Path, tmp_path: Path) -> None:
    """The rate had fallen to 0 and is back where it belongs, from the first step on."""
    rate = ["--model.init_args.optimizer", "{lr: 1.0, warmup_steps: 0, decay_steps: 2, eps: 1.0}"]
    for end in ("2", "5"):
        done = run_scone(*ARGS, *rate, "--trainer.max_steps", end, "--output_dir", str(tmp_path), cwd=mini_world)
        assert done.returncode == 0, done.stderr
    assert scalars(tmp_path, "train/lr") == {0: 1.0, 1: 0.5, 2: 1.0, 3: 1.0, 4: 0.5}


def _run_until(checkpoint: Path, args: list[str], cwd: Path) -> None:
    """Starts a run and kills its whole process group as soon as `checkpoint` is there."""
    process = start_scone(*args, cwd=cwd, start_new_session=True)
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
