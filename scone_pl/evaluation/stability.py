"""Variation of the scores over repeated sampling and repeated judging (paper, Fig. 8)."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.groups import Records, flat_row


def stability(records: Records, tables: Sequence[Mapping[str, Any]], benchmark: Benchmark) -> dict[str, Any]:
    """Standard deviations (divisor n - 1, null if n is 1) of the averages and of single items.

    Returns:
        `columns`: per average column, and those of `Benchmark.varying`, the value of each group, `std_over_scorings`
        (of one sampling's images, mean over samplings) and `std_over_samplings` (of the means over scorings).
        `items`: standard deviation of each rating over scorings, mean over items and samplings; and
        `presence_agreement`, the fraction of candidates (or checkpoints) with the same answer in all scorings of an
        image (null without repeated scorings).
    """
    names = [f"{one.name}.{name}" for one in benchmark.aggregates for name in benchmark.average_columns]
    names = list(dict.fromkeys([*names, *benchmark.derived, *(benchmark.varying or benchmark.headline)]))
    rows = [((table["sampling"], table["scoring"]), flat_row(table)) for table in tables]
    columns = {name: _spread([(group, row[name]) for group, row in rows if name in row]) for name in names}
    return {
        "columns": {name: values for name, values in columns.items() if values["groups"]},
        "items": _items(records, benchmark),
    }


def _spread(values: Sequence[tuple[tuple[int, int], float]]) -> dict[str, Any]:
    samplings: dict[int, list[float]] = defaultdict(list)
    for (sampling, _), value in values:
        samplings[sampling].append(value)
    within = [statistics.stdev(values) for values in samplings.values() if len(values) > 1]
    means = [statistics.fmean(values) for values in samplings.values()]
    return {
        "groups": [{"sampling": s, "scoring": r, "value": value} for (s, r), value in values],
        "std_over_scorings": statistics.fmean(within) if within else None,
        "std_over_samplings": statistics.stdev(means) if len(means) > 1 else None,
        "range": [min(v for _, v in values), max(v for _, v in values)] if values else None,
    }


def _items(records: Records, benchmark: Benchmark) -> dict[str, Any]:
    images: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        if benchmark.is_complete(record):
            images[record["task_type"], record["key"], record["sampling"]].append(record)
    repeated = [values for values in images.values() if len(values) > 1]
    result: dict[str, Any] = {"images_scored_repeatedly": len(repeated)}
    for name in benchmark.rated:
        answered = [[float(r[name]) for r in values if r.get(name) is not None] for values in repeated]
        spreads = [statistics.stdev(values) for values in answered if len(values) > 1]
        result[f"{name}_std_over_scorings"] = statistics.fmean(spreads) if spreads else None
    agreed = []
    for values in repeated:
        flat = [benchmark.binary(record) for record in values]
        agreed += [len(set(answers)) == 1 for answers in zip(*flat, strict=False)]
    result["presence_agreement"] = sum(agreed) / len(agreed) if agreed else None
    return result
