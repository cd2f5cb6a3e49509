"""The comparison of two sides: per column and task, pooled, over systems, and the largest disagreements."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from scone_pl.evaluation.agreement.sources import Image, Source, paired
from scone_pl.evaluation.agreement.statistics import (
    LEVEL,
    MIN_IMAGES,
    STATISTICS,
    Cell,
    binary_kappa,
    bootstrap,
)

POOLED, OVER_TASKS = "pooled", "mean over tasks"
MAX_DISAGREEMENTS = 20


def compare(reference: Source, candidate: Source, *, resamples: int, seed: int) -> dict[str, Any]:
    """All results, as JSON types; what is not defined is null.

    Raises:
        UserError: see `paired`.
    """
    common = paired(reference, candidate)
    columns = {
        column: _column(column, images, reference, candidate, resamples, seed) for column, images in common.items()
    }
    return {
        "reference": reference.name,
        "candidate": candidate.name,
        "images": len({image for images in common.values() for image in images}),
        "incomplete": {"reference": reference.incomplete, "candidate": candidate.incomplete},
        "resamples": resamples,
        "level": LEVEL,
        "columns": columns,
        "presence": presence(reference, candidate),
    }


def values(source: Source, column: str, images: Sequence[Image]) -> np.ndarray:
    """(images, raters), NaN where a rater has not rated."""
    ratings = source.ratings[column]
    raters = sorted({rater for image in images for rater in ratings[image]})
    return np.array([[ratings[image].get(rater, math.nan) for rater in raters] for image in images])


def means(source: Source, column: str, images: Sequence[Image]) -> np.ndarray:
    """(images,) mean over raters."""
    mean: np.ndarray = np.nanmean(values(source, column, images), axis=1)
    return mean


def _cell(reference: Source, candidate: Source, column: str, images: Sequence[Image]) -> Cell:
    index = {item: i for i, item in enumerate(sorted({(image.task, image.key) for image in images}))}
    items = np.array([index[image.task, image.key] for image in images])
    return Cell(values(reference, column, images), values(candidate, column, images), items)


def _column(
    column: str, images: Sequence[Image], reference: Source, candidate: Source, resamples: int, seed: int
) -> dict[str, Any]:
    by_task: dict[str, list[Image]] = {}
    for image in images:
        by_task.setdefault(image.task, []).append(image)
    rows = {}
    for task, members in by_task.items():
        rows[task] = _row(reference, candidate, column, members, resamples, seed, task)
    if len(by_task) > 1:
        rows[POOLED] = _row(reference, candidate, column, images, resamples, seed, POOLED)
        rows[OVER_TASKS] = _over_tasks([rows[task] for task in by_task])
    return {
        "tasks": rows,
        "systems": systems(reference, candidate, column, images, resamples, seed),
        "disagreements": disagreements(reference, candidate, column, images),
    }


def _row(
    reference: Source,
    candidate: Source,
    column: str,
    images: Sequence[Image],
    resamples: int,
    seed: int,
    name: str,
) -> dict[str, Any]:
    cell = _cell(reference, candidate, column, images)
    of_task: dict[str, set[int]] = {}
    for image, item in zip(images, cell.items, strict=True):
        of_task.setdefault(image.task, set()).add(int(item))
    tasks = [np.array(sorted(items)) for items in of_task.values()]
    found = cell.statistics()
    return {
        "n": len(images),
        "items": len(set(cell.items)),
        **{statistic: _json(found[statistic]) for statistic in STATISTICS},
        "intervals": {k: list(v) for k, v in bootstrap(cell, tasks, resamples, seed, f"{column} {name}").items()},
        "ceiling": {statistic: _json(value) for statistic, value in cell.ceiling().items()},
        "why": _why(cell),
    }


def _why(cell: Cell) -> str | None:
    """Reason for correlations that are not defined."""
    if len(cell.x) < MIN_IMAGES:
        return f"fewer than {MIN_IMAGES} images"
    constant = [name for name, side in (("reference", cell.x), ("candidate", cell.y)) if _is_constant(side)]
    return f"constant scores of the {' and the '.join(constant)}" if constant else None


def _is_constant(side: np.ndarray) -> bool:
    return all(np.ptp(column[~np.isnan(column)]) == 0 for column in side.T)


def _over_tasks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fisher-z means of Pearson and Spearman, plain means of the rest, over the tasks that have them."""
    result: dict[str, Any] = {"n": sum(row["n"] for row in rows), "items": sum(row["items"] for row in rows)}
    ceilings = [{"n": row["n"], **row["ceiling"]} for row in rows]
    result |= {statistic: _mean(rows, statistic) for statistic in STATISTICS}
    ceiling = {statistic: _mean(ceilings, statistic) for statistic in (*STATISTICS, "alpha")}
    return {**result, "intervals": {}, "ceiling": ceiling, "why": None}


def _mean(rows: Sequence[Mapping[str, Any]], statistic: str) -> float | None:
    """Over the rows that have the statistic, each with its number `n` of images.

    The z of a perfect correlation is infinite, so that one task of few images would decide the mean: correlations of n
    images enter as at most 1 - 1 / (2 n), unless all are equal.
    """
    known = [(row[statistic], row["n"]) for row in rows if row[statistic] is not None]
    values = [value for value, _ in known]
    if not values or statistic not in ("pearson", "spearman") or max(values) - min(values) < 1e-12:
        return sum(values) / len(values) if values else None
    limits = [1 - 1 / (2 * n) for _, n in known]
    return float(np.tanh(np.mean(np.arctanh(np.clip(values, np.negative(limits), limits)))))


