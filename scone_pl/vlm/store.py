"""What was asked of the judge and what it said: an append-only JSONL file that outlives any kill.

A line is an answer as it came, or a failure; `ask` is the hash of what was asked (see `calls.py`). Lines are only ever
added, each in one write. A process killed in mid-write leaves half a last line, which the next writer cuts off.
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
    """One line."""

    ask: str
    """Hash of what was asked."""
    text: str | None = None
    """The raw answer; None for a failure."""
    failure: str | None = None
    """Why there is no answer."""
    date: str = ""
    """UTC, ISO 8601."""
    model: str = ""
    """That was asked for."""
    answered_by: str = ""
    """Model that the service says has answered."""
    finish_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    """Tokens as the service counts them."""
    about: dict[str, Any] = field(default_factory=dict)
    """For people: kind, task, key, sampling, scoring, prompt."""


class AnswerStore:
    """The file, read whole; writing needs `with store:`, one process at a time."""

    def __init__(self, file: str | Path) -> None:
        """Reads what is there; half a last line is passed over.

        Raises:
            UserError: another line is damaged.
        """
        self.file = Path(file)
        self._answers: dict[str, list[Answer]] = {}
        self._descriptor: int | None = None
        self._lock: int | None = None
        self._load()

    def of(self, ask: str) -> list[Answer]:
        """All answers and failures of one question, in the order in which they came."""
        return self._answers.get(ask, [])

    def __len__(self) -> int:
        return sum(map(len, self._answers.values()))

    def add(self, answer: Answer) -> None:
        """Appends a line: in the file, as far as this machine's memory counts, when this returns."""
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
            raise UserError(f"{self.file}: can not be written ({error}); make room and run the same again") from None
        self._answers.setdefault(answer.ask, []).append(answer)

    def __enter__(self) -> AnswerStore:
        """Opens the file for writing, repairs its end, and reads it again: another process may have added to it.

        Raises:
            UserError: another process is writing.
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
            raise UserError(f"{self.file}: can not be locked here ({error.strerror}); use a local disk") from None
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
            os.close(self._lock)  # which unlocks, as does a kill
        self._descriptor = self._lock = None

    @staticmethod
    def _repair(descriptor: int) -> None:
        """Cuts off half a last line; a whole one that only lacks its line break gets it."""
        size = os.fstat(descriptor).st_size
        tail, start = b"", size
        while start and b"\n" not in tail:
            step = min(start, 1 << 16)
            start -= step
            tail = os.pread(descriptor, step, start) + tail
        last = tail.rpartition(b"\n")[2]
        if last:
            if _parse(last) is None:
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
            answer = _parse(line)
            if answer is not None:
                self._answers.setdefault(answer.ask, []).append(answer)
            elif number < len(lines):
                raise UserError(
                    f"{self.file}:{number}: not a line of this store; correct it, or move it to another file"
                )


def _parse(line: bytes) -> Answer | None:
    """The answer that a line holds; None if it is damaged or not a line of a store."""
    try:
        record = json.loads(line)
        answer = Answer(**{name: record[name] for name in Answer.__dataclass_fields__ if name in record})
    except (ValueError, TypeError, RecursionError):
        return None
    texts = [text for text in (answer.text, answer.failure) if text is not None]
    texts += [answer.ask, answer.date, answer.model, answer.answered_by, answer.finish_reason]
    counts = [answer.usage.get(name, 0) for name in _COUNTS] if isinstance(answer.usage, dict) else [None]
    well_typed = (
        all(isinstance(text, str) for text in texts)
        and all(type(count) is int and count >= 0 for count in counts)
        and isinstance(answer.about, dict)
    )
    return answer if well_typed else None
