"""Statistics of two columns of ratings, and their bootstrap intervals.

Correlations are scipy's; kappa is torchmetrics'. A statistic that is not defined (too few images, a constant column)
is NaN.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
MIN_ITEMS = 30
"""With fewer items of a task there is no interval."""
MIN_IMAGES = 3
CORRELATIONS = ("pearson", "spearman", "kendall", "kappa")
STATISTICS = (*CORRELATIONS, "bias", "std", "low", "high", "slope", "ties")
"""kendall: tau-b; kappa: quadratic, on rounded values; bias: mean of candidate - reference, std: its standard
deviation, low and high: limits of agreement (bias -+ 1.96 std), slope: of the difference on the mean; ties: fraction
of equal ratings."""


def statistics_of(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """All of `STATISTICS`.

    Args:
        x: (n,) reference.
        y: (n,) candidate.
    """
    result = dict.fromkeys(STATISTICS, math.nan)
    if len(x) < MIN_IMAGES:
        return result
    difference = y - x
    bias, std = float(difference.mean()), float(difference.std(ddof=1))
    result |= {"bias": bias, "std": std, "low": bias - 1.96 * std, "high": bias + 1.96 * std}
    result["ties"] = float(np.mean(difference == 0))
    mean = (x + y) / 2
    if np.ptp(mean) > 0:
        result["slope"] = float(stats.linregress(mean, difference).slope)
    if np.ptp(x) > 0 and np.ptp(y) > 0:
        result["pearson"] = float(stats.pearsonr(x, y).statistic)
        result["spearman"] = float(stats.spearmanr(x, y).statistic)
        result["kendall"] = float(stats.kendalltau(x, y).statistic)
        result["kappa"] = quadratic_kappa(x, y)
    return result


def quadratic_kappa(x: np.ndarray, y: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights on values that are rounded half up."""
    import torch
    from torchmetrics.functional.classification import multiclass_cohen_kappa

    a, b = np.floor(x + 0.5).astype(np.int64), np.floor(y + 0.5).astype(np.int64)
    lowest = min(a.min(), b.min())
    classes = int(max(a.max(), b.max()) - lowest) + 1
    if classes == 1 or classes > 1000:
        return math.nan
    first, second = torch.from_numpy(a - lowest), torch.from_numpy(b - lowest)
    return float(multiclass_cohen_kappa(first, second, num_classes=classes, weights="quadratic"))


def binary_kappa(x: Sequence[int], y: Sequence[int]) -> float:
    """Cohen's kappa of 0/1 answers."""
    if len({*x, *y}) < 2:
        return math.nan
    return quadratic_kappa(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))


def interval_alpha(ratings: np.ndarray) -> float:
    """Krippendorff's alpha for interval data.

    Args:
        ratings: (n, raters), NaN where a rater has not rated.
    """
    ratings = ratings[np.sum(~np.isnan(ratings), axis=1) > 1]
    if len(ratings) < MIN_IMAGES:
        return math.nan
    counts = np.sum(~np.isnan(ratings), axis=1)
    # The sum of squared differences over all ordered pairs of m values is 2 m^2 times their variance.
    within = np.sum(2 * counts**2 * np.nanvar(ratings, axis=1) / (counts - 1))
    values = ratings[~np.isnan(ratings)]
    total = 2 * len(values) ** 2 * values.var() / (len(values) - 1)
    return float(1 - within / total) if total > 0 else math.nan


@dataclass(frozen=True)
class Cell:
    """Ratings of the same images by both sides."""

    x: np.ndarray
    """(n, raters) of the reference, NaN where missing."""
    y: np.ndarray
    """(n, raters) of the candidate."""
    items: np.ndarray
    """(n,) index of each image's item (task and key), for resampling."""

    def statistics(self) -> dict[str, float]:
        """Means over pairs of raters: the k-th of one side with the k-th of the other, repeated if it has fewer."""
        pairs = max(self.x.shape[1], self.y.shape[1])
        return _mean_of(
            [(self.x[:, k % self.x.shape[1]], self.y[:, k % self.y.shape[1]]) for k in range(pairs)], statistics_of
        )

    def ceiling(self) -> dict[str, float]:
        """The same statistics of the reference's raters with each other, mean over pairs; `alpha` over all."""
        raters = self.x.shape[1]
        pairs = [(self.x[:, i], self.x[:, j]) for i in range(raters) for j in range(i + 1, raters)]
        return {**_mean_of(pairs, statistics_of), "alpha": interval_alpha(self.x)}

    def resampled(self, generator: np.random.Generator, tasks: Sequence[np.ndarray]) -> Cell:
        """Items drawn with replacement within each task, all images of an item together.

        Args:
            generator: source of randomness.
            tasks: per task the indices of its items.
        """
        drawn = np.concatenate([generator.choice(items, len(items)) for items in tasks])
        order = np.argsort(self.items, kind="stable")
        starts = np.searchsorted(self.items[order], np.arange(self.items.max() + 2))
        rows = np.concatenate([order[starts[item] : starts[item + 1]] for item in drawn])
        return Cell(self.x[rows], self.y[rows], self.items[rows])


def _mean_of(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], measure: Callable[[np.ndarray, np.ndarray], dict[str, float]]
) -> dict[str, float]:
    found = []
    for x, y in pairs:
        both = ~np.isnan(x) & ~np.isnan(y)
        found.append(measure(x[both], y[both]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of NaN alone
        return {name: float(np.nanmean([one[name] for one in found])) if found else math.nan for name in STATISTICS}


def bootstrap(
    cell: Cell, tasks: Sequence[np.ndarray], resamples: int, seed: int, name: str
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of the correlations and the bias; empty if a task has fewer than `MIN_ITEMS` items."""
    if resamples == 0 or min(map(len, tasks)) < MIN_ITEMS:
        return {}
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    names = (*CORRELATIONS, "bias")
    drawn: dict[str, list[float]] = {one: [] for one in names}
    for _ in range(resamples):
        found = cell.resampled(generator, tasks).statistics()
        for one in names:
            drawn[one].append(found[one])
    edge = 100 * (1 - LEVEL) / 2
    return {
        one: tuple(float(end) for end in np.nanpercentile(values, [edge, 100 - edge]))  # type: ignore[misc]  # two ends
        for one, values in drawn.items()
        if not np.isnan(values).all()
    }
