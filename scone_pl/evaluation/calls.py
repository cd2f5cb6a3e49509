"""The questions to the judge about a generated image (docs/benchmarks.md 3.4), and the hashes that identify them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark, Question
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.judge_images import Fingerprints, QuestionImage, data_url
from scone_pl.evaluation.templates import GENERATED, PLAUSIBILITY, REFERENCES, Templates
from scone_pl.vlm.parsing import parse_score
from scone_pl.vlm.templates import Template


@dataclass(frozen=True)
class Call:
    """One question about one image in one scoring."""

    question: Question
    item: Item
    sampling: int
    scoring: int
    template: str
    """`Template.identity` of the wording."""
    parts: tuple[str | QuestionImage, ...]
    """Text and images, in order."""
    ask: str
    """Hash of the complete question."""
    parameters: dict[str, Any]
    """Fields of the request."""

    @property
    def text(self) -> str:
        """All text of it."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[QuestionImage, ...]:
        """References in order, and the generated image."""
        return tuple(part for part in self.parts if isinstance(part, QuestionImage))

    def content(self) -> list[dict[str, Any]]:
        """The user message.

        Raises:
            UserError: an image cannot be decoded.
        """
        return [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": data_url(part)}}
            for part in self.parts
        ]

    @property
    def about(self) -> dict[str, Any]:
        """Description for readers of the answer store."""
        metadata = {
            "kind": self.question.kind,
            "task_type": self.item.task_type,
            "key": self.item.key,
            "sampling": self.sampling,
            "scoring": self.scoring,
            "prompt": self.template,
        }
        return metadata | ({"candidate": list(self.question.candidate)} if self.question.candidate else {})


@dataclass(frozen=True)
class Judgement:
    """All questions about one image in one scoring."""

    item: Item
    sampling: int
    """Generation round, from 1."""
    scoring: int
    """Judging round, from 1."""
    calls: tuple[Call, ...]
    failure: str | None = None
    """Reason if there are no questions."""
    image: str | None = None
    """SHA-256 of the generated image's file."""


class Planner:
    """Builds the questions."""

    def __init__(self, benchmark: Benchmark, config: JudgeConfig, templates: Templates) -> None:
        self.benchmark, self.config, self.templates = benchmark, config, templates
        self._fingerprints = Fingerprints()

    def judgement(self, item: Item, image: Path, sampling: int, scoring: int) -> Judgement:
        """All questions about `image`, in the published order; none if it does not exist."""
        if not image.is_file():
            return Judgement(item, sampling, scoring, (), f"no image {image.name} in round {sampling}")
        try:
            calls = tuple(
                self.call(question, self.templates.of_question(question), item, {GENERATED: image}, sampling, scoring)
                for question in all_questions(self.benchmark, item, self.config)
            )
            return Judgement(item, sampling, scoring, calls, image=self._fingerprints[image])
        except UserError as error:
            return Judgement(item, sampling, scoring, (), str(error))

    def _question_image(self, file: Path, *, reference: bool) -> QuestionImage:
        has_orientation = self._fingerprints.is_rotated(file)
        return QuestionImage(
            file,
            reference=reference,
            rotated=has_orientation and self.config.exif_orientation == "apply",
            as_file=self.benchmark.preparation == "file",
            reencoded=has_orientation,
        )

    def call(
        self,
        question: Question,
        template: Template,
        item: Item,
        outputs: Mapping[str, Path],
        sampling: int,
        scoring: int,
    ) -> Call:
        """One question.

        Args:
            question: see `Question`.
            template: its wording.
            item: the item.
            outputs: placeholder -> the generated image that stands there.
            sampling: generation round of the images.
            scoring: judging round.

        Raises:
            UserError: an image cannot be read.
        """
        shown = range(len(item.images)) if question.references is None else question.references
        references = [self._question_image(item.images[i], reference=True) for i in shown]
        generated = {name: self._question_image(file, reference=False) for name, file in outputs.items()}
        parts: list[str | QuestionImage] = []
        for segment in template.segments(question.fields, (REFERENCES, *outputs)):
            parts += references if segment == REFERENCES else [generated.get(segment, segment)]
        parameters = {**self.config.parameters, **question.parameters}
        asked = {
            "model": self.config.model,
            "parameters": parameters,
            "prompt": template.identity,
            "text": template.fill(**question.fields),
            "images": [[one.preparation, self._fingerprints[one.file]] for one in (*references, *generated.values())],
            "scoring": scoring,
        }
        ask = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
        return Call(question, item, sampling, scoring, template.identity, tuple(parts), ask, parameters)


def all_questions(benchmark: Benchmark, item: Item, config: JudgeConfig) -> list[Question]:
    """The benchmark's questions about an item, and the additional one that `config` asks for."""
    questions = benchmark.questions(item, config)
    if config.plausibility:
        fields = {"instruction": item.instruction}
        questions.append(Question("PHY", PLAUSIBILITY, fields, parse_score, references=(), optional=True))
    return questions
