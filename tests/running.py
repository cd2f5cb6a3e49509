"""Running the command line in processes of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


_OF_A_RUN = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "PL_GLOBAL_SEED")


def environment(**more: str) -> dict[str, str]:
    """For a process that runs this code: without what a run within this process has left in the environment."""
    kept = {name: value for name, value in os.environ.items() if name not in _OF_A_RUN}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def run_scone(*args: str, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`python -m scone_pl ...` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "scone_pl", *args],
        cwd=cwd,
        env=environment(COLUMNS="120", PYTHONFAULTHANDLER="1"),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_ranks(script: Path, ranks: int, *args: str, timeout: float = 120) -> list[Any]:
    """Runs a script once a rank, with torchrun's environment variables; the JSON that each printed last, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *args],
            env=environment(**common, RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    found = []
    for process in processes:
        output, errors = process.communicate(timeout=timeout)
        assert process.returncode == 0, errors
        found.append(json.loads(output.splitlines()[-1]))
    return found
