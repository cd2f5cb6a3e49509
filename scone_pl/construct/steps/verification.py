"""Asks back which candidate an instruction means, and which one the target shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from scone_pl.construct.answers import read_candidate
from scone_pl.construct.items import Item, Rejected
from scone_pl.construct.models import Model
from scone_pl.construct.steps.base import Calls, Facts, ModelStep, Outcome
from scone_pl.data.sample import Candidate


@dataclass(frozen=True, kw_only=True)
class Verification(ModelStep):
    """Rejects samples where the model, asked back, picks another candidate than the annotated one."""

    vlm: str = "vlm"
    """The vision-language model."""
    shown: bool = True
    """Whether it is also asked which candidate the target shows."""

    expected: ClassVar[float] = 0.8
    models: ClassVar[tuple[str, ...]] = ("vlm",)

    async def ask(self, item: Item, models: Mapping[str, Model]) -> Facts:
        if item.candidates is None:
            return {"rejected": ["no candidates", "the sample has no boxes; put the step boxes before this one"]}
        facts: Facts = {}
        for number, (ref, group) in enumerate(zip(item.references, item.candidates, strict=True), 1):
            targets = [i for i, candidate in enumerate(group) if candidate.is_target]
            if len(group) < 2 or len(targets) != 1 or len(group) > 26:
                continue
            questions = ["which", "shown"] if self.shown and item.target is not None else ["which"]
            for question in questions:
                images = (ref, item.target) if question == "shown" and item.target else (ref,)
                answer = await models[self.vlm].ask(
                    question,
                    read_candidate(len(group)),
                    images,
                    about=item.key,
                    candidates=_listed(group),
                    instruction=item.instruction,
                    number=str(number),
                )
                if answer != targets[0]:
                    name = "no" if answer == -1 else "more than one" if answer == -2 else "another"
                    what = "instruction refers to" if question == "which" else "target shows"
                    return {"rejected": [f"the {what} {name} candidate", f"reference {number}: {answer}"]}
            facts[str(number)] = targets[0]
        return facts

    def decide(self, item: Item, facts: Mapping[str, Any]) -> Outcome:
        if "rejected" in facts:
            return Rejected(*facts["rejected"])
        return [item.noting(self.name, {"verified": len(facts)})]

    def calls(self) -> list[Calls]:
        asked = [Calls(self.vlm, 1, 1, 200, 10)]
        return [*asked, Calls(self.vlm, self.expected, 2, 200, 10)] if self.shown else asked


def _listed(group: tuple[Candidate, ...]) -> str:
    """Letters and boxes, without names: the answer must come from the image."""
    rows = []
    for number, candidate in enumerate(group):
        box = ", ".join(str(round(1000 * value)) for value in candidate.box)
        rows.append(f"{chr(ord('A') + number)}: [{box}]")
    return "\n".join(rows)
