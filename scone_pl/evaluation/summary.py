"""Everything that tables, plots and reports say about one model's records, computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.bootstrap import LEVEL, RESAMPLES, intervals
from scone_pl.evaluation.groups import Records, combine, completeness, faults, group_tables
from scone_pl.evaluation.provenance import provenance
from scone_pl.evaluation.stability import stability


@dataclass(frozen=True)
class Summary:
    """Of one model on one benchmark."""

    benchmark: Benchmark
    name: str
    """What the model's row is called."""
    groups: list[dict[str, Any]]
    combined: dict[str, Any]
    intervals: dict[str, tuple[float, float]]
    stability: dict[str, Any]
    completeness: dict[str, dict[str, Any]]
    faults: dict[str, dict[str, float]]
    provenance: dict[str, Any]
    """See `provenance.py`."""
    plausibility: dict[str, dict[str, float]]
    """Per task mean and n of PHY, and their unweighted mean as `average`; empty if it was not judged."""

    @classmethod
    def of(cls, records: Records, benchmark: Benchmark, name: str, *, seed: int = 0) -> Summary:
        """Computes it; `seed` of the bootstrap."""
        groups = group_tables(records, benchmark)
        return cls(
            benchmark=benchmark,
            name=name,
            groups=groups,
            combined=combine(groups),
            intervals=intervals(records, benchmark, seed=seed),
            stability=stability(records, groups, benchmark),
            completeness=completeness(records, benchmark),
            faults=faults(records, benchmark),
            provenance=provenance(records),
            plausibility=_plausibility(records, benchmark),
        )

    @property
    def mean(self) -> Mapping[str, float]:
        """Column -> mean over groups."""
        return self.combined["mean"]

    @property
    def lost(self) -> int:
        """Records that count nowhere, because something of them is missing."""
        return sum(found["records"] - found["used"] for found in self.completeness.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `groups` and `combined` are in the form of `golden/evaluation/expected.json`."""
        return {
            "benchmark": self.benchmark.name,
            "name": self.name,
            "groups": self.groups,
            "combined": self.combined,
            "intervals": {
                "level": LEVEL,
                "resamples": RESAMPLES,
                "of": "items within each task, percentile bootstrap",
                "columns": {column: list(ends) for column, ends in self.intervals.items()},
            },
            "stability": self.stability,
            "completeness": self.completeness,
            "faults": self.faults,
            "provenance": self.provenance,
            "plausibility": self.plausibility or None,
        }


def _plausibility(records: Records, benchmark: Benchmark) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for task in benchmark.tasks:
        values = [r["PHY"] for r in records if r["task_type"] == task and r.get("PHY") is not None]
        if values:
            found[task] = {"mean": sum(values) / len(values), "n": len(values)}
    if found and len(found) == len(benchmark.tasks):
        found["average"] = {"mean": sum(one["mean"] for one in found.values()) / len(found), "n": len(found)}
    return found
