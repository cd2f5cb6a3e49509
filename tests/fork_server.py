"""A process that has imported what commands import, and forks one process for every command of the tests.

Importing torch and Lightning takes longer than most commands that the tests start. A forked process is like one that
was started afresh: own memory, process ID, working directory, environment, and files as standard streams. What a test
says about the start itself (an environment variable that Python reads, a parent that must die) needs a real start.

`running.py` is the other end. Requests are lines of JSON on standard input, answers lines of JSON on the file
descriptor in the first argument: `[process ID, null]` after a fork, `[process ID, exit status]` when a process ended.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import runpy
import select
import signal
import sys
import types
from pathlib import Path
from typing import Any

PRELOADED = (
    "lightning.pytorch.cli",
    "lightning.pytorch.loggers",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "tensorboard.backend.event_processing.event_accumulator",
    "torch.utils.tensorboard",
    "scone_pl.cli.stages",
    "scone_pl.cli.verbs",
)


def become(request: dict[str, Any], *control: int) -> None:
    """Turns a process that was just forked into the one that was asked for, up to running its code."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["session"]:
        os.setsid()
    for number, (file, flags) in enumerate(
        ((os.devnull, os.O_RDONLY), (request["stdout"], os.O_WRONLY), (request["stderr"], os.O_WRONLY))
    ):
        opened = os.open(file, flags | (os.O_APPEND if flags and file != os.devnull else 0))
        os.dup2(opened, number)
        os.close(opened)
    for descriptor in control:
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    if "PYTHONFAULTHANDLER" in request["env"]:
        faulthandler.enable()


def run(words: list[str]) -> None:
    """`python WORDS`: -m and a module, -c and code, or a script, each with its arguments."""
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path[0] = ""
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), vars(module))
    elif words[0] == "-m":
        sys.argv = words[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path[0] = str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


def requests(answers: int) -> dict[str, Any]:
    """Serves requests. Returns in every forked process, with its own request; in the server at the end of input."""
    awake, wakes = os.pipe()
    for descriptor in (awake, wakes):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wakes)
    pending = b""
    while True:
        ready, _, _ = select.select([0, awake], [], [])
        if awake in ready:
            os.read(awake, 4096)
            reap(answers)
        if 0 not in ready:
            continue
        if not (read := os.read(0, 65536)):
            sys.exit(0)
        *lines, pending = (pending + read).split(b"\n")
        for line in lines:
            request: dict[str, Any] = json.loads(line)
            child = os.fork()
            if not child:
                become(request, answers, awake, wakes)
                return request
            tell(answers, child, None)


def reap(answers: int) -> None:
    """Reports all processes that have ended."""
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not child:
            return
        tell(answers, child, os.waitstatus_to_exitcode(status))


def tell(answers: int, child: int, status: int | None) -> None:
    os.write(answers, (json.dumps([child, status]) + "\n").encode())


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    run(requests(int(sys.argv[1]))["words"])
