"""Means over seeds with 95 % intervals, differences paired by seed, and their correction for multiple comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


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
        # One digit more where two do not show whether 0 is inside.
        digits = 3 if f"{abs(self.mean):.2f}" == f"{self.half_width:.2f}" and self.half_width else 2
        return f"{self.mean:.{digits}f} ± {self.half_width:.{digits}f}"

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return abs(self.mean) > self.half_width

    @property
    def p_value(self) -> float:
        """Two-sided, of Student's t test that the mean is 0; nan with a single seed."""
        if math.isnan(self.half_width):
            return math.nan
        if self.half_width == 0:
            return float(self.mean == 0)
        freedom = len(self.values) - 1
        return float(2 * stats.t.sf(abs(self.mean) / self.half_width * stats.t.ppf((1 + LEVEL) / 2, freedom), freedom))


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of independent values."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return Estimate(mean, math.nan, tuple(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(mean, float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * error, tuple(values))


def difference(one: Sequence[float], other: Sequence[float]) -> Estimate:
    """Mean of `one` - `other`, paired: both have the same seeds in the same order."""
    return estimate([a - b for a, b in zip(one, other, strict=True)])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values adjusted so that all below 0.05 hold together at that level.

    nan (a single seed) stays nan and is not counted.
    """
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted, largest = list(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