def systems(
    reference: Source, candidate: Source, column: str, images: Sequence[Image], resamples: int, seed: int
) -> dict[str, Any] | None:
    """Systems under both judges: means, ranks and pairs of all images; means and ranks by task; None of one system."""
    present = {image.system for image in images}
    names = [name for name in reference.systems if name in present]
    if len(names) < 2:
        return None
    by_name = {name: [image for image in images if image.system == name] for name in names}
    tasks = dict.fromkeys(image.task for image in images)
    of_task = {task: [image for image in images if image.task == task] for task in tasks} if len(tasks) > 1 else {}
    return {
        **_ranks(reference, candidate, column, names, images),
        "tasks": {task: _ranks(reference, candidate, column, names, members) for task, members in of_task.items()},
        "pairs": [
            _pair(reference, candidate, column, by_name, pair, resamples, seed)
            for pair in itertools.combinations(names, 2)
        ],
    }


def _ranks(
    reference: Source, candidate: Source, column: str, names: Sequence[str], images: Sequence[Image]
) -> dict[str, Any]:
    """Means of systems under both judges, and the correlations of their order (null of fewer than three)."""
    table = {}
    for name in names:
        members = [image for image in images if image.system == name]
        if members:
            one, other = (float(np.mean(means(source, column, members))) for source in (reference, candidate))
            table[name] = {"n": len(members), "reference": one, "candidate": other, "bias": other - one}
    x, y = (np.array([row[side] for row in table.values()]) for side in ("reference", "candidate"))
    defined = len(table) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
    return {
        "means": table,
        "spearman": _json(float(stats.spearmanr(x, y).statistic)) if defined else None,
        "kendall": _json(float(stats.kendalltau(x, y).statistic)) if defined else None,
    }


def _pair(
    reference: Source,
    candidate: Source,
    column: str,
    by_name: Mapping[str, Sequence[Image]],
    pair: tuple[str, str],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The difference between two systems under both judges, by a paired bootstrap over items within tasks."""
    sides = [{(i.task, i.key, i.sampling): i for i in by_name[name]} for name in pair]
    shared = sorted(sides[0].keys() & sides[1].keys())
    result: dict[str, Any] = {"systems": list(pair), "n": len(shared)}
    items = sorted({key[:2] for key in shared})
    by_task = [[i for i, item in enumerate(items) if item[0] == task] for task in dict.fromkeys(t for t, _ in items)]
    generator = np.random.default_rng([seed, zlib.crc32(f"{column} {pair}".encode())])
    drawn = [np.concatenate([generator.choice(members, len(members)) for members in by_task]) for _ in range(resamples)]
    for side, source in (("reference", reference), ("candidate", candidate)):
        first, second = (
            means(source, column, [one[key] for key in shared]) if shared else np.zeros(0) for one in sides
        )
        difference = first - second
        grouped: dict[tuple[str, str], list[float]] = {item: [] for item in items}
        for one, key in zip(difference, shared, strict=True):
            grouped[key[0], key[1]].append(float(one))
        per_item = [sum(group) / len(group) for group in grouped.values()]
        totals = [float(np.mean([per_item[i] for i in one])) for one in drawn]
        edge = 100 * (1 - LEVEL) / 2
        interval = [float(end) for end in np.percentile(totals, [edge, 100 - edge])] if totals and items else None
        result[side] = {
            "difference": float(np.mean(per_item)) if items else None,
            "interval": interval,
            "decided": None if interval is None else bool(interval[0] > 0 or interval[1] < 0),
        }
    x, y = result["reference"]["difference"], result["candidate"]["difference"]
    result["same_sign"] = None if x is None or y is None else bool(np.sign(x) == np.sign(y))
    return result


def disagreements(reference: Source, candidate: Source, column: str, images: Sequence[Image]) -> list[dict[str, Any]]:
    """The images with the largest differences of the mean ratings."""
    x, y = means(reference, column, images), means(candidate, column, images)
    order = sorted(range(len(images)), key=lambda i: (-abs(y[i] - x[i]), images[i]))[:MAX_DISAGREEMENTS]
    return [
        {
            **images[i]._asdict(),
            "reference": float(x[i]),
            "candidate": float(y[i]),
            "reference_reason": _reason(reference, images[i], column),
            "candidate_reason": _reason(candidate, images[i], column),
        }
        for i in order
        if x[i] != y[i]
    ]


def _reason(source: Source, image: Image, column: str) -> str:
    reasons = source.reasons.get(image, {})
    return reasons.get(column) or "; ".join(f"{name}: {text}" for name, text in reasons.items())


def presence(reference: Source, candidate: Source) -> dict[str, Any] | None:
    """Agreement of 0/1 answers, first scoring of each side, pooled and in `tasks`; None if there are none."""
    by_task: dict[str, list[tuple[int, int]]] = {}
    for image in sorted(reference.answers.keys() & candidate.answers.keys()):
        first, second = (next(iter(source.answers[image].values())) for source in (reference, candidate))
        if len(first) == len(second):
            by_task.setdefault(image.task, []).extend(zip(first, second, strict=True))
    if not by_task:
        return None
    pooled = [pair for pairs in by_task.values() for pair in pairs]
    return {**_binary(pooled), "tasks": {task: _binary(pairs) for task, pairs in by_task.items()}}


def _binary(pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    x, y = zip(*pairs, strict=True)
    return {
        "n": len(pairs),
        "agreement": sum(a == b for a, b in pairs) / len(pairs),
        "kappa": _json(binary_kappa(x, y)),
        "reference_rate": sum(x) / len(x),
        "candidate_rate": sum(y) / len(y),
    }


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value
