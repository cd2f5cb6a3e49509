"""What was found out about samples, and every model's answers, in one SQLite file: nothing is computed or paid twice.

Rows are found by a hash of everything that decides them. Each answer is committed as it arrives, so a process killed at
any time loses none; memory does not grow with their number, as it does with the judge's JSONL file.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from scone_pl.errors import UserError
from scone_pl.vlm.store import Answer

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (step BLOB, item BLOB, facts TEXT, PRIMARY KEY (step, item)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (ask TEXT, number INTEGER, answer TEXT, PRIMARY KEY (ask, number)) WITHOUT ROWID;
"""
_BATCH = 500


class Answers(Protocol):
    """What engines and models need of a store."""

    def facts(self, step: bytes, items: Sequence[bytes]) -> list[dict[str, Any] | None]:
        """What a step has found out about each item; None = not known yet."""
        ...

    def add_facts(self, step: bytes, facts: Iterable[tuple[bytes, Mapping[str, Any]]]) -> None:
        """Stores facts before this returns."""
        ...

    def answers(self, ask: str) -> list[Answer]:
        """All answers and failures of one question, in order."""
        ...

    def add_answer(self, answer: Answer) -> None:
        """Stores an answer before this returns."""
        ...


class Store:
    """A context manager; one process writes at a time, others may read."""

    def __init__(self, file: Path, others: Sequence[Path] = (), wait: float = 0.0) -> None:
        """Opens or creates the file.

        Args:
            file: where new rows go.
            others: files of which rows are read only.
            wait: seconds that another process has to unlock it.
        """
        self.file, self._wait = file, wait
        self._others = [Path(one) for one in others]
        self._connection: sqlite3.Connection | None = None
        self._lock: int | None = None

    def __enter__(self) -> Store:
        """Locks the file.

        Raises:
            UserError: another process holds the lock, or the file is none of ours.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.file.with_name(f"{self.file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + self._wait
        while not _try_lock(self._lock):
            if time.monotonic() >= deadline:
                os.close(self._lock)
                self._lock = None
                raise UserError(f"{self.file}: another process is writing; wait for it")
            time.sleep(0.2)
        with self._readable():
            self._connection = sqlite3.connect(self.file.absolute().as_uri(), uri=True)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")  # a paid answer survives a power cut
            self._connection.executescript(_SCHEMA)
            for number, other in enumerate(self._others):
                self._connection.execute(
                    f"ATTACH DATABASE ? AS other{number}", (f"{other.absolute().as_uri()}?mode=ro",)
                )
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
        self._connection = self._lock = None

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(f"{self.file}: {error}; free some space, or move the file aside") from None

    @property
    def connection(self) -> sqlite3.Connection:
        """The open connection."""
        if self._connection is None:
            raise RuntimeError("open the store first: with store: ...")
        return self._connection

    @property
    def _names(self) -> list[str]:
        return ["main", *(f"other{number}" for number in range(len(self._others)))]

    def facts(self, step: bytes, items: Sequence[bytes]) -> list[dict[str, Any] | None]:
        """What a step has found out about each item; None = not known yet."""
        found: dict[bytes, str] = {}
        with self._readable():
            for start in range(0, len(items), _BATCH):
                part = items[start : start + _BATCH]
                marks = ",".join("?" * len(part))
                for name in self._names:
                    query = f"SELECT item, facts FROM {name}.facts WHERE step = ? AND item IN ({marks})"
                    found |= dict(self.connection.execute(query, (step, *part)))
        return [json.loads(found[item]) if item in found else None for item in items]

    def add_facts(self, step: bytes, facts: Iterable[tuple[bytes, Mapping[str, Any]]]) -> None:
        """Stores them in one transaction."""
        rows = [(step, item, json.dumps(content)) for item, content in facts]
        with self._readable(), self.connection:
            self.connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", rows)

    def answers(self, ask: str) -> list[Answer]:
        """All answers and failures of one question, in order."""
        with self._readable():
            for name in self._names:
                query = f"SELECT answer FROM {name}.answers WHERE ask = ? ORDER BY number"
                if rows := self.connection.execute(query, (ask,)).fetchall():
                    return [Answer(**json.loads(row[0])) for row in rows]
        return []

    def add_answer(self, answer: Answer) -> None:
        """Stores an answer before this returns."""
        row = (answer.ask, answer.ask, json.dumps(vars(answer)))
        query = "INSERT INTO answers VALUES (?, (SELECT count(*) FROM answers WHERE ask = ?), ?)"
        with self._readable(), self.connection:
            self.connection.execute(query, row)

    def absorb(self, file: Path) -> tuple[int, int]:
        """Adds the rows of another store that this one lacks; returns the numbers of facts and answers added."""
        with self._readable():
            before = self.connection.total_changes
            self.connection.execute("ATTACH DATABASE ? AS aside", (str(file),))
            try:
                with self.connection:
                    self.connection.execute("INSERT OR IGNORE INTO facts SELECT * FROM aside.facts")
                    middle = self.connection.total_changes
                    self.connection.execute("INSERT OR IGNORE INTO answers SELECT * FROM aside.answers")
            finally:
                self.connection.execute("DETACH DATABASE aside")
            return middle - before, self.connection.total_changes - middle


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
