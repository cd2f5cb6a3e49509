"""Failures by name from the presence of candidates: which subjects of which reference are in the generated image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Matrix = Sequence[Sequence[int]]
"""Per reference a 0/1 for each of its candidates."""
NAMES = ("redundancy", "omission", "swap", "dominance", "drift")


class OfReference(NamedTuple):
    """What became of the candidates of one reference."""

    extra: bool
    """A distractor is present."""
    missing: bool
    """A target is absent."""
    nothing: bool
    """None of the candidates is present."""
    lost: bool
    """It has targets, and none is present."""


def _of_reference(wanted: Sequence[int], found: Sequence[int]) -> OfReference:
    pairs = list(zip(wanted, found, strict=True))
    missing = (1, 0) in pairs
    return OfReference((0, 1) in pairs, missing, not any(found), missing and (1, 1) not in pairs)


def _patterns(label: Matrix, present: Matrix) -> list[dict[str, bool]]:
    """For each reference, which failures it suffers."""
    found = [_of_reference(*pair) for pair in zip(label, present, strict=True)]
    return [
        {
            "redundancy": one.extra,
            "omission": one.missing,
            "swap": one.missing and one.extra,
            "dominance": one.lost and any(other.extra for j, other in enumerate(found) if j != i),
            "drift": one.missing and one.nothing,
        }
        for i, one in enumerate(found)
    ]


def failures_of(label: Matrix, present: Matrix) -> dict[str, bool]:
    """Which failures an image has: those that any of its references suffers.

    - redundancy: a distractor is present.
    - omission: a target is absent.
    - swap: a reference's target is absent, and a distractor of the same reference is there instead.
    - dominance: a reference has none of its targets in the image, while another has candidates beyond its targets.
    - drift: a target is absent, and nothing of its reference is there instead.

    Args:
        label: 1 for targets, 0 for distractors.
        present: 1 for candidates that are in the image.
    """
    patterns = _patterns(label, present)
    return {name: any(one[name] for one in patterns) for name in NAMES}


@dataclass
class Position:
    """Sums over images of what became of their references at one position."""

    targets: int = 0
    targets_present: int = 0
    distractors: int = 0
    distractors_present: int = 0
    images: int = 0
    """Those whose reference has candidates."""
    failed: Counter[str] = field(default_factory=Counter)
    """Number of images whose reference suffers each failure."""


def by_reference(records: Sequence[Mapping[str, Any]]) -> dict[int, Position]:
    """Sums over records with `label` and `pred`, by position of the reference from 1; without candidates left out."""
    positions: dict[int, Position] = {}
    for record in records:
        patterns = _patterns(record["label"], record["pred"])
        for number, (wanted, found) in enumerate(zip(record["label"], record["pred"], strict=True), 1):
            if not wanted:
                continue
            position = positions.setdefault(number, Position())
            position.images += 1
            position.targets += sum(wanted)
            position.distractors += len(wanted) - sum(wanted)
            position.targets_present += sum(p for t, p in zip(wanted, found, strict=True) if t)
            position.distractors_present += sum(p for t, p in zip(wanted, found, strict=True) if not t)
            position.failed.update(name for name, applies in patterns[number - 1].items() if applies)
    return dict(sorted(positions.items()))
