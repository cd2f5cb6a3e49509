"""All statistics of one model's records, as used by tables, plots and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.bootstrap import LEVEL, RESAMPLES, intervals
from scone_pl.evaluation.groups import Records, combine, completeness, error_rates, failure_rates, group_tables
from scone_pl.evaluation.provenance import provenance
from scone_pl.evaluation.stability import stability


@dataclass(frozen=True)
class Summary:
    """Statistics of one model on one benchmark."""

    benchmark: Benchmark
    name: str
    """Name of the model's row."""
    groups: list[dict[str, Any]]
    combined: dict[str, Any]
    intervals: dict[str, tuple[float, float]]
    stability: dict[str, Any]
    completeness: dict[str, dict[str, Any]]
    error_rates: dict[str, dict[str, float]]
    failure_rates: dict[str, dict[str, float]]
    """Per task the fraction of images with each failure by name, see `failures.py`."""
    provenance: dict[str, Any]
    """See `provenance.py`."""
    extra: list[tuple[str, list[list[str]]]]
    """Tables of the benchmark's own: title and rows, the first of them heads."""
    plausibility: dict[str, dict[str, float]]
    """Per task mean and n of PHY, and their unweighted mean as `average`; empty if PHY was not judged."""

    @classmethod
    def of(cls, records: Records, benchmark: Benchmark, name: str, *, seed: int = 0) -> Summary:
        """Computes the statistics; `seed` is the bootstrap's."""
        groups = group_tables(records, benchmark)
        return cls(
            benchmark=benchmark,
            name=name,
            groups=groups,
            combined=combine(groups),
            intervals=intervals(records, benchmark, seed=seed),
            stability=stability(records, groups, benchmark),
            completeness=completeness(records, benchmark),
            error_rates=error_rates(records, benchmark),
            failure_rates=failure_rates(records, benchmark),
            provenance=provenance(records),
            extra=benchmark.extra_tables(records),
            plausibility=_plausibility(records, benchmark),
        )

    @property
    def mean(self) -> Mapping[str, float]:
        """Column -> mean over groups."""
        mean: Mapping[str, float] = self.combined["mean"]
        return mean

    @property
    def num_incomplete(self) -> int:
        """Number of incomplete records."""
        return sum(result["records"] - result["used"] for result in self.completeness.values())

    def as_dict(self) -> dict[str, Any]:
        """JSON representation; `groups` and `combined` have the format of `golden/evaluation/expected.json`."""
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
            "faults": self.error_rates,
            "failures": self.failure_rates,
            "provenance": self.provenance,
            "plausibility": self.plausibility or None,
            **({"further_tables": dict(self.extra)} if self.extra else {}),
        }


def _plausibility(records: Records, benchmark: Benchmark) -> dict[str, dict[str, float]]:
    result: dict[str, dict[str, float]] = {}
    for task in benchmark.tasks:
        values = [r["PHY"] for r in records if r["task_type"] == task and r.get("PHY") is not None]
        if values:
            result[task] = {"mean": sum(values) / len(values), "n": len(values)}
    if result and len(result) == len(benchmark.tasks):
        result["average"] = {
            "mean": sum(task_result["mean"] for task_result in result.values()) / len(result),
            "n": len(result),
        }
    return result
