"""Means over seeds with 95 % intervals, differences paired by seed, and their correction for multiple comparisons.

Two things vary: seeds (trainings) and episodes, which are the same for all seeds. Where the score of every episode is
known, both count: the variance of the mean is that between seeds over their number, plus that of episodes' means over
seeds. A bootstrap over both levels estimates the same variance, but with a handful of seeds too small a one, which is
why the interval is Student's t with the seeds' degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    half_width: float
    """Of the 95 % interval (Student's t); nan with a single seed. With the noise of episodes where that is known."""
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


def estimate(values: Sequence[float], episode_error: float = 0.0) -> Estimate:
    """Mean and 95 % interval of independent values; `episode_error`: see the function."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return Estimate(mean, math.nan, tuple(values))
    error = math.hypot(float(np.std(values, ddof=1)) / math.sqrt(count), episode_error)
    return Estimate(mean, float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * error, tuple(values))


def difference(one: Sequence[float], other: Sequence[float], episode_error: float = 0.0) -> Estimate:
    """Mean of `one` - `other`, paired: both have the same seeds in the same order."""
    return estimate([a - b for a, b in zip(one, other, strict=True)], episode_error)


def episode_error(seeds: Sequence[Mapping[str, Sequence[float]]]) -> float:
    """Standard error of a metric by the draw of episodes, within each task.

    Args:
        seeds: for each, task -> parts of its episodes, the sum over tasks of whose means is the metric
            (`Evaluator.by_episode`).
    """
    variance = 0.0
    for task in seeds[0]:
        means = np.mean([one[task] for one in seeds], axis=0)
        if len(means) > 1:
            variance += float(np.var(means, ddof=1)) / len(means)
    return math.sqrt(variance)


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
