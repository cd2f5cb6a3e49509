"""Boxes of the candidates in every reference, by a model that can ground."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from scone_pl.construct.answers import read_subjects
from scone_pl.construct.items import Item, Rejected
from scone_pl.construct.models import Model
from scone_pl.construct.steps.base import Calls, Facts, ModelStep, Outcome
from scone_pl.data.sample import Candidate


@dataclass(frozen=True, kw_only=True)
class Grounding(ModelStep):
    """Adds candidates with boxes to samples that have none; they are what `layers` measures the bridge by."""

    vlm: str = "vlm"
    """The vision-language model."""

    expected: ClassVar[float] = 0.9
    models: ClassVar[tuple[str, ...]] = ("vlm",)

    async def ask(self, item: Item, models: Mapping[str, Model]) -> Facts:
        if item.candidates is not None:
            return {}
        groups = []
        for number, ref in enumerate(item.references, 1):
            found = await models[self.vlm].ask(
                "boxes",
                read_subjects,
                (ref,),
                about=item.key,
                instruction=item.instruction,
                references=str(len(item.references)),
                number=str(number),
            )
            groups.append([[one.name, one.box, one.wanted] for one in found])
        return {"groups": groups}

    def decide(self, item: Item, facts: Mapping[str, Any]) -> Outcome:
        if "groups" not in facts:
            return [item]
        groups = facts["groups"]
        for number, group in enumerate(groups, 1):
            if not any(wanted for _, _, wanted in group):
                return Rejected("no subject wanted", f"the instruction refers to nothing in reference {number}")
        candidates = tuple(
            tuple(Candidate(box=tuple(box), is_target=wanted, name=name) for name, box, wanted in group)
            for group in groups
        )
        kind = "multi" if any(len(group) > 1 for group in groups) else item.kind
        return [replace(item, candidates=candidates, kind=kind).noting(self.name, {"boxes": sum(map(len, groups))})]

    def calls(self) -> list[Calls]:
        return [Calls(self.vlm, 2, 1, 150, 120)]
