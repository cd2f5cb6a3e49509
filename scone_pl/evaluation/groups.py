"""Tables of judged records: a group is one (sampling, scoring); the published numbers are means over groups.

A group that lacks a task has no average (it would not be comparable); records that lack a score count in no column of
their group; `n_used` is the number of records that count.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.scores import Row, mean_row, task_means

Records = Sequence[Mapping[str, Any]]
_OTHER_TABLES = ("per_task", "n_used", "english_only")
"""Entries of a group's table that are no aggregates."""


def group_tables(records: Records, benchmark: Benchmark) -> list[dict[str, Any]]:
    """A table per group, sorted by sampling and scoring, in the format of `golden/evaluation/expected.json`."""
    groups: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["sampling"], record["scoring"]].append(record)
    return [_group(sampling, scoring, groups[sampling, scoring], benchmark) for sampling, scoring in sorted(groups)]


def _group(sampling: int, scoring: int, records: Records, benchmark: Benchmark) -> dict[str, Any]:
    used = Counter({task: 0 for task in benchmark.tasks if any(r["task_type"] == task for r in records)})
    used.update(record["task_type"] for record in records if benchmark.is_complete(record))
    table: dict[str, Any] = {
        "sampling": sampling,
        "scoring": scoring,
        "n_records": len(records),
        "n_used": dict(used),
        **_table(records, benchmark),
    }
    row = flat_row(table)
    for name, formula in benchmark.derived.items():
        table[f"derived_{name}"] = formula(row) if all(table[one.name] for one in benchmark.aggregates) else None
    if benchmark.english_view and any("instruction_language" in record for record in records):
        english = [record for record in records if record.get("instruction_language") == "en"]
        table["english_only"] = _table(english, benchmark)
    return table


def _table(records: Records, benchmark: Benchmark) -> dict[str, Any]:
    per_task = task_means(records, benchmark.is_complete, benchmark.item_scores)
    ordered = {task: per_task[task] for task in benchmark.tasks if task in per_task}
    counts = Counter(record["task_type"] for record in records if benchmark.is_complete(record))
    table: dict[str, Any] = {"per_task": ordered}
    for aggregate in benchmark.aggregates:
        by_items = aggregate.weighting == "items"
        weights = [counts[task] if by_items else 1 for task in aggregate.tasks]
        complete = all(task in per_task for task in aggregate.tasks)
        table[aggregate.name] = mean_row([per_task[task] for task in aggregate.tasks], weights) if complete else None
    return table


def flat_row(table: Mapping[str, Any]) -> Row:
    """A group's numbers by column: `task.NAME`, `average.NAME` (and further aggregates), `overall`; missing ones are
    omitted.
    """
    row = {f"{task}.{name}": value for task, values in table["per_task"].items() for name, value in values.items()}
    for aggregate, values in table.items():
        if aggregate.startswith("derived_"):
            row |= {} if values is None else {aggregate.removeprefix("derived_"): values}
        elif isinstance(values, Mapping) and aggregate not in _OTHER_TABLES:
            row |= {f"{aggregate}.{name}": value for name, value in values.items()}
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
        incomplete = [record for record in members if not benchmark.is_complete(record)]
        reasons = Counter(str(record.get("failure") or "incomplete") for record in incomplete)
        result[task] = {
            "records": len(members),
            "used": len(members) - len(incomplete),
            "failures": dict(reasons.most_common()),
        }
    return result


def error_rates(records: Records, benchmark: Benchmark) -> dict[str, dict[str, float]]:
    """Per task whose answers tell them, fractions of its complete records with each error of `Benchmark.faults`."""
    return _rates(records, benchmark, benchmark.faults)


def failure_rates(records: Records, benchmark: Benchmark) -> dict[str, dict[str, float]]:
    """The same for `Benchmark.failures`."""
    return _rates(records, benchmark, benchmark.failures)


def _rates(
    records: Records, benchmark: Benchmark, errors: Callable[[Mapping[str, Any]], Mapping[str, bool] | None]
) -> dict[str, dict[str, float]]:
    result = {}
    for task in benchmark.tasks:
        members = [record for record in records if record["task_type"] == task and benchmark.is_complete(record)]
        faults = [found for record in members if (found := errors(record)) is not None]
        if faults:
            result[task] = {name: sum(found[name] for found in faults) / len(faults) for name in faults[0]}
    return result
