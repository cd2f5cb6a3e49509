"""Tables of judged records: a group is one (sampling, scoring); the published numbers are means over groups.

A group that lacks a task has no average (it would not be comparable); records that lack a score count in no column of
their group, and `n_used` says how many counted.
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
    """A table for each group, sorted by sampling and scoring; the form of `golden/evaluation/expected.json`."""
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
    """A group's numbers by column: `task.NAME`, `average.NAME`, `overall`; what it lacks is left out."""
    row = {f"{task}.{name}": value for task, found in table["per_task"].items() for name, value in found.items()}
    row |= {f"average.{name}": value for name, value in (table["average"] or {}).items()}
    if table.get("derived_overall") is not None:
        row["overall"] = table["derived_overall"]
    return row


def combine(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread of each column over the groups that have it.

    Returns:
        `n_groups`; per column `mean`, `std_population` (divisor n) and `std_sample` (divisor n - 1, null for one
        group); `n_of` names columns that not all groups have, with their n.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for table in tables:
        for column, value in flat_row(table).items():
            values[column].append(value)
    combined: dict[str, Any] = {"n_groups": len(tables), "mean": {}, "std_population": {}, "std_sample": {}}
    for column, found in values.items():
        mean = math.fsum(found) / len(found)
        squares = math.fsum((value - mean) ** 2 for value in found)
        combined["mean"][column] = mean
        combined["std_population"][column] = math.sqrt(squares / len(found))
        combined["std_sample"][column] = math.sqrt(squares / (len(found) - 1)) if len(found) > 1 else None
    if fewer := {column: len(found) for column, found in values.items() if len(found) < len(tables)}:
        combined["n_of"] = fewer
    return combined


def completeness(records: Records, benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    """Per task: `records`, `used`, and `failures` (reason -> count) of the records that are not used."""
    found: dict[str, dict[str, Any]] = {}
    for task in benchmark.tasks:
        members = [record for record in records if record["task_type"] == task]
        lost = [record for record in members if not is_complete(record)]
        reasons = Counter(str(record.get("failure") or "incomplete") for record in lost)
        found[task] = {
            "records": len(members),
            "used": len(members) - len(lost),
            "failures": dict(reasons.most_common()),
        }
    return found


def faults(records: Records, benchmark: Benchmark) -> dict[str, dict[str, float]]:
    """Per distinction task what precision and recall stand for, as shares (0 to 1) of its complete records.

    Returns:
        `redundancy`: a distractor is there (low precision); `omission`: a wanted subject is not (low recall).
    """
    found = {}
    for task in benchmark.tasks:
        members = [r for r in records if r["task_type"] == task and is_complete(r)]
        if benchmark.has_distinction(task) and members:
            found[task] = {
                "redundancy": sum(is_redundant(r) for r in members) / len(members),
                "omission": sum(is_omitted(r) for r in members) / len(members),
            }
    return found


def is_redundant(record: Mapping[str, Any]) -> bool:
    """Whether the judge sees a candidate that should not be there."""
    return (0, 1) in _pairs(record)


def is_omitted(record: Mapping[str, Any]) -> bool:
    """Whether the judge misses a candidate that should be there."""
    return (1, 0) in _pairs(record)


def _pairs(record: Mapping[str, Any]) -> list[tuple[int, int]]:
    label = [one for group in record.get("label") or [] for one in group]
    pred = [one for group in record.get("pred") or [] for one in group]
    return list(zip(label, pred, strict=True)) if pred else []
