"""Numbers of one run, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scone_pl.mini.evidence.statistics import Estimate, difference, estimate

Report = Mapping[str, Any]
"""What `mini.evaluate.evaluate` reports, items left out."""


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _score(name: str) -> Callable[[Report], float]:
    return lambda report: _mean([task[name] for task in report["tasks"].values() if name in task])


def _overall(report: Report) -> float:
    composition, distinction = _score("COM")(report), _score("DIS")(report)
    return composition if distinction != distinction else (composition + distinction) / 2


def _failed(name: str) -> Callable[[Report], float]:
    return lambda report: 100.0 * report["failures"].get(name, 0) / report["pictures"]


def _kept(name: str) -> Callable[[Report], float]:
    """Over the tasks that have distractors."""
    return lambda report: 100.0 * _mean([k[name] for t, k in report["kept"].items() if t.startswith("distinction")])


METRICS: dict[str, Callable[[Report], float]] = {
    "COM": _score("COM"),
    "DIS": _score("DIS"),
    "overall": _overall,
    "COM_alone": lambda report: _mean([t["COM"] for n, t in report["tasks"].items() if n.startswith("composition")]),
    "PF": lambda report: _mean([task["PF"] for task in report["tasks"].values() if "PF" in task]),
    "SC": lambda report: _mean([task["SC"] for task in report["tasks"].values() if "SC" in task]),
    "exact": _failed("none"),
    "redundancy": _failed("redundancy"),
    "omission": _failed("omission"),
    "blending": _failed("blending"),
    "wrong_subject": _failed("wrong_subject"),
    "precision": _kept("precision"),
    "recall": _kept("recall"),
    "blocked": lambda report: 100.0 * report["blocked_share"],
}
"""Scores from 0 to 10 (COM_alone: of references with one subject each); the others are shares in percent, of pictures
(failures), of tokens (precision, recall, blocked)."""


def values_of(arm: Mapping[str, Any], look: str, metric: str) -> list[float]:
    """A number per seed."""
    return [METRICS[metric](run["evaluations"][look]) for run in arm["runs"]]


def estimate_of(arm: Mapping[str, Any], look: str, metric: str) -> Estimate:
    """Mean and interval over seeds."""
    return estimate(values_of(arm, look, metric))


def difference_of(
    one: Mapping[str, Any], other: Mapping[str, Any], look: str, metric: str, *, other_look: str = ""
) -> Estimate | None:
    """`one` - `other`, paired by seed; None if they share no two seeds.

    Args:
        one: an arm.
        other: another, or the same under `other_look`.
        look: the evaluation.
        metric: one of `METRICS`.
        other_look: of `other`; by default `look`.
    """
    seeds = {run["seed"] for run in one["runs"]} & {run["seed"] for run in other["runs"]}
    if len(seeds) < 2:
        return None
    pair = [
        [METRICS[metric](run["evaluations"][name]) for run in arm["runs"] if run["seed"] in seeds]
        for arm, name in ((one, look), (other, other_look or look))
    ]
    return difference(*pair)


def layer_estimates(
    found: Sequence[Mapping[str, Any]], expert: str, measure: str, tasks: Sequence[str]
) -> list[Estimate]:
    """Per layer the mean over `tasks` of one measure, over the seeds' `mini.layers.separation`."""
    per_seed = [[_mean(list(v)) for v in zip(*(f[expert][t][measure] for t in tasks), strict=True)] for f in found]
    return [estimate(values) for values in zip(*per_seed, strict=True)]
