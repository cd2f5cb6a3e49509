"""Score against cost: the evaluations of each arm, relative to the first one."""

from __future__ import annotations

import math
from typing import NamedTuple

from matplotlib.axes import Axes

from scone_pl.markdown import markdown_table
from scone_pl.study.intervals import Estimate
from scone_pl.study.result import Result


class Point(NamedTuple):
    """An arm under one evaluation."""

    label: str
    cost: float
    """Mean over seeds, divided by that of the first evaluation; nan where that is 0."""
    score: Estimate
    difference: Estimate
    """Score minus that of the first evaluation, paired by seed; without an interval with one seed."""


def points(result: Result) -> list[Point]:
    """One for every arm and scored evaluation; none unless the study has a `frontier`."""
    if not (metrics := result.content.get("frontier")):
        return []
    cost, score = metrics
    first, found = result.of_kind("score")[0], []
    for label, arm, evaluation in result.rows(result.of_kind("score")):
        costs, scores = (
            [result.estimate(arm, name, metric) for name in (evaluation, first)] for metric in (cost, score)
        )
        difference = result.difference(arm, arm, evaluation, score, first)
        found.append(
            Point(
                label,
                costs[0].mean / costs[1].mean if costs[1].mean else math.nan,
                scores[0],
                difference or Estimate(scores[0].mean - scores[1].mean, math.nan, ()),
            )
        )
    return found


def table(result: Result) -> list[str]:
    """As Markdown, cheapest first; nothing without points."""
    rows = [
        [point.label, f"{point.cost:.2f}", str(point.score), str(point.difference)]
        for point in sorted(points(result), key=lambda point: point.cost)
    ]
    cost, score = result.content.get("frontier") or ("", "")
    first = result.evaluations[result.of_kind("score")[0]]["label"] if rows else ""
    head = ["score against cost", f"{cost} / {first}", score, f"{score} minus {first}"]
    return [markdown_table(head, rows)] if rows else []


def draw(axes: Axes, result: Result) -> None:
    """Differences of the score over the cost."""
    cost, score = result.content["frontier"]
    first = result.evaluations[result.of_kind("score")[0]]["label"]
    axes.axhline(0, color="0.8", linewidth=1)
    for number, point in enumerate(points(result)):
        axes.errorbar(
            point.cost,
            point.difference.mean,
            yerr=point.difference.half_width,
            marker="osD^v"[number // 10 % 5],
            capsize=3,
            color=f"C{number % 10}",
            label=point.label,
        )
    axes.set_xlabel(f"{cost} / {first}")
    axes.set_ylabel(f"{score} - {first}")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
