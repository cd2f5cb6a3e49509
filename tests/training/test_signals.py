"""On a stop request a run finishes its step, saves, exits with its status, and resumes as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from running import Forked, run_scone, start_scone
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = 8
ARGS = [
    *("fit", "--config", "experiments/mini/stage1.yaml", "--chain", "null", "--model.init_args.init_from"),
    *("runs/mini/base", "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"),
    *("--data.packing.token_budget", "600", "--trainer.limit_val_batches", "0", "--checkpoint.every_n_steps", "0"),
]


def start(args: list[str], cwd: Path, log: Path) -> Forked:
    return start_scone(*args, cwd=cwd, stdout=log, stderr=log, start_new_session=True)


def losses(folder: Path) -> dict[int, float]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    if "train/loss" not in events.Tags()["scalars"]:
        return {}
    return {event.step: event.value for event in events.Scalars("train/loss")}


def wait_for(run: Path, step: int, process: Forked, log: Path) -> None:
    """Until so many steps are logged."""
    deadline = time.monotonic() + 120
    while not (run / "tensorboard").exists() or len(losses(run)) < step:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("number", "options", "group"),
    [
        pytest.param(
            signal.SIGTERM, ["--trainer.devices", "2", "--data.num_workers", "0"], False, marks=pytest.mark.slow
        ),
        pytest.param(
            signal.SIGTERM, ["--trainer.devices", "2", "--data.num_workers", "1"], True, marks=pytest.mark.slow
        ),
        (signal.SIGINT, ["--data.num_workers", "2"], True),
        pytest.param(signal.SIGUSR1, ["--data.num_workers", "2"], True, marks=pytest.mark.slow),
    ],
    ids=["two ranks, a signal to the first", "two ranks and their workers", "Ctrl-C", "Slurm's, and data workers"],
)
def test_saves_and_says_so(number: int, options: list[str], group: bool, mini_world: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    args = [*ARGS, *options, "--trainer.max_steps", "100000", "--output_dir", str(tmp_path / "run")]
    process = start(args, mini_world, log)
    try:
        wait_for(tmp_path / "run", 1, process, log)
        (os.killpg if group else os.kill)(process.pid, number)
        assert process.wait(60) == 128 + number, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert f"stopped by {signal.Signals(number).name} after step" in log.read_text()
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    assert f"after step {int(saved.name[5:])}," in log.read_text()
    assert len(losses(tmp_path / "run")) == int(saved.name[5:])  # the last step's too
    assert not (tmp_path / "run/weights").exists()


@pytest.mark.slow
def test_a_chain_told_while_it_validates_goes_on_like_a_straight_one(mini_world: Path, tmp_path: Path) -> None:
    """Nearly all of this run's time is validation, behind every step; so that is where the signal comes in."""
    chain = tmp_path / "chain.json"
    chain.write_text('{"chain": [{"name": "one"}, {"name": "two"}]}')
    args = [*ARGS[:3], "--config", str(chain), *ARGS[5:], "--data.num_workers", "0"]
    args += ["--trainer.max_steps", str(STEPS), "--trainer.val_check_interval", "1", "--previews.num_samples", "0"]
    straight = [*args, "--trainer.limit_val_batches", "1", "--output_dir", str(tmp_path / "straight")]
    assert run_scone(*straight, cwd=mini_world).returncode == 0

    log = tmp_path / "log"
    slow = [*args, "--trainer.limit_val_batches", "1000", "--data.val_packs", "1000"]
    process = start([*slow, "--output_dir", str(tmp_path / "run")], mini_world, log)
    wait_for(tmp_path / "run/two", 2, process, log)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143, log.read_text()
    assert (tmp_path / "run/one/weights").is_dir()
    (saved,) = (tmp_path / "run/two/checkpoints").iterdir()
    assert 2 <= int(saved.name[5:]) < STEPS

    again = [*args, "--trainer.limit_val_batches", "1", "--output_dir", str(tmp_path / "run")]
    assert run_scone(*again, cwd=mini_world).returncode == 0
    for step in ("one", "two"):
        assert losses(tmp_path / "run" / step) == losses(tmp_path / "straight" / step)
    assert len(losses(tmp_path / "straight/two")) == STEPS
