"""The paper's own rows, to stand beside ours."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.scores import Row

FILE = Path(__file__).parent / "published.yaml"


@dataclass(frozen=True)
class Published:
    """A table of the paper."""

    title: str
    columns: tuple[str, ...]
    """Named as in `combine(...)["mean"]`."""
    rows: dict[str, Row]
    """Method -> its numbers, in the paper's order."""


def distinct(names: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """What to call rows so that no two have one name: one that is `taken` by the paper becomes `NAME (ours)`."""
    found: list[str] = []
    for name in names:
        name = f"{name} (ours)" if name in taken else name
        earlier = names[: len(found)].count(names[len(found)])
        found.append(f"{name} {earlier + 1}" if earlier else name)
    return found


@functools.cache
def published(benchmark: Benchmark) -> Published:
    """The paper's table of a benchmark."""
    table = yaml.safe_load(FILE.read_text(encoding="utf-8"))[benchmark.name]
    columns = tuple(table["columns"])
    rows = {method: dict(zip(columns, values, strict=True)) for method, values in table["rows"].items()}
    return Published(table["table"], columns, rows)
