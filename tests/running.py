"""Running the command line in processes of its own."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_PORTS = itertools.count(20_000 + 1_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")))
_OF_A_RUN = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "PL_GLOBAL_SEED")


def environment(**more: str) -> dict[str, str]:
    """For a process that runs this code: without what a run within this process has left in the environment."""
    kept = {name: value for name, value in os.environ.items() if name not in _OF_A_RUN}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


class Forked:
    """A process that the fork server has started, with the part of subprocess.Popen's interface that tests use."""

    def __init__(self, pid: int, args: list[str]) -> None:
        self.pid = pid
        self.args = args
        self.returncode: int | None = None

    def poll(self) -> int | None:
        _server().listen(0)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        end = time.monotonic() + timeout
        while self.returncode is None:
            left = end - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout)
            _server().listen(left)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class _Server:
    """The client's side of `fork_server.py`."""

    def __init__(self) -> None:
        self._answers, writes = os.pipe()
        command = [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(writes)]
        self._process = subprocess.Popen(
            command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=(writes,)
        )
        os.close(writes)
        self._pending = b""
        self._running: dict[int, Forked] = {}
        self._started: list[int] = []
        atexit.register(self.close)

    def start(self, words: list[str], **request: Any) -> Forked:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"words": words, **request}).encode() + b"\n")
        self._process.stdin.flush()
        while not self._started:
            self.listen(120)
        process = Forked(self._started.pop(), words)
        self._running[process.pid] = process
        return process

    def listen(self, seconds: float) -> None:
        """Takes note of processes that were started and that have ended; waits for such news at most so long."""
        if not select.select([self._answers], [], [], seconds)[0]:
            return
        read = os.read(self._answers, 65536)
        assert read, "the fork server has ended"
        *lines, self._pending = (self._pending + read).split(b"\n")
        for line in lines:
            pid, status = json.loads(line)
            if status is None:
                self._started.append(pid)
            elif pid in self._running:
                self._running.pop(pid).returncode = status

    def close(self) -> None:
        """The server ends with its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


_servers: dict[int, _Server] = {}


def _server() -> _Server:
    """One for each process of pytest, as it has to be this process's child."""
    if os.getpid() not in _servers:
        _servers[os.getpid()] = _Server()
    return _servers[os.getpid()]


def start_python(
    *words: str,
    cwd: Path,
    stdout: Path | str = os.devnull,
    stderr: Path | str = os.devnull,
    env: dict[str, str] | None = None,
    start_new_session: bool = False,
) -> Forked:
    """Starts `python WORDS` in a process of its own: -m and a module, -c and code, or a script, each with arguments.

    Forked from a process that has imported torch, Lightning and this package. Output is appended to files that exist.
    """
    for file in (stdout, stderr):
        Path(file).touch()
    request = {"cwd": str(cwd), "stdout": str(stdout), "stderr": str(stderr), "session": start_new_session}
    return _server().start(list(words), env=environment() if env is None else env, **request)


def start_scone(*args: str, cwd: Path, **options: Any) -> Forked:
    """Starts `python -m scone_pl ...`; options as of `start_python`."""
    return start_python("-m", "scone_pl", *args, cwd=cwd, **options)


def run_python(
    *words: str, cwd: Path, timeout: float = 300, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `python WORDS` as `start_python` does, to its end."""
    (done,) = _run_together([(list(words), env)], cwd, timeout)
    return done


def run_scone(*args: str, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`python -m scone_pl ...` in a process of its own."""
    env = environment(COLUMNS="120", PYTHONFAULTHANDLER="1")
    return run_python("-m", "scone_pl", *args, cwd=cwd, timeout=timeout, env=env)


def run_ranks(
    *words: str, ranks: int, cwd: Path = ROOT, timeout: float = 300
) -> list[subprocess.CompletedProcess[str]]:
    """Runs `python WORDS` once a rank, with torchrun's environment variables."""
    common = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "TORCHELASTIC_RUN_ID": "tests"}
    own = [environment(**common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(ranks)]
    return _run_together([(list(words), env) for env in own], cwd, timeout)


def _free_port() -> int:
    """Of a range that only this process of pytest-xdist uses, and that no connection gets by chance."""
    for port in _PORTS:
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("ranges have no end")


def run_script(script: Path, ranks: int, *args: str) -> list[Any]:
    """Runs a script once a rank; the JSON that each rank printed last."""
    done = run_ranks(str(script), *args, ranks=ranks)
    for one in done:
        assert one.returncode == 0, one.stderr
    return [json.loads(one.stdout.splitlines()[-1]) for one in done]


def _run_together(
    commands: list[tuple[list[str], dict[str, str] | None]], cwd: Path, timeout: float
) -> list[subprocess.CompletedProcess[str]]:
    with tempfile.TemporaryDirectory() as name:
        outputs = [(Path(name) / f"{i}.out", Path(name) / f"{i}.err") for i in range(len(commands))]
        processes: list[Forked] = []
        try:
            for (words, env), (stdout, stderr) in zip(commands, outputs, strict=True):
                processes.append(start_python(*words, cwd=cwd, env=env, stdout=stdout, stderr=stderr))
            for process in processes:
                process.wait(timeout)
        finally:
            for process in processes:
                process.kill()
        texts = [(stdout.read_text(), stderr.read_text()) for stdout, stderr in outputs]
    return [
        subprocess.CompletedProcess(process.args, process.wait(), *text)
        for process, text in zip(processes, texts, strict=True)
    ]
