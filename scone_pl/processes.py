"""Processes that one of ours has started, ranks and steps of a chain: none outlives it, however it ended."""

from __future__ import annotations

import os
import signal
import threading
import time

LAUNCHER = "SCONE_LAUNCHER"
"""Environment variable: number of the process that has started this one."""
_POLL = 0.5
_LEADER_SECONDS = 12.0
"""That another rank gives the first one to end by itself; Lightning kills the first one when it sees another fail."""


def is_launched_rank() -> bool:
    """Whether this process is a rank that Lightning, within a process of ours, has started beside the first one."""
    return LAUNCHER in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"


def end_with_launcher() -> None:
    """To be called once, when a command line begins: ends this process should the one that started it be gone.

    A rank ends at once, as nothing can be saved without the first one. Others are told as by SIGTERM, so that a step
    of a chain saves. What this process starts, ends with it likewise.
    """
    launcher, parent, rank = os.environ.get(LAUNCHER), os.getppid(), is_launched_rank()
    os.environ[LAUNCHER] = str(os.getpid())
    if launcher is None:
        return
    if launcher == str(parent):
        watch(parent, at_once=rank)
    elif rank and "TORCHELASTIC_RUN_ID" not in os.environ:
        os._exit(128 + signal.SIGTERM)  # it was gone before this line


def watch(parent: int, *, at_once: bool = False) -> None:
    """Ends this process, as by SIGTERM or without another word, once `parent` is not its parent any more."""

    def poll() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL)
        if at_once:
            os._exit(128 + signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=poll, name="launcher", daemon=True).start()


def let_leader_speak() -> None:
    """Called by a process that has failed. Mostly all ranks fail alike, so another than the first one waits.

    The first one tells what happened and ends, and this one with it. If it does not end, this one has to tell.
    """
    if is_launched_rank():
        time.sleep(_LEADER_SECONDS)
