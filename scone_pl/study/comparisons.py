"""The differences that a study tests: arms against its baseline, evaluations within an arm, rows of the paper's table.

All of one study are one family for Holm's correction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from scone_pl.study.intervals import Estimate, holm
from scone_pl.study.result import Result

ALPHA = 0.05


class Pair(NamedTuple):
    """What is subtracted from what."""

    one: str
    other: str
    evaluation: str
    metric: str
    other_evaluation: str

    @property
    def turned(self) -> Pair:
        """The same difference with the other sign."""
        return Pair(self.other, self.one, self.other_evaluation, self.metric, self.evaluation)


class ComparedRow(NamedTuple):
    """A row of a table of differences."""

    label: str
    pairs: list[Pair]
    """One for each compared metric."""


@dataclass(frozen=True)
class Comparisons:
    """All differences of one result."""

    result: Result
    published: Mapping[str, Any] = field(default_factory=dict)
    """The paper's table, see `docs/evidence/published.yaml`."""

    @cached_property
    def with_baseline(self) -> list[ComparedRow]:
        """Every arm minus the baseline, under each evaluation that is scored."""
        base = self.result.text("baseline")
        if base not in self.result.arms:
            return []
        return [
            ComparedRow(row.label, self._pairs(row.arm, base, row.evaluation, row.evaluation))
            for row in self.result.rows(self.result.of_kind("score"))
            if row.arm != base
        ]

    @cached_property
    def within_arms(self) -> list[ComparedRow]:
        """One evaluation of an arm minus another of the same."""
        rows = []
        for name, arm in self.result.arms.items():
            for one, other in self.result.content.get("contrasts") or ():
                if not {one, other} <= self.result.evaluations.keys():  # asked since the result was kept
                    continue
                labels = [self.result.evaluations[key]["label"] for key in (one, other)]
                rows.append(
                    ComparedRow(f"{arm['label']} · {' minus '.join(labels)}", self._pairs(name, name, one, other))
                )
        return rows

    @cached_property
    def with_paper(self) -> list[tuple[Pair, float]]:
        """Differences of arms that have a row in the paper's table, and the paper's difference."""
        if not self.published:
            return []
        evaluation = self.result.of_kind("score")[0]
        columns, theirs = self.published["columns"], self.published["rows"]
        metrics = [(i, c) for i, c in enumerate(columns) if c in self.result.evaluator(evaluation).metrics]
        arms = [(name, arm["paper"]) for name, arm in self.result.arms.items() if arm["paper"] in theirs]
        return [
            (Pair(other, one, evaluation, metric, evaluation), theirs[their_other][i] - theirs[their_one][i])
            for (one, their_one), (other, their_other) in itertools.combinations(arms, 2)
            for i, metric in metrics
        ]

    def _pairs(self, one: str, other: str, evaluation: str, other_evaluation: str) -> list[Pair]:
        columns = self.result.evaluator(evaluation).compared
        return [Pair(one, other, evaluation, column.metric, other_evaluation) for column in columns]

    def difference(self, pair: Pair) -> Estimate | None:
        """Paired by seed; None if the arms share no two seeds."""
        return self.result.difference(pair.one, pair.other, pair.evaluation, pair.metric, pair.other_evaluation)

    @cached_property
    def family(self) -> dict[Pair, Estimate]:
        """Every difference that is tested, once."""
        rows = [pair for row in (*self.with_baseline, *self.within_arms) for pair in row.pairs]
        family: dict[Pair, Estimate] = {}
        for pair in (*rows, *(pair for pair, _ in self.with_paper)):
            if (
                pair.turned not in family
                and (estimate := self.difference(pair))
                and not math.isnan(estimate.half_width)
            ):
                family[pair] = estimate
        return family

    @cached_property
    def _adjusted(self) -> dict[Pair, float]:
        return dict(zip(self.family, holm([d.p_value for d in self.family.values()]), strict=True))

    def adjusted_p(self, pair: Pair) -> float:
        """After Holm's correction within the study; nan for what is not in the family."""
        return self._adjusted.get(pair, self._adjusted.get(pair.turned, math.nan))

    @property
    def counts(self) -> tuple[int, int, int]:
        """Differences; of these, those whose own interval excludes 0; and those that hold after the correction."""
        alone = sum(estimate.excludes_zero for estimate in self.family.values())
        return len(self.family), alone, sum(p < ALPHA for p in self._adjusted.values())

    def cell(self, pair: Pair) -> str:
        """As Markdown: bold where it holds after the correction, in italics where only its own interval excludes 0."""
        estimate = self.difference(pair)
        if estimate is None:
            return ""
        mark = "**" if self.adjusted_p(pair) < ALPHA else "_" if estimate.excludes_zero else ""
        return f"{mark}{estimate}{mark}"

    def verdict(self, pair: Pair, theirs: float) -> str:
        """Whether the difference has the sign of the paper's."""
        estimate = self.difference(pair)
        if estimate is None or not estimate.excludes_zero:
            return "not resolved"
        agrees = "agrees" if estimate.mean * theirs > 0 else "opposite"
        return agrees if self.adjusted_p(pair) < ALPHA else f"{agrees}, not after correction"
