"""Crash-safe store of the judge's answers: an append-only JSONL file.

A line is an unmodified answer or a failure; `ask` is the hash of the question (see `calls.py`). Each line is appended
in one write. A process killed while writing leaves a truncated last line, which the next writer removes.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from scone_pl.errors import UserError
from scone_pl.files import read_bytes

_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of the store."""

    ask: str
    """Hash of the question."""
    text: str | None = None
    """The raw answer; None for a failure."""
    failure: str | None = None
    """Reason of a failure."""
    date: str = ""
    """UTC, ISO 8601."""
    model: str = ""
    """The requested model."""
    answered_by: str = ""
    """The model that answered, according to the service."""
    finish_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    """Token counts according to the service."""
    about: dict[str, Any] = field(default_factory=dict)
    """Informational: kind, task, key, sampling, scoring, prompt."""


class AnswerStore:
    """The answers in a file; writing requires `with store:`, by one process at a time."""

    def __init__(self, file: str | Path) -> None:
        """Reads the file if it exists; a truncated last line is ignored.

        Raises:
            UserError: any other line is damaged.
        """
        self.file = Path(file)
        self._answers: dict[str, list[Answer]] = {}
        self._descriptor: int | None = None
        self._lock: int | None = None
        self._load()

    def of(self, ask: str) -> list[Answer]:
        """All answers and failures of one question, in order."""
        return self._answers.get(ask, [])

    def __len__(self) -> int:
        return sum(map(len, self._answers.values()))

    def add(self, answer: Answer) -> None:
        """Appends a line; it is in the page cache, not necessarily on disk, when this returns."""
        if self._descriptor is None:
            raise RuntimeError("open the store for writing first: with store: ...")
        line = (json.dumps(asdict(answer)) + "\n").encode()
        start = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):
                raise OSError(f"{written} of {len(line)} bytes written")
        except OSError as error:
            os.ftruncate(self._descriptor, start)
            raise UserError(
                f"{self.file}: cannot be written ({error}); free some space and run the same command to resume"
            ) from None
        self._answers.setdefault(answer.ask, []).append(answer)

    def __enter__(self) -> AnswerStore:
        """Locks the file for writing, repairs its end, and reads it again, since another process may have written.

        Raises:
            UserError: another process holds the lock.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.file.with_name(f"{self.file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 100, 0).decode(errors="replace").strip()
            self.__exit__(None, None, None)
            raise UserError(f"{self.file}: another judge ({owner or 'unknown'}) is writing; wait for it") from None
        except OSError as error:
            self.__exit__(None, None, None)
            raise UserError(f"{self.file}: cannot be locked here ({error.strerror}); use a local disk") from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
        try:
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._repair(self._descriptor)
            self._load()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
        if self._lock is not None:
            os.close(self._lock)  # releases the lock
        self._descriptor = self._lock = None

    @staticmethod
    def _repair(descriptor: int) -> None:
        """Removes a truncated last line; completes one that only lacks its newline."""
        size = os.fstat(descriptor).st_size
        tail, start = b"", size
        while start and b"\n" not in tail:
            step = min(start, 1 << 16)
            start -= step
            tail = os.pread(descriptor, step, start) + tail
        last = tail.rpartition(b"\n")[2]
        if last:
            if _parse_line(last) is None:
                os.ftruncate(descriptor, size - len(last))
            else:
                os.write(descriptor, b"\n")

    def _load(self) -> None:
        self._answers = {}
        if not self.file.exists():
            return
        lines = read_bytes(self.file).split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            answer = _parse_line(line)
            if answer is not None:
                self._answers.setdefault(answer.ask, []).append(answer)
            elif number < len(lines):
                raise UserError(
                    f"{self.file}:{number}: not a valid answer; correct the line, or move it to another file"
                )


def _parse_line(line: bytes) -> Answer | None:
    """Parses a line; None if it is damaged or invalid."""
    try:
        record = json.loads(line)
        answer = Answer(**{name: record[name] for name in Answer.__dataclass_fields__ if name in record})
    except (ValueError, TypeError, RecursionError):
        return None
    strings = [text for text in (answer.text, answer.failure) if text is not None]
    strings += [answer.ask, answer.date, answer.model, answer.answered_by, answer.finish_reason]
    counts = [answer.usage.get(name, 0) for name in _COUNTS] if isinstance(answer.usage, dict) else [None]
    valid = (
        all(isinstance(text, str) for text in strings)
        and all(type(count) is int and count >= 0 for count in counts)
        and isinstance(answer.about, dict)
    )
    return answer if valid else None
