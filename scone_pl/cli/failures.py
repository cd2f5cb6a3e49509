"""Failures that the user can correct, whichever library raised them, as one line.

A full disk, a library that is not installed, a damaged archive, a GPU that is too small. Anything else is a mistake in
the program, and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import TextIO

from scone_pl.errors import UserError

USER_ERROR = 2
BROKEN_PIPE = 141
"""Of a shell's child that SIGPIPE ended: whoever read the output, such as `head`, has seen enough."""

_ADVICE = {
    errno.ENOSPC: "make room, or write elsewhere",
    errno.EDQUOT: "make room, or write elsewhere",
    errno.EMFILE: "raise the limit (ulimit -n), or lower the number of workers",
    errno.ENOMEM: "lower the number of workers or what is held in memory",
}
_DAMAGED = (
    "BadZipFile",
    "LargeZipFile",
    "TarError",
    "LZMAError",
    "UnpicklingError",
    "SafetensorError",
    "ArrowException",
)
_OWN_WORDS = (
    *("MisconfigurationException", "YAMLError", "ArgumentError", "DecompressionBombError", "DistNetworkError"),
    *("DistStoreError", "gaierror"),
)
"""Classes whose messages need nothing added."""
_WORKER = re.compile(r"Caught (?P<kind>\w+) in .*?Original Traceback", re.DOTALL)
_LOST_WORKER = re.compile(r"DataLoader worker \(pid.*?\) (?:exited unexpectedly|is killed by signal)[^.]*")
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|CUDA error: out of memory|std::bad_alloc")
_NO_PEER = re.compile(r"Connection (?:closed|reset|refused) by (?:peer|remote)|Socket Timeout|Timed out waiting", re.I)
_NO_GPU = re.compile(r"No CUDA GPUs are available|Found no NVIDIA driver|CUDA driver version is insufficient")
_NO_METRIC = re.compile(r"Early stopping conditioned on metric `[^`]*` which is not available")
_NO_LAUNCH = re.compile(r"You set `--ntasks=|multiplied should equal the world size")
_LIBRARY = re.compile(
    r"Requirement '(?P<a>[\w-]+)|[`'](?P<b>[\w-]+)[`'](?: package)? is not installed|[Ii]nstall (?P<c>[\w-]+) to access"
    r"|pip install (?:-U |--upgrade )?['\"]?(?P<d>[\w-]+)|No module named '(?P<e>\w+)"
)
_SYSTEM_ERRORS = {"OSError", *(kind.__name__ for kind in OSError.__subclasses__())}
_PACKAGES = {
    "yaml": "PyYAML",
    "PIL": "Pillow",
    "sklearn": "scikit-learn",
    "google": "google-cloud-storage",
    "gradio": "'scone_pl[app]'",
}


def explain(error: BaseException) -> UserError | None:
    """The one line for a failure; None = a mistake in the program.

    That is a `UserError` which `error` is or came of, as jsonargparse wraps what a constructor raises; else what is
    known of `error`, or of what its raiser named as its cause.
    """
    chain = list(_chain(error))
    for link, _ in chain:
        if isinstance(link, UserError):
            return UserError(_of_worker(str(link)))
    for link, named in chain:
        if not named:
            break
        line = _line(link)
        if line is not None:
            return UserError(line)
    return None


def refused_by_library(error: Exception) -> bool:
    """Whether other code than ours, called from this package, raised `error`, such as Lightning for a wrong value."""
    package, cli = (os.path.dirname(os.path.dirname(__file__)), os.path.dirname(__file__))
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    ours = [file for file in files if file.startswith(package + os.sep) and not file.startswith(cli + os.sep)]
    return not ours and not isinstance(error, UserError) and not files[-1].startswith(package + os.sep)


