"""The consistency score from 0 to 4: only perfect samples are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from scone_pl.construct.answers import read_score
from scone_pl.construct.items import Item, Rejected
from scone_pl.construct.models import Model
from scone_pl.construct.steps.base import Calls, Facts, ModelStep, Outcome
from scone_pl.ranges import check_whole


@dataclass(frozen=True, kw_only=True)
class Consistency(ModelStep):
    """Scores how well the target keeps the references' subjects and follows the instruction."""

    vlm: str = "vlm"
    """The vision-language model."""
    keep: int = 4
    """Least score."""
    votes: int = 2
    """How often a sample is scored, each time again only if it passed the time before; the least score counts."""

    expected: ClassVar[float] = 0.35
    models: ClassVar[tuple[str, ...]] = ("vlm",)

    def __post_init__(self) -> None:
        check_whole("keep", self.keep, maximum=4)
        check_whole("votes", self.votes, minimum=1, maximum=10)

    async def ask(self, item: Item, models: Mapping[str, Model]) -> Facts:
        scores: list[int] = []
        deductions: list[str] = []
        while len(scores) < self.votes and all(score >= self.keep for score in scores):
            score, found = await models[self.vlm].ask(
                "consistency",
                read_score,
                item.images,
                about=item.key,
                asking=len(scores) + 1,
                references=str(len(item.references)),
                result=str(len(item.references) + 1),
                instruction=item.instruction,
            )
            scores.append(score)
            deductions = deductions if score == 4 else found
        return {"scores": scores, "deductions": deductions}

    def decide(self, item: Item, facts: Mapping[str, Any]) -> Outcome:
        score = min(facts["scores"])
        if score < self.keep:
            return Rejected(f"consistency {score}", "; ".join(facts["deductions"]))
        return [item.noting(self.name, {"score": score})]

    def calls(self) -> list[Calls]:
        return [Calls(self.vlm, 1 + self.expected * (self.votes - 1), 3, 400, 120)]
