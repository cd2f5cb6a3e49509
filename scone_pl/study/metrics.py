"""Numbers of one run, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scone_pl.study.statistics import Estimate, difference, estimate

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
    """In percent of all pictures, whatever their task; scores are means over tasks instead."""
    return lambda report: 100.0 * report["failures"].get(name, 0) / report["pictures"]


def _kept(name: str) -> Callable[[Report], float]:
    """Over the tasks that have distractors."""
    return lambda report: 100.0 * _mean([k[name] for t, k in report["kept"].items() if t.startswith("distinction")])


METRICS: dict[str, Callable[[Report], float]] = {
    "COM": _score("COM"),
    "DIS": _score("DIS"),
    "overall": _overall,
    "COM_alone": lambda report: _mean([t["COM"] for n, t in report["tasks"].items() if n.startswith("composition")]),
    "PF": _score("PF"),
    "SC": _score("SC"),
    "choice": lambda report: 100.0 * _mean(list(report["choice"].values())),
    "exact": _failed("none"),
    "redundancy": _failed("redundancy"),
    "omission": _failed("omission"),
    "blending": _failed("blending"),
    "wrong_subject": _failed("wrong_subject"),
    "distorted": _failed("distorted"),
    "precision": _kept("precision"),
    "recall": _kept("recall"),
    "blocked": lambda report: 100.0 * report["blocked_share"],
}
"""Scores from 0 to 10 (COM_alone: of references with one subject each); the others are shares in percent, of references
with several candidates (choice, see `mini.judge`), of pictures (failures), of tokens (precision, recall, blocked)."""


def looks_of(result: Mapping[str, Any], kind: str, *streams: str) -> list[str]:
    """Names of an experiment's evaluations of one kind, on some streams only if any are given."""
    return [
        name
        for name, look in result["evaluations"].items()
        if look["kind"] == kind and (not streams or look.get("stream", "test") in streams)
    ]


def rows_of(result: Mapping[str, Any], looks: Sequence[str]) -> list[tuple[str, Mapping[str, Any], str]]:
    """(label, arm, evaluation) of every arm under each of `looks`: the rows of tables and plots."""
    return [
        (" · ".join(part for part in (arm["label"], result["evaluations"][look]["label"]) if part), arm, look)
        for arm in result["arms"].values()
        for look in looks
    ]


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
    ours, theirs = (
        {run["seed"]: METRICS[metric](run["evaluations"][name]) for run in arm["runs"]}
        for arm, name in ((one, look), (other, other_look or look))
    )
    seeds = [seed for seed in ours if seed in theirs]
    return difference([ours[s] for s in seeds], [theirs[s] for s in seeds]) if len(seeds) > 1 else None


def layer_means(found: Mapping[str, Any], expert: str, measure: str, tasks: Sequence[str]) -> list[float]:
    """Per layer the mean over `tasks` of one measure, of one seed's `mini.layers.separation`."""
    return [_mean(list(values)) for values in zip(*(found[expert][task][measure] for task in tasks), strict=True)]


def layer_estimates(
    found: Sequence[Mapping[str, Any]], expert: str, measure: str, tasks: Sequence[str]
) -> list[Estimate]:
    """`layer_means` over seeds."""
    return [estimate(v) for v in zip(*(layer_means(f, expert, measure, tasks) for f in found), strict=True)]
