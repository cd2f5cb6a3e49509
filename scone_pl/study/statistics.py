"""Means over seeds with 95 % intervals, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond, the next smaller one is used.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
_T |= {12: 2.179, 15: 2.131, 20: 2.086, 30: 2.042, 60: 2.0, 120: 1.98}


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    half_width: float
    """Of the 95 % interval (Student's t); nan with a single seed."""
    values: tuple[float, ...]

    def __str__(self) -> str:
        if math.isnan(self.half_width):
            return f"{self.mean:.2f}"
        # One digit more where two do not say whether 0 is inside.
        digits = 3 if f"{abs(self.mean):.2f}" == f"{self.half_width:.2f}" and self.half_width else 2
        return f"{self.mean:.{digits}f} ± {self.half_width:.{digits}f}"

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of independent values."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Estimate(mean, math.nan, tuple(values))
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    freedom = max(f for f in _T if f <= count - 1)
    return Estimate(mean, _T[freedom] * deviation / math.sqrt(count), tuple(values))


def difference(one: Sequence[float], other: Sequence[float]) -> Estimate:
    """Mean of `one` - `other`, paired: both have the same seeds in the same order."""
    return estimate([a - b for a, b in zip(one, other, strict=True)])
