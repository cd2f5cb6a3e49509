"""Samples that could not be used, counted per reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from scone_pl.data.sample import BrokenSampleError

_MAX_EXAMPLES = 10_000


@dataclass
class Faults:
    """Samples that could not be used."""

    counts: Counter[str] = field(default_factory=Counter)
    """Per reason."""
    examples: list[str] = field(default_factory=list)
    """The first 10,000, one line each: key, reason, details."""

    def add(self, key: str, error: BrokenSampleError) -> None:
        """Counts one error."""
        self.counts[error.reason] += 1
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(" ".join(f"{key}: {error.reason}: {error}".split()))

    def merge(self, other: Faults) -> None:
        """Adds the counts and examples of `other`."""
        self.counts.update(other.counts)
        self.examples += other.examples[: _MAX_EXAMPLES - len(self.examples)]

    def listed(self, limit: int, exclude: Collection[str] = ()) -> list[str]:
        """A selection of examples in order, including the first of each reason.

        Args:
            limit: maximum number; at least one per reason is returned.
            exclude: reasons to leave out.
        """
        first: dict[str, int] = {}
        shown = []
        for number, line in enumerate(self.examples):
            reason = next((reason for reason in self.counts if f": {reason}: " in line), "")
            if reason not in exclude:
                shown.append(number)
                first.setdefault(reason, number)
        numbers = [*first.values(), *(number for number in shown if number not in first.values())]
        return [self.examples[number] for number in sorted(numbers[: max(limit, len(first))])]

    def report(self, title: str, limit: int, unlisted: Collection[str] = ()) -> str:
        """Lines that count the faults under `title` and show examples, each ended; empty if there are none.

        Args:
            title: what they are.
            limit: maximum number of examples, see `listed`.
            unlisted: reasons that are only counted.
        """
        if not self.total:
            return ""
        examples = self.listed(limit, exclude=unlisted)
        more = self.total - sum(self.counts[reason] for reason in unlisted) - len(examples)
        lines = [f"{title}: {self}", *(f"  {example}" for example in examples)]
        return "\n".join([*lines, *([f"  ... and {more} more"] if more > 0 else []), ""])

    def to_json(self) -> dict[str, Any]:
        """JSON representation."""
        return {"counts": dict(self.counts), "examples": self.examples}

    @classmethod
    def from_json(cls, stored: Any) -> Faults:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: `stored` has another structure.
        """
        return cls(Counter(dict(stored["counts"])), list(stored["examples"]))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common()) or "none"
