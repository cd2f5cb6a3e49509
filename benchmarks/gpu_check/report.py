"""What a step of the check reports: values, problems, what was skipped. Written to its file at every change."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scone_pl.errors import UserError
from scone_pl.files import write_json

FAILURES = (RuntimeError, ValueError, TypeError, AssertionError, OSError, ImportError, UserError)
"""What one case of a step may raise without ending the step: CUDA and compiler errors are RuntimeErrors."""


@dataclass
class Report:
    """One step's report; complete up to the moment in which its process dies."""

    file: Path
    values: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: str = ""
    """What was left out and why; empty = nothing."""

    def record(self, **values: Any) -> None:
        """Adds values, which must be JSON."""
        self.values.update(values)
        self._write()

    def require(self, holds: bool, problem: str) -> None:
        """Notes `problem` unless `holds`."""
        if not holds:
            self.problems.append(problem)
            self._write()

    def skip(self, reason: str) -> None:
        """Notes that a part of the step cannot run here."""
        self.skipped = reason
        self._write()

    def _write(self) -> None:
        write_json({"values": self.values, "problems": self.problems, "skipped": self.skipped}, self.file)


def one_line(error: BaseException) -> str:
    """Type and first line of an exception's message, shortened."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def problem_or(call: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """What `call` returns, or why it failed under the key `problem`."""
    try:
        return call(*args)
    except FAILURES as error:
        return {"problem": one_line(error)}


def read_report(file: Path) -> dict[str, Any]:
    """What a step has written; empty if it wrote nothing."""
    return json.loads(file.read_text()) if file.exists() else {}
