"""Nothing that a run has started outlives it, though it be killed without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import ROOT, run_scone

from scone_pl.training.snapshots import snapshots

ARGS = [
    *("fit", "--config", "experiments/mini/stage1.yaml", "--model.init_args.init_from", "runs/mini/base"),
    *("--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false", "--data.num_workers", "1"),
    *("--data.packing.token_budget", "600", "--trainer.limit_val_batches", "0", "--checkpoint.every_n_steps", "2"),
    *("--trainer.max_steps", "100000", "--trainer.devices", "2"),
]


def members(session: int) -> dict[int, str]:
    """Command lines of the living processes of a session."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, _, number = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(number) == session and state != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("chain", [False, True], ids=["ranks", "steps of a chain, and their ranks"])
def test_a_killed_launcher_takes_ranks_steps_and_workers_with_it(chain: bool, mini_world: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    args = [*ARGS, "--output_dir", str(run)]
    if chain:
        (tmp_path / "chain.json").write_text('{"chain": [{"name": "one"}, {"name": "two"}]}')
        args[3:3] = ["--config", str(tmp_path / "chain.json")]
    else:
        args += ["--chain", "null"]
    first = run / "one" if chain else run
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "scone_pl", *args],
            cwd=mini_world,
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240
        while not snapshots(first / "checkpoints"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        assert len(members(process.pid)) >= (5 if chain else 4)  # the chain, two ranks, a worker each
        before = snapshots(first / "checkpoints")[-1]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 60
        while left := members(process.pid):
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
        after = snapshots(first / "checkpoints")[-1]
        assert after >= before
        assert ("stopped by SIGTERM after step" in log.read_text()) == chain  # the step could still save
    finally:
        for number in members(process.pid):
            os.kill(number, signal.SIGKILL)


@pytest.mark.slow
def test_ranks_that_fail_alike_tell_it_once(mini_world: Path, tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints/step-000001").mkdir(parents=True)
    args = [*ARGS, "--chain", "null", "--output_dir", str(tmp_path / "run")]
    ended = run_scone(*args, cwd=mini_world)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 2
