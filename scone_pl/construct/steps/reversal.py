"""Reversal: the target of a sample with several subjects becomes the reference, one of its references the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from scone_pl.construct.answers import read_flag, read_located, read_texts
from scone_pl.construct.items import Item, Rejected
from scone_pl.construct.models import Model
from scone_pl.construct.steps.base import Calls, Facts, ModelStep, Outcome
from scone_pl.data.sample import Candidate


@dataclass(frozen=True, kw_only=True)
class Reversal(ModelStep):
    """Makes a single-subject sample with several candidates; no image is made.

    Images are described one at a time by the vision-language model; the instruction is then written by the language
    model, which sees none.
    """

    vlm: str = "vlm"
    """The vision-language model."""
    llm: str = "llm"
    """The language model; it can be the same."""
    fluency: bool = True
    """Whether the language model checks what it wrote."""

    expected: ClassVar[float] = 0.6
    models: ClassVar[tuple[str, ...]] = ("vlm", "llm")

    async def ask(self, item: Item, models: Mapping[str, Model]) -> Facts:
        if len(item.references) < 2 or item.target is None:
            return {"rejected": ["not several subjects", f"{len(item.references)} reference images"]}
        vlm, llm = models[self.vlm], models[self.llm]
        chosen = self.draw(item).randrange(len(item.references))
        new_target = item.references[chosen]
        subject, scene = await vlm.ask("subject", read_texts("subject", "scene"), (new_target,), about=item.key)
        located = await vlm.ask("locate", read_located, (item.target, new_target), about=item.key, subject=subject)
        facts: Facts = {"chosen": chosen, "subject": subject, "phrase": located.phrase, "same": located.same}
        facts["subjects"] = [[one.name, one.box] for one in located.subjects]
        if located.same == 0:
            return {**facts, "rejected": ["subject not in the reference", f"{subject} is not in the target"]}
        if len(located.subjects) < 2:
            return {**facts, "rejected": ["one candidate only", f"only {located.subjects[0].name} was found"]}
        (instruction,) = await llm.ask(
            "reverse", read_texts("instruction"), about=item.key, phrase=located.phrase, scene=scene
        )
        facts["instruction"] = instruction
        if located.phrase.lower() not in instruction.lower():
            return {**facts, "rejected": ["phrase left out", f"{located.phrase!r} is not in {instruction!r}"]}
        if self.fluency and not await llm.ask("fluency", read_flag("fluent"), about=item.key, instruction=instruction):
            return {**facts, "rejected": ["not fluent", instruction]}
        return facts

    def decide(self, item: Item, facts: Mapping[str, Any]) -> Outcome:
        if "rejected" in facts or item.target is None:
            return Rejected(*facts["rejected"])
        group = tuple(
            Candidate(box=tuple(box), is_target=number == facts["same"], name=name)
            for number, (name, box) in enumerate(facts["subjects"], 1)
        )
        made = replace(
            item,
            key=f"{item.key}-r",
            references=(item.target,),
            target=item.references[facts["chosen"]],
            instruction=facts["instruction"],
            kind="multi",
            candidates=(group,),
        )
        return [made.noting(self.name, {"phrase": facts["phrase"], "of": item.key})]

    def calls(self) -> list[Calls]:
        asked = [Calls(self.vlm, 1, 1, 120, 60), Calls(self.vlm, 1, 2, 300, 150), Calls(self.llm, 0.8, 0, 150, 40)]
        return [*asked, Calls(self.llm, 0.8, 0, 100, 10)] if self.fluency else asked
