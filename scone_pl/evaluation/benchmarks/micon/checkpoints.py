"""The checkpoints of MICON-Bench, and the score of a dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

HARD_CAP = 0.4
"""Greatest score of a dimension with a failed hard checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """One yes/no point."""

    text: str
    hard: str | None = None
    """The hard constraint that it stands for."""
    fault: str | None = None
    """Name of the error if it is not met."""


_CONTENT = yaml.safe_load((Path(__file__).parent / "checkpoints.yaml").read_text(encoding="utf-8"))
TASKS: tuple[str, ...] = tuple(_CONTENT)
DIMENSIONS = ("A", "B", "C", "D", "E", "G")
TASK_NOTES: dict[str, str] = {task: content["note"] for task, content in _CONTENT.items()}
CHECKPOINTS: dict[str, dict[str, tuple[Checkpoint, ...]]] = {
    task: {name: tuple(Checkpoint(**check) for check in content[name]) for name in DIMENSIONS if name in content}
    for task, content in _CONTENT.items()
}
"""Task -> dimension -> checkpoints."""


def dimension_score(passed: Sequence[int], hard: Sequence[bool]) -> float:
    """The mean of a dimension's checkpoints, at most `HARD_CAP` if a hard one is 0."""
    mean = sum(passed) / len(passed)
    failed = any(is_hard and not value for value, is_hard in zip(passed, hard, strict=True))
    return min(mean, HARD_CAP) if failed else mean
