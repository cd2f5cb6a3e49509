"""The paper's results, for comparison."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import yaml

from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.scores import Row

FILE = "published.yaml"
"""In a benchmark's package."""


@dataclass(frozen=True)
class Published:
    """A table of the paper."""

    title: str
    columns: tuple[str, ...]
    """Names as in `combine(...)["mean"]`."""
    rows: dict[str, Row]
    """Method -> its scores, in the paper's order."""


def unique_names(names: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """Makes names unique; a name that is `taken` by the paper becomes `NAME (ours)`."""
    unique: list[str] = []
    for name in names:
        name = f"{name} (ours)" if name in taken else name
        earlier = names[: len(unique)].count(names[len(unique)])
        unique.append(f"{name} {earlier + 1}" if earlier else name)
    return unique


@functools.cache
def published(benchmark: Benchmark) -> Published:
    """The published table of a benchmark; without one, no rows below `Benchmark.main_columns`."""
    file = benchmark.folder / FILE
    if not file.is_file():
        return Published("", benchmark.main_columns, {})
    table = yaml.safe_load(file.read_text(encoding="utf-8"))
    columns = tuple(table["columns"])
    rows = {method: _row(benchmark, columns, values) for method, values in table["rows"].items()}
    return Published(table["table"], columns, rows)


def _row(benchmark: Benchmark, columns: Sequence[str], values: Sequence[float | None]) -> Row:
    """A published row; means over tasks that it does not hold are computed, where it has all the tasks."""
    row = {column: value for column, value in zip(columns, values, strict=False) if value is not None}
    for aggregate in benchmark.aggregates:
        for column in (one for one in columns if one.startswith(f"{aggregate.name}.") and one not in row):
            parts = [row.get(f"{task}.{column.partition('.')[2]}") for task in aggregate.tasks]
            if aggregate.weighting == "tasks" and None not in parts:
                row[column] = sum(part for part in parts if part is not None) / len(parts)
    return row
