"""Samples that could not be used, counted per reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from scone_pl.data.sample import BrokenSampleError

_EXAMPLES_KEPT = 10_000


@dataclass
class Faults:
    """Samples that could not be used."""

    counts: Counter[str] = field(default_factory=Counter)
    """Per reason."""
    examples: list[str] = field(default_factory=list)
    """Each (the first 10,000) with key, reason and details, on one line."""

    def add(self, key: str, error: BrokenSampleError) -> None:
        """Counts one."""
        self.counts[error.reason] += 1
        if len(self.examples) < _EXAMPLES_KEPT:
            self.examples.append(" ".join(f"{key}: {error.reason}: {error}".split()))

    def merge(self, other: Faults) -> None:
        """Adds those of `other`."""
        self.counts.update(other.counts)
        self.examples += other.examples[: _EXAMPLES_KEPT - len(self.examples)]

    def listed(self, most: int, without: Collection[str] = ()) -> list[str]:
        """Some examples in order, the first of each reason among them.

        Args:
            most: how many, or one a reason where that is more.
            without: reasons that are not listed.
        """
        first: dict[str, int] = {}
        shown = []
        for number, line in enumerate(self.examples):
            reason = next((reason for reason in self.counts if f": {reason}: " in line), "")
            if reason not in without:
                shown.append(number)
                first.setdefault(reason, number)
        chosen = [*first.values(), *(number for number in shown if number not in first.values())]
        return [self.examples[number] for number in sorted(chosen[: max(most, len(first))])]

    def to_json(self) -> dict[str, Any]:
        """As it is written into a file."""
        return {"counts": dict(self.counts), "examples": self.examples}

    @classmethod
    def from_json(cls, stored: Any) -> Faults:
        """Those that were written.

        Raises:
            KeyError, TypeError, ValueError: they are not what `to_json` gives.
        """
        return cls(Counter(dict(stored["counts"])), list(stored["examples"]))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common()) or "none"
