"""Failures by name from the presence of candidates: which subjects of which reference are in the generated image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Matrix = Sequence[Sequence[int]]
"""Per reference a 0/1 for each of its candidates."""
NAMES = ("redundancy", "omission", "swap", "dominance", "drift")


def failures_of(label: Matrix, present: Matrix) -> dict[str, bool]:
    """Which failures an image has.

    - redundancy: a distractor is present.
    - omission: a target is absent.
    - swap: a reference's target is absent, and a distractor of the same reference is there instead.
    - dominance: a reference has none of its targets in the image, while another has candidates beyond its targets.
    - drift: a target is absent, and nothing of its reference is there instead.

    Args:
        label: 1 for targets, 0 for distractors.
        present: 1 for candidates that are in the image.
    """
    swap = drift = redundancy = omission = False
    lost, excessive = set(), set()
    for number, (wanted, found) in enumerate(zip(label, present, strict=True)):
        pairs = list(zip(wanted, found, strict=True))
        extra, missing = (0, 1) in pairs, (1, 0) in pairs
        redundancy |= extra
        omission |= missing
        swap |= missing and extra
        drift |= missing and not any(found)
        if extra:
            excessive.add(number)
        if missing and (1, 1) not in pairs:
            lost.add(number)
    dominance = any(one != other for one in lost for other in excessive)
    found_names = (redundancy, omission, swap, dominance, drift)
    return dict(zip(NAMES, found_names, strict=True))


def by_reference(records: Sequence[Mapping[str, Any]]) -> list[tuple[int, float | None, float | None, int]]:
    """Over records with `label` and `pred`, for each position of a reference: fractions of its targets and of its
    distractors that are in the image, and the number of candidates; None where there are none.
    """
    counts: dict[int, list[int]] = {}
    for record in records:
        for number, (wanted, found) in enumerate(zip(record["label"], record["pred"], strict=True), 1):
            sums = counts.setdefault(number, [0, 0, 0, 0])
            for target, present in zip(wanted, found, strict=True):
                sums[0 if target else 2] += present
                sums[1 if target else 3] += 1
    return [
        (number, sums[0] / sums[1] if sums[1] else None, sums[2] / sums[3] if sums[3] else None, sums[1] + sums[3])
        for number, sums in sorted(counts.items())
        if sums[1] + sums[3]
    ]
