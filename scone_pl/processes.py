"""Child processes that end when the process that started them is gone, however it ended.

After SIGKILL a parent cannot tell its children, so they watch it. Only what `child_environment` and `tie_ranks`
start does so: what torchrun, Slurm or a user's own code starts is left alone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

PARENT = "SCONE_PARENT"
"""Environment variable with the process ID of the parent, set for one child, which removes it when it starts."""
_POLL_SECONDS = 0.5
_FIRST_RANK_SECONDS = 12.0
"""How long a failed rank waits; Lightning's launcher looks for failed ranks every 5 seconds and then kills all."""
PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""SIGUSR1: what Slurm sends ahead of a job's end by `--signal=USR1@SECONDS`."""
_TERMINATED = 128 + signal.SIGTERM

_started_as_rank = False


def child_environment() -> dict[str, str]:
    """The environment for a child process that runs `python -m scone_pl` and should end with this process."""
    return {**os.environ, PARENT: str(os.getpid())}


def tie_ranks(launcher: Any) -> None:
    """Lets the ranks that Lightning's subprocess launcher starts end with this process, their first rank.

    Args:
        launcher: a strategy's launcher. None, or one whose processes another program has started, is left as it is.
    """
    start = getattr(launcher, "_call_children_scripts", None)
    if start is None:
        return

    def start_tied() -> None:
        os.environ[PARENT] = str(os.getpid())  # the launcher copies the environment for each rank
        try:
            start()
        finally:
            os.environ.pop(PARENT, None)

    launcher._call_children_scripts = start_tied


def end_with_parent() -> None:
    """Called once, at the start of a command line: ends this process when the parent that asked for it is gone.

    A step of a chain receives SIGTERM, so that it saves. A rank exits at once: it cannot save without the first rank.
    """
    global _started_as_rank
    parent = os.environ.pop(PARENT, "")
    if not parent.isdigit():
        return
    _started_as_rank = os.environ.get("LOCAL_RANK", "0") != "0"
    if os.getppid() != int(parent):
        sys.exit(_TERMINATED)
    watch(int(parent), at_once=_started_as_rank)


def watch(parent: int, *, at_once: bool = False) -> None:
    """Ends this process, by SIGTERM or `at_once` by exiting, when `parent` is no longer its parent."""

    def poll() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        if at_once:
            os._exit(_TERMINATED)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=poll, name="parent-watch", daemon=True).start()


def wait_for_first_rank() -> None:
    """Called by a process that has failed, before it reports the error.

    Ranks mostly fail alike. The first rank reports the error and exits, and other ranks exit with it. If it has not
    exited after a while, the failure is this rank's own, and this rank reports it.
    """
    if _started_as_rank:
        time.sleep(_FIRST_RANK_SECONDS)
