"""Editing: an image editor adds subjects to references; the target stays, the instruction stays unambiguous."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from scone_pl.construct.answers import read_flag, read_located, read_names, read_texts
from scone_pl.construct.items import ImageRef, Item, Rejected
from scone_pl.construct.models import Model
from scone_pl.construct.steps.base import Calls, Facts, ModelStep, Outcome
from scone_pl.data.sample import Candidate
from scone_pl.ranges import check_number, check_whole

_WHAT = {
    "cross": "one or two subjects of other kinds",
    "intra": "one or two others of the same kind that look different",
}


@dataclass(frozen=True, kw_only=True)
class Editing(ModelStep):
    """Makes a multi-candidate sample of one with a subject per reference.

    `cross`: other kinds are added, and the instruction stays. `intra`: others of the same kind are added, and the
    subject's name in the instruction is replaced by a unique phrase.
    """

    vlm: str = "vlm"
    """The vision-language model."""
    llm: str = "llm"
    """The language model; it can be the same."""
    editor: str = "editor"
    """The image-editing model (images/edits)."""
    intra: float = 0.5
    """Fraction of samples that are edited as `intra`."""
    max_edited: int = 1
    """Greatest number of references that are edited."""
    fluency: bool = True
    """Whether the language model checks instructions that it changed."""

    expected: ClassVar[float] = 0.5
    models: ClassVar[tuple[str, ...]] = ("vlm", "llm", "editor")

    def __post_init__(self) -> None:
        check_number("intra", self.intra, minimum=0, maximum=1)
        check_whole("max_edited", self.max_edited, minimum=1)

    async def ask(self, item: Item, models: Mapping[str, Model]) -> Facts:
        if not item.references or item.target is None:
            return {"rejected": ["not a sample to edit", "it has no reference or no target"]}
        vlm, llm, editor = models[self.vlm], models[self.llm], models[self.editor]
        count = len(item.references)
        names = await llm.ask(
            "names", read_names(count), about=item.key, references=str(count), instruction=item.instruction
        )
        generator = self.draw(item)
        case: Literal["intra", "cross"] = "intra" if generator.random() < self.intra else "cross"
        edited = sorted(generator.sample(range(count), generator.randint(1, min(self.max_edited, count))))
        facts: Facts = {"case": case, "edits": [], "names": list(names)}
        text = item.instruction
        for number in edited:
            name = names[number]
            if case == "intra" and name.lower() not in text.lower():
                return {**facts, "rejected": ["subject not in the instruction", f"{name!r} is not in {text!r}"]}
            change, added = await llm.ask(
                "addition", read_texts("edit", "added"), about=item.key, name=name, what=_WHAT[case]
            )
            new = await editor.edit(change, (item.references[number],), about=item.key)
            located = await vlm.ask("shared", read_located, (item.references[number], new), about=item.key, added=added)
            boxes = [[one.name, one.box] for one in located.subjects]
            facts["edits"].append([number, new.sha256, change, located.same, boxes])
            if located.same == 0:
                return {**facts, "rejected": ["subject lost in editing", f"{name} is not the same after: {change}"]}
            if len(located.subjects) < 2:
                return {**facts, "rejected": ["nothing was added", change]}
            if case == "cross":
                continue
            (text,) = await llm.ask(
                "replace",
                read_texts("instruction"),
                about=item.key,
                references=str(count),
                instruction=text,
                name=name,
                phrase=located.phrase,
                number=str(number + 1),
            )
            if located.phrase.lower() not in text.lower():
                return {**facts, "rejected": ["phrase left out", f"{located.phrase!r} is not in {text!r}"]}
        facts["instruction"] = text
        if text == item.instruction or not self.fluency:
            return facts
        fluent = await llm.ask("fluency", read_flag("fluent"), about=item.key, instruction=text)
        return facts if fluent else {**facts, "rejected": ["not fluent", text]}

    def decide(self, item: Item, facts: Mapping[str, Any]) -> Outcome:
        if "rejected" in facts:
            return Rejected(*facts["rejected"])
        references = list(item.references)
        groups: list[tuple[Candidate, ...]] = [
            (Candidate(box=(0.0, 0.0, 1.0, 1.0), is_target=True, name=name),) for name in facts["names"]
        ]
        for number, digest, _, same, boxes in facts["edits"]:
            references[number] = ImageRef(sha256=digest)
            groups[number] = tuple(
                Candidate(box=tuple(box), is_target=i == same, name=name) for i, (name, box) in enumerate(boxes, 1)
            )
        made = replace(
            item,
            key=f"{item.key}-e",
            references=tuple(references),
            instruction=facts["instruction"],
            kind="multi",
            candidates=tuple(groups),
        ).with_metadata(case=facts["case"])
        return [made.noting(self.name, {"edits": [change for _, _, change, _, _ in facts["edits"]], "of": item.key})]

    def calls(self) -> list[Calls]:
        number = (1 + self.max_edited) / 2
        return [
            Calls(self.llm, 1, 0, 120, 20),
            Calls(self.llm, number, 0, 100, 40),
            Calls(self.editor, number, 1, 20, 0, edits=True),
            Calls(self.vlm, number, 2, 250, 120),
            Calls(self.llm, (2 if self.fluency else 1) * self.intra * number, 0, 150, 40),
        ]
