"""Processes that a run has started end with it, even if it is killed by SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from running import environment, run_scone

from scone_pl.processes import PARENT, child_environment, tie_ranks
from scone_pl.training.snapshots import snapshots

CHILD = """
import os, signal, sys, time
from scone_pl.processes import PARENT, end_with_parent
def on_request(*_):
    print("saved", file=open(os.environ["OUTPUT"], "w"), flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, on_request)
end_with_parent()
print(PARENT in os.environ, flush=True)
time.sleep(60)
"""
PARENT_OF_CHILD = """
import os, subprocess, sys
from scone_pl.processes import child_environment
environment = child_environment() if sys.argv[1] == "tied" else {**os.environ}
environment["LOCAL_RANK"] = sys.argv[2]
child = subprocess.Popen([sys.executable, "-c", sys.argv[3]], env=environment, stdout=subprocess.PIPE, text=True)
print(child.stdout.readline(), end="", flush=True)
sys.stdin.read()
"""


ARGS = [
    *("fit", "--config", "experiments/mini/stage1.yaml", "--model.init_args.init_from", "runs/mini/base"),
    *("--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false", "--data.num_workers", "1"),
    *("--data.packing.token_budget", "600", "--trainer.limit_val_batches", "0", "--checkpoint.every_n_steps", "2"),
    *("--trainer.max_steps", "100000", "--trainer.devices", "2"),
]


def members(session: int) -> dict[int, str]:
    """Command lines of the running processes of a session."""
    result = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, _, number = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(number) == session and state != "Z":
                result[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return result


def wait_until_empty(session: int) -> None:
    deadline = time.monotonic() + 60
    while left := members(session):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.fixture
def start_parent(tmp_path: Path) -> Iterator[Callable[[str, str], subprocess.Popen[str]]]:
    """Starts a process with one child that is running; both are killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(tied: str, local_rank: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT_OF_CHILD, tied, local_rank, CHILD],
            env=environment(OUTPUT=str(tmp_path / "output")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "False\n"  # the child's own processes do not inherit the variable
        assert len(members(process.pid)) == 2
        return process

    yield start
    for process in started:
        for number in members(process.pid):
            os.kill(number, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(("local_rank", "saves"), [("0", True), ("1", False)], ids=["a step of a chain", "a rank"])
def test_a_child_ends_with_its_killed_parent(
    local_rank: str, saves: bool, start_parent: Callable[[str, str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    parent = start_parent("tied", local_rank)
    parent.kill()
    parent.wait()
    wait_until_empty(parent.pid)
    assert (tmp_path / "output").exists() == saves


def test_a_child_of_other_code_outlives_its_parent(
    start_parent: Callable[[str, str], subprocess.Popen[str]],
) -> None:
    parent = start_parent("free", "1")
    parent.kill()
    parent.wait()
    time.sleep(1.5)
    assert len(members(parent.pid)) == 1


def test_a_child_whose_parent_was_gone_before_it_started_exits() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ended = subprocess.run(
        [sys.executable, "-m", "scone_pl", "--help"],
        env=environment(**{PARENT: str(gone.pid)}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, "")


def test_the_variable_is_set_only_while_ranks_are_started() -> None:
    class Launcher:
        seen: str | None = None

        def _call_children_scripts(self) -> None:
            self.seen = os.environ.get(PARENT)
            raise OSError("no more processes")

    launcher = Launcher()
    tie_ranks(launcher)
    with pytest.raises(OSError, match="no more"):
        launcher._call_children_scripts()
    assert launcher.seen == str(os.getpid())
    assert PARENT not in os.environ
    tie_ranks(None)  # a single device, or ranks that torchrun or Slurm started
    assert child_environment()[PARENT] == str(os.getpid())


def test_lightning_starts_ranks_through_the_method_that_is_wrapped() -> None:
    assert callable(_SubprocessScriptLauncher._call_children_scripts)


@pytest.mark.slow
@pytest.mark.parametrize("chain", [False, True], ids=["ranks", "steps of a chain and their ranks"])
def test_ranks_steps_and_workers_end_with_a_killed_launcher(chain: bool, mini_world: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    args = [*ARGS, "--output_dir", str(run)]
    if chain:
        (tmp_path / "chain.json").write_text('{"chain": [{"name": "one"}, {"name": "two"}]}')
        args[3:3] = ["--config", str(tmp_path / "chain.json")]
    else:
        args += ["--chain", "null"]
    first = run / "one" if chain else run
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "scone_pl", *args],
            cwd=mini_world,
            env=environment(),
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
        wait_until_empty(process.pid)
        after = snapshots(first / "checkpoints")[-1]
        assert after >= before
        assert ("stopped by SIGTERM after step" in log.read_text()) == chain  # the step could still save
    finally:
        for number in members(process.pid):
            os.kill(number, signal.SIGKILL)


@pytest.mark.slow
def test_ranks_that_fail_alike_report_one_error(mini_world: Path, tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints/step-000001").mkdir(parents=True)
    args = [*ARGS, "--chain", "null", "--output_dir", str(tmp_path / "run")]
    ended = run_scone(*args, cwd=mini_world)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 2
