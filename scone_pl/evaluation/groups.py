"""Tables of judged records: a group is one (sampling, scoring); the published numbers are means over groups.

A group that lacks a task has no average (it would not be comparable); records that lack a score count in no column of
their group; `n_used` is the number of records that count.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.scores import Row, average_row, is_complete, overall_score, task_means

Records = Sequence[Mapping[str, Any]]


def group_tables(records: Records, benchmark: Benchmark) -> list[dict[str, Any]]:
    """A table per group, sorted by sampling and scoring, in the format of `golden/evaluation/expected.json`."""
    groups: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["sampling"], record["scoring"]].append(record)
    return [_group(sampling, scoring, groups[sampling, scoring], benchmark) for sampling, scoring in sorted(groups)]


def _group(sampling: int, scoring: int, records: Records, benchmark: Benchmark) -> dict[str, Any]:
    used = Counter({task: 0 for task in benchmark.tasks if any(r["task_type"] == task for r in records)})
    used.update(record["task_type"] for record in records if is_complete(record))
    table: dict[str, Any] = {
        "sampling": sampling,
        "scoring": scoring,
        "n_records": len(records),
        "n_used": dict(used),
        **_table(records, benchmark),
    }
    if benchmark.has_overall:
        table["derived_overall"] = overall_score(table["average"]) if table["average"] else None
    if benchmark.name == "omnicontext" and any("instruction_language" in record for record in records):
        english = [record for record in records if record.get("instruction_language") == "en"]
        table["english_only"] = _table(english, benchmark)
    return table


def _table(records: Records, benchmark: Benchmark) -> dict[str, Any]:
    per_task = task_means(records)
    ordered = {task: per_task[task] for task in benchmark.tasks if task in per_task}
    return {"per_task": ordered, "average": average_row(per_task, benchmark.tasks)}


def flat_row(table: Mapping[str, Any]) -> Row:
    """A group's numbers by column: `task.NAME`, `average.NAME`, `overall`; missing ones are omitted."""
    row = {f"{task}.{name}": value for task, values in table["per_task"].items() for name, value in values.items()}
    row |= {f"average.{name}": value for name, value in (table["average"] or {}).items()}
    if table.get("derived_overall") is not None:
        row["overall"] = table["derived_overall"]
    return row


def combine(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each column over the groups that have it.

    Returns:
        `n_groups`; per column `mean`, `std_population` (divisor n) and `std_sample` (divisor n - 1, null for one
        group); `n_of`: column -> number of groups, for columns that not all groups have.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for table in tables:
        for column, value in flat_row(table).items():
            values[column].append(value)
    combined: dict[str, Any] = {"n_groups": len(tables), "mean": {}, "std_population": {}, "std_sample": {}}
    for column, items in values.items():
        mean = math.fsum(items) / len(items)
        squares = math.fsum((value - mean) ** 2 for value in items)
        combined["mean"][column] = mean
        combined["std_population"][column] = math.sqrt(squares / len(items))
        combined["std_sample"][column] = math.sqrt(squares / (len(items) - 1)) if len(items) > 1 else None
    if fewer := {column: len(items) for column, items in values.items() if len(items) < len(tables)}:
        combined["n_of"] = fewer
    return combined


def completeness(records: Records, benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    """Per task: `records`, `used`, and `failures` (reason -> count) of incomplete records."""
    result: dict[str, dict[str, Any]] = {}
    for task in benchmark.tasks:
        members = [record for record in records if record["task_type"] == task]
        incomplete = [record for record in members if not is_complete(record)]
        reasons = Counter(str(record.get("failure") or "incomplete") for record in incomplete)
        result[task] = {
            "records": len(members),
            "used": len(members) - len(incomplete),
            "failures": dict(reasons.most_common()),
        }
    return result


def error_rates(records: Records, benchmark: Benchmark) -> dict[str, dict[str, float]]:
    """Per distinction task, fractions of its complete records with each kind of error.

    Returns:
        `redundancy`: a distractor is present (low precision); `omission`: a target is missing (low recall).
    """
    result = {}
    for task in benchmark.tasks:
        members = [r for r in records if r["task_type"] == task and is_complete(r)]
        if benchmark.has_distinction(task) and members:
            result[task] = {
                "redundancy": sum(is_redundant(r) for r in members) / len(members),
                "omission": sum(is_omitted(r) for r in members) / len(members),
            }
    return result


def is_redundant(record: Mapping[str, Any]) -> bool:
    """Whether a distractor is judged present."""
    return (0, 1) in _pairs(record)


def is_omitted(record: Mapping[str, Any]) -> bool:
    """Whether a target is judged absent."""
    return (1, 0) in _pairs(record)


def _pairs(record: Mapping[str, Any]) -> list[tuple[int, int]]:
    label = [value for group in record.get("label") or [] for value in group]
    pred = [value for group in record.get("pred") or [] for value in group]
    return list(zip(label, pred, strict=True)) if pred else []
