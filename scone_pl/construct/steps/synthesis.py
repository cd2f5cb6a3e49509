"""Samples with three or four references, made of nothing: a language model, a text-to-image model and an editor."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from scone_pl.construct.answers import read_lists, read_texts
from scone_pl.construct.items import ImageRef, Item, Rejected
from scone_pl.construct.models import Model
from scone_pl.construct.steps.base import Calls, Facts, ModelStep, Outcome
from scone_pl.errors import UserError
from scone_pl.ranges import check_whole

_KINDS = {"C": "character", "O": "object", "S": "scene"}
_CASES = ("CCC", "CCO", "COO", "OOO", "CCCC", "CCCO", "CCOO", "COOO", "OOOO", "CCCS", "CCOS", "COOS", "OOOS")
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "C": (
        "young|middle-aged|old|teenage",
        "woman|man|girl|boy|robot|elf|knight|astronaut|cat|dog|fox|bear|parrot|rabbit",
        "tall|stout|slender|small|sturdy",
        "with glasses|with freckles|with a scarf|with a hat|with a backpack|with a bright jacket|with a striped shirt",
        "photograph|photograph|photograph|cartoon|oil painting|3D render",
    ),
    "O": (
        "red|blue|green|yellow|white|black|orange|violet|striped|dotted",
        "wooden|metal|glass|ceramic|leather|paper|knitted|plastic",
        "teapot|chair|guitar|suitcase|clock|lamp|bicycle|vase|umbrella|toy car|camera|cup|basket|kite|globe|boot",
        "old|new|ornate|plain|worn|tiny|large",
        "photograph|photograph|photograph|cartoon|oil painting|3D render",
    ),
    "S": (
        "at dawn|at noon|in the evening|at night|in fog|in snow|after rain",
        "beach|forest|kitchen|library|market|mountain lake|railway station|garden|workshop|castle|street|desert",
        "quiet|busy|colourful|abandoned|cosy|vast",
        "photograph|photograph|photograph|cartoon|oil painting|3D render",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Synthesis(ModelStep):
    """Makes samples of random attributes: the references by a text-to-image model, the target of them by an editor."""

    samples: int
    """Number of samples to make."""
    llm: str = "llm"
    """The language model."""
    painter: str = "painter"
    """The text-to-image model (images/generations)."""
    editor: str = "editor"
    """The model that makes the target of several images (images/edits)."""
    cases: tuple[str, ...] = _CASES
    """What the references show, a letter each: C character, O object, S scene."""
    license: str = "unknown"
    """Written into every sample's metadata."""
    seed: int = 0
    """Of all choices; by default the pipeline's."""

    expected: ClassVar[float] = 0.95
    models: ClassVar[tuple[str, ...]] = ("llm", "painter", "editor")

    def __post_init__(self) -> None:
        check_whole("samples", self.samples, minimum=1)
        check_whole("seed", self.seed)
        for case in self.cases:
            if not 2 <= len(case) <= 8 or not set(case) <= set(_KINDS):
                raise UserError(f"cases: {case!r:.20} must be 2 to 8 of the letters C, O and S, such as CCO")
        if not self.cases:
            raise UserError("cases: give at least one, such as CCO")
        if self.input:
            raise UserError("input: this step makes its samples itself; it has no input")

    @property
    def own(self) -> int:
        return self.samples

    def wanted(self, item: Item) -> list[str]:
        """Attributes of each subject, drawn at random."""
        generator = random.Random(f"synthesis {self.seed} {item.key}")
        case = generator.choice(self.cases)
        return [
            f"{_KINDS[kind]}: {', '.join(generator.choice(one.split('|')) for one in _ATTRIBUTES[kind])}"
            for kind in case
        ]

    async def ask(self, item: Item, models: Mapping[str, Model]) -> Facts:
        llm, painter, editor = models[self.llm], models[self.painter], models[self.editor]
        wanted = self.wanted(item)
        count = str(len(wanted))
        prompts, names = await llm.ask(
            "describe",
            read_lists(len(wanted), "prompts", "names"),
            about=item.key,
            references=count,
            subjects=_numbered(wanted, "{}. {}"),
        )
        (instruction,) = await llm.ask(
            "combine",
            read_texts("instruction"),
            about=item.key,
            references=count,
            subjects=_numbered(names, "Image {}: {}"),
        )
        facts: Facts = {"wanted": wanted, "prompts": list(prompts), "names": list(names), "instruction": instruction}
        if left_out := [name for name in names if name.lower() not in instruction.lower()]:
            return {**facts, "rejected": ["name left out", f"{left_out[0]!r} is not in {instruction!r}"]}
        references = [await painter.edit(prompt, (), about=item.key) for prompt in prompts]
        if len({ref.sha256 for ref in references}) < len(references):
            return {**facts, "rejected": ["references alike", "two references are the same image"]}
        target = await editor.edit(instruction, references, about=item.key)
        return {**facts, "references": [ref.sha256 for ref in references], "target": target.sha256}

    def decide(self, item: Item, facts: Mapping[str, Any]) -> Outcome:
        if "rejected" in facts:
            return Rejected(*facts["rejected"])
        made = Item(
            key=item.key,
            references=tuple(ImageRef(sha256=digest) for digest in facts["references"]),
            instruction=facts["instruction"],
            target=ImageRef(sha256=facts["target"]),
            metadata={
                "pool": self.name,
                "license": self.license,
                "origin": "synthesised",
                "case": "+".join(one.partition(":")[0] for one in facts["wanted"]),
                "subjects": facts["names"],
            },
        )
        return [made.noting(self.name, {"prompts": facts["prompts"]})]

    def calls(self) -> list[Calls]:
        images = sum(map(len, self.cases)) / len(self.cases)
        return [
            Calls(self.llm, 1, 0, 150, 150),
            Calls(self.llm, 1, 0, 150, 50),
            Calls(self.painter, images, 0, 30, 0, edits=True),
            Calls(self.editor, 1, images, 40, 0, edits=True),
        ]


def _numbered(texts: list[str] | tuple[str, ...], form: str) -> str:
    return "\n".join(form.format(number, text) for number, text in enumerate(texts, 1))
