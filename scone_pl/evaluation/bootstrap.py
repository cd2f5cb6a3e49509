"""Bootstrap confidence intervals, and paired comparisons of two models.

The items of a benchmark are the random sample, so items are resampled within each task, all groups of an item together.
Symbols: B resamples, n items of a task, G groups.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.groups import Records

RESAMPLES = 2000
LEVEL = 0.95
MIN_ITEMS = 10
"""With fewer items per task, intervals are too narrow and p-values too small."""

Values = dict[str, np.ndarray]
"""Column -> (n, G) float64, NaN where a record is missing or incomplete."""


def intervals(
    records: Records, benchmark: Benchmark, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of every column of `combine(...)["mean"]`; averages require all tasks."""
    keys, values = item_values(records, benchmark)
    resampled = _resampled(benchmark, values, {t: item_weights(k, t, resamples, seed) for t, k in keys.items()})
    return {column: _interval(scores) for column, scores in resampled.items()}


def compare(
    ours: Records, theirs: Records, benchmark: Benchmark, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Paired comparison of two models over the items that are complete for both.

    Returns:
        `n` per task; per column `first`, `second`, `difference` (first - second), its 95 % `interval`, and `p`, the
        two-sided bootstrap probability of a difference of the other sign or none.

    Raises:
        UserError: they have no complete item in common.
    """
    first_keys, first = item_values(ours, benchmark)
    second_keys, second = item_values(theirs, benchmark)
    common = {task: sorted(set(keys) & set(second_keys.get(task, ()))) for task, keys in first_keys.items()}
    common = {task: keys for task, keys in common.items() if keys}
    if not common:
        raise UserError("the two score files have no complete item in common; compare runs of the same benchmark data")
    weights = {task: item_weights(keys, task, resamples, seed) for task, keys in common.items()}
    ones = {task: np.ones((1, len(keys))) for task, keys in common.items()}
    models = [
        {task: _select(values[task], keys[task], common[task]) for task in common}
        for values, keys in ((first, first_keys), (second, second_keys))
    ]
    means = [_resampled(benchmark, model, ones) for model in models]
    resampled = [_resampled(benchmark, model, weights) for model in models]
    columns = {}
    for column in (name for name in means[0] if all(name in scores for scores in (means[1], *resampled))):
        difference = resampled[0][column] - resampled[1][column]
        difference = difference[~np.isnan(difference)]
        point = float(means[0][column][0] - means[1][column][0])
        tail = min(float(np.mean(difference <= 0)), float(np.mean(difference >= 0)))
        columns[column] = {
            "first": float(means[0][column][0]),
            "second": float(means[1][column][0]),
            "difference": point,
            "interval": list(_interval(difference)),
            "p": min(1.0, 2 * max(tail, 1 / resamples)),
        }
    return {"n": {task: len(keys) for task, keys in common.items()}, "resamples": resamples, "columns": columns}


def item_values(records: Records, benchmark: Benchmark) -> tuple[dict[str, list[str]], dict[str, Values]]:
    """Per task the keys of items that are complete in any group, sorted, and their scores."""
    groups = sorted({(record["sampling"], record["scoring"]) for record in records})
    index = {group: number for number, group in enumerate(groups)}
    keys: dict[str, list[str]] = {}
    values: dict[str, Values] = {}
    for task in benchmark.tasks:
        members = [record for record in records if record["task_type"] == task and benchmark.is_complete(record)]
        if not members:
            continue
        keys[task] = sorted({str(record["key"]) for record in members})
        row = {key: number for number, key in enumerate(keys[task])}
        scores = {name: np.full((len(row), len(groups)), np.nan) for name in benchmark.columns(task)}
        for record in members:
            at = row[str(record["key"])], index[record["sampling"], record["scoring"]]
            for name, value in benchmark.item_scores(record).items():
                scores[name][at] = value
        values[task] = scores
    return keys, values


def _select(values: Values, keys: Sequence[str], selected: Sequence[str]) -> Values:
    rows = [keys.index(key) for key in selected]
    return {name: scores[rows] for name, scores in values.items()}


def item_weights(keys: Sequence[str], task: str, resamples: int, seed: int) -> np.ndarray:
    """(B, n): how often each item is drawn; the same for two models with the same keys."""
    generator = np.random.default_rng([seed, zlib.crc32(task.encode())])
    return generator.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), size=resamples).astype(np.float64)


def _resampled(
    benchmark: Benchmark, values: Mapping[str, Values], weights: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """(B,) mean over groups of every column, computed as in the tables; columns without values are omitted."""
    by_group: dict[str, np.ndarray] = {}  # (B, G)
    counts: dict[str, np.ndarray] = {}
    for task in benchmark.tasks:
        for name, scores in values.get(task, {}).items():
            present = ~np.isnan(scores)
            count = counts[f"{task}.{name}"] = weights[task] @ present.astype(np.float64)
            with np.errstate(invalid="ignore", divide="ignore"):
                by_group[f"{task}.{name}"] = weights[task] @ np.where(present, scores, 0.0) / count
    for aggregate in benchmark.aggregates:
        if not all(task in values for task in aggregate.tasks):
            continue
        # A group that lacks a task has no aggregate in any column.
        firsts = [by_group[f"{task}.{benchmark.columns(task)[0]}"] for task in aggregate.tasks]
        incomplete = np.any([np.isnan(first) for first in firsts], axis=0)
        for name in benchmark.average_columns:
            parts = [f"{task}.{name}" for task in aggregate.tasks if f"{task}.{name}" in by_group]
            if not parts:
                continue
            sizes = [counts[part] if aggregate.weighting == "items" else 1.0 for part in parts]
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = sum(by_group[part] * size for part, size in zip(parts, sizes, strict=True)) / sum(sizes)
            by_group[f"{aggregate.name}.{name}"] = np.where(incomplete, np.nan, mean)
    if benchmark.derived and all(f"{a.name}.{benchmark.average_columns[0]}" in by_group for a in benchmark.aggregates):
        by_group |= {name: formula(by_group) for name, formula in benchmark.derived.items()}
    means = {column: _mean_over_groups(scores) for column, scores in by_group.items()}
    return {column: scores for column, scores in means.items() if not np.isnan(scores).all()}


def _mean_over_groups(scores: np.ndarray) -> np.ndarray:
    """(B, G) -> (B,), over the groups that have a value."""
    present = ~np.isnan(scores)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: np.ndarray = np.where(present, scores, 0.0).sum(axis=1) / present.sum(axis=1)
    return means


def _interval(scores: np.ndarray) -> tuple[float, float]:
    edge = (1 - LEVEL) / 2
    low, high = np.nanquantile(scores, [edge, 1 - edge])
    return float(low), float(high)