def _chain(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """An exception and what it came of, each once though they may form a cycle; whether all links so far were named."""
    seen: set[int] = set()
    waiting: list[tuple[BaseException, bool]] = [(error, True)]
    while waiting:
        link, named = waiting.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link, named
        waiting = [*((inner, named) for inner in _parts(link)), *waiting]
        if link.__cause__ is not None:
            waiting.append((link.__cause__, named))
        elif link.__context__ is not None:
            waiting.append((link.__context__, False))


def _parts(error: BaseException) -> list[BaseException]:
    """The members of a group, or of torch.distributed.checkpoint's CheckpointException, by rank."""
    failures = getattr(error, "failures", None)
    if isinstance(failures, dict):
        return [inner for inner, _ in failures.values()]
    return list(getattr(error, "exceptions", ()))


def _line(error: BaseException) -> str | None:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = _of_worker(str(error))
    if isinstance(error, MemoryError) or "OutOfMemoryError" in kinds or _NO_MEMORY.search(text):
        reason = text.split(". ")[0] or "host"
        return f"out of memory ({reason}); lower token budget, image size or number of workers, or ask `estimate`"
    if isinstance(error, ImportError):
        return _missing_library(error)
    if isinstance(error, OSError):
        return _of_system(error, text)
    if isinstance(error, UnicodeDecodeError):
        return f"text that is not {error.encoding} at byte {error.start} ({error.reason}); save the file as UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return f"text that {error.encoding} cannot hold ({error.reason}); set PYTHONIOENCODING=utf-8"
    if isinstance(error, ValueError) and "null byte" in text:
        return "a path or name in a configuration holds a null byte"
    if isinstance(error, ValueError) and text.startswith("Exceeds the limit"):
        return "a number has too many digits"
    if isinstance(error, RecursionError):
        return "a configuration, JSON or archive is nested too deeply"
    if "JSONDecodeError" in kinds:
        return f"not JSON ({text})"
    if kinds & set(_DAMAGED) or type(error).__module__ == "zlib":
        return f"a file is damaged ({text})"
    if "BrokenProcessPool" in kinds:
        return f"a worker process was killed, often for lack of memory ({text}); lower the number of workers"
    if kinds & set(_OWN_WORDS):
        return text or type(error).__name__
    return _of_runtime(error, text) if isinstance(error, RuntimeError) else None


def _of_runtime(error: RuntimeError, text: str) -> str | None:
    """What torch says with nothing but a `RuntimeError`."""
    if lost := _LOST_WORKER.search(text):
        return f"{lost[0]}; often for lack of memory or of /dev/shm: lower data.num_workers"
    if _NO_PEER.search(text):
        return f"another process of this run is gone ({text.split(chr(10))[0]}); see what it said"
    if _NO_METRIC.search(text):
        return f"trainer.callbacks EarlyStopping: {' '.join(text.split())[:500]}"
    if _NO_LAUNCH.search(text):
        return (
            f"the launcher's processes are not those of trainer.devices and num_nodes: {' '.join(text.split())[:300]}"
        )
    if _NO_GPU.search(text):
        return text.split("\n")[0]
    worker = _WORKER.match(str(error))
    return text if worker is not None and worker["kind"] in _SYSTEM_ERRORS else None


def _of_system(error: OSError, text: str) -> str:
    advice = _ADVICE.get(error.errno or 0)
    names = [
        os.fsdecode(n) if isinstance(n, bytes) else str(n) for n in (error.filename, error.filename2) if n is not None
    ]
    line = f"{' -> '.join(names)}: {error.strerror}" if names else error.strerror or text or type(error).__name__
    return f"{line}; {advice}" if advice else line


def _missing_library(error: ImportError) -> str | None:
    """None = a module of our own, which is no library that could be installed."""
    match = _LIBRARY.search(str(error))
    name = (error.name or (next(filter(None, match.groups())) if match else "")).partition(".")[0]
    if name == __package__.partition(".")[0]:
        return None
    line = " ".join(str(error).split())
    return f"{line}; pip install {_PACKAGES.get(name, name)}" if name and "pip install" not in line else line


def _of_worker(text: str) -> str:
    """The message proper of what was raised in a data worker: torch puts the worker's whole traceback into it."""
    if not _WORKER.match(text):
        return text
    if "UserError: " in text:
        return text.rsplit("UserError: ", 1)[1]
    return text.rstrip().splitlines()[-1].partition(": ")[2]


# ---------------------------------------------------------------------- the end of a process
def end_with_line(error: BaseException) -> int | None:
    """Prints the line for `error` to stderr; the status to end with, or None if there is no line for it.

    With SCONE_TRACEBACK set, the traceback comes before it.
    """
    if isinstance(error, BrokenPipeError) and _reader_is_gone(sys.stdout):
        _discard(sys.stdout)
        return BROKEN_PIPE
    line = explain(error)
    if line is None:
        return None
    if os.environ.get("SCONE_TRACEBACK"):
        traceback.print_exception(error)
    with contextlib.suppress(OSError, ValueError):
        print(f"error: {line}", file=sys.stderr)
    return USER_ERROR


def flush_output() -> int:
    """Writes out what was printed; 0, or the status to end with where that fails, such as on a full disk."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        gone = isinstance(error, BrokenPipeError)
        _discard(sys.stdout)
        if not gone:
            print(f"error: standard output: {_of_system(error, str(error))}", file=sys.stderr)
        return BROKEN_PIPE if gone else USER_ERROR
    return 0


def _reader_is_gone(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no real file
        return False


def _discard(stream: TextIO) -> None:
    """Lets what a stream still holds vanish, or Python would complain about it when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def report_threads() -> None:
    """Reports a failure in a thread in one line as well."""
    threading.excepthook = _report_thread


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    if type(failed.thread).__module__.startswith("tensorboard."):
        return  # it raises the same again at the next call of its writer
    line = None if failed.exc_value is None else explain(failed.exc_value)
    if line is None:
        threading.__excepthook__(failed)
    else:
        print(f"warning: {line}", file=sys.stderr)
