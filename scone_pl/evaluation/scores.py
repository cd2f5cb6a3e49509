"""SconeEval's formulas (docs/benchmarks.md 4). All scores are on 0..10.

PF prompt following, SC subject consistency, COM composition, DIS distinction. Column names are those of the
benchmark's own result files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

SCONEEVAL_TASKS: tuple[str, ...] = (
    "composition_single",
    "composition_multi",
    "distinction_single_cross",
    "distinction_single_intra",
    "distinction_multi_cross",
    "distinction_multi_intra",
)
"""In the order of the table (docs/benchmarks.md 1)."""

OMNICONTEXT_TASKS: tuple[str, ...] = (
    "single_character",
    "single_object",
    "multi_character",
    "multi_object",
    "multi_character_object",
    "scene_character",
    "scene_object",
    "scene_character_object",
)
"""In the order of the table (docs/benchmarks.md 1)."""

COMPOSITION_COLUMNS = ("PF", "SC", "COM")
DISTINCTION_COLUMNS = ("DIS_acc", "DIS_prec", "DIS_recall", "DIS_f1", "DIS")

Row = dict[str, float]
"""Column name -> value."""


def is_distinction(task: str) -> bool:
    """Whether a task's items have labels and presence predictions."""
    return task.startswith("distinction")


def composition_score(prompt_following: float, subject_consistency: float) -> float:
    """COM of one item: the geometric mean."""
    return math.sqrt(prompt_following * subject_consistency)


def distinction_scores(label: Sequence[Sequence[int]], prediction: Sequence[Sequence[int]]) -> Row:
    """Accuracy, precision, recall, F1 and DIS of one item.

    Args:
        label: per reference image and candidate, 1 if the subject should appear.
        prediction: the same, 1 if it does. Only the flattened lengths must agree (as published).

    Raises:
        ValueError: different flattened lengths, or no candidate at all.
    """
    truth = [value for group in label for value in group]
    predicted = [value for group in prediction for value in group]
    if len(truth) != len(predicted) or not truth:
        raise ValueError(f"{len(truth)} labels and {len(predicted)} predictions cannot be scored")
    true_positive = sum(t == 1 and g == 1 for t, g in zip(truth, predicted, strict=True))
    accuracy = 10.0 * _ratio(sum(t == g for t, g in zip(truth, predicted, strict=True)), len(truth))
    f1 = 10.0 * _ratio(2 * true_positive, sum(truth) + sum(predicted))
    return {
        "DIS_acc": accuracy,
        "DIS_prec": 10.0 * _ratio(true_positive, sum(predicted)),
        "DIS_recall": 10.0 * _ratio(true_positive, sum(truth)),
        "DIS_f1": f1,
        "DIS": round((accuracy + f1) / 2, 3),
    }


def item_scores(record: Mapping[str, Any]) -> Row:
    """All columns of one complete judged item: `task_type`, `PF`, `SC`, and for distinction `label` and `pred`."""
    pf, sc = float(record["PF"]), float(record["SC"])
    row = {"PF": pf, "SC": sc, "COM": composition_score(pf, sc)}
    if is_distinction(record["task_type"]):
        row |= distinction_scores(record["label"], record["pred"])
    return row


def is_complete(record: Mapping[str, Any]) -> bool:
    """Whether a judged item has all scores; incomplete items count in no column of their group."""
    needed = ["PF", "SC", *(["label", "pred"] if is_distinction(record["task_type"]) else [])]
    return all(record.get(name) is not None for name in needed)


def task_means(
    records: Iterable[Mapping[str, Any]],
    complete: Callable[[Mapping[str, Any]], bool] = is_complete,
    scores: Callable[[Mapping[str, Any]], Row] = item_scores,
) -> dict[str, Row]:
    """Per task the mean of every column over its complete items (means of per-item values, not pooled).

    Args:
        records: judged items.
        complete: whether a record has what `scores` needs.
        scores: all columns of a record.
    """
    rows: dict[str, list[Row]] = {}
    for record in records:
        if complete(record):
            rows.setdefault(record["task_type"], []).append(scores(record))
    return {task: mean_row(items) for task, items in rows.items()}


def average_row(per_task: Mapping[str, Mapping[str, float]], tasks: Sequence[str] = SCONEEVAL_TASKS) -> Row | None:
    """The unweighted mean over `tasks`, each column over the tasks that have it (DIS: distinction tasks only).

    Returns None if a task is missing: an average over fewer tasks would not be comparable.

    Raises:
        ValueError: a task that is not in `tasks`.
    """
    if unknown := set(per_task) - set(tasks):
        raise ValueError(f"unknown tasks {sorted(unknown)}: expected {', '.join(tasks)}")
    if len(per_task) < len(tasks):
        return None
    return mean_row([per_task[task] for task in tasks])


def overall_score(average: Mapping[str, float]) -> float:
    """Overall of the published table: the mean of average COM and average DIS."""
    return (average["COM"] + average["DIS"]) / 2


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def mean_row(rows: Sequence[Mapping[str, float]], weights: Sequence[int] | None = None) -> Row:
    """The weighted mean of each column over the rows that have it."""
    weights = [1] * len(rows) if weights is None else weights
    columns = dict.fromkeys(column for row in rows for column in row)
    result = {}
    for column in columns:
        values = [(row[column], weight) for row, weight in zip(rows, weights, strict=True) if column in row]
        result[column] = math.fsum(value * weight for value, weight in values) / sum(weight for _, weight in values)
    return result
