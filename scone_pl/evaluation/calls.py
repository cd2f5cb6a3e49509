"""The questions to the judge about a generated image (docs/benchmarks.md 3.4), and the hashes that identify them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.judge_images import Fingerprints, QuestionImage, data_url
from scone_pl.evaluation.templates import PLAUSIBILITY, PRESENCE, Template, Templates
from scone_pl.vlm.parsing import Score, parse_presence, parse_score

Kind = Literal["PF", "SC", "DIS", "PHY"]


@dataclass(frozen=True)
class Call:
    """One question."""

    kind: Kind
    item: Item
    sampling: int
    scoring: int
    template: str
    """`Template.identity` of the wording."""
    text: str
    images: tuple[QuestionImage, ...]
    """References in order, then the generated image."""
    ask: str
    """Hash of the complete question."""
    candidate: tuple[int, int] | None = None
    """DIS: indices (reference, candidate)."""

    @property
    def read(self) -> Callable[[str | None], Score | int]:
        """Parser of its answers."""
        return parse_presence if self.kind == "DIS" else parse_score

    def content(self) -> list[dict[str, Any]]:
        """The user message: the text, then the images.

        Raises:
            UserError: an image cannot be decoded.
        """
        urls = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in self.images]
        return [{"type": "text", "text": self.text}, *urls]

    @property
    def about(self) -> dict[str, Any]:
        """Description for readers of the answer store."""
        metadata = {
            "kind": self.kind,
            "task_type": self.item.task_type,
            "key": self.item.key,
            "sampling": self.sampling,
            "scoring": self.scoring,
            "prompt": self.template,
        }
        return metadata | ({"candidate": list(self.candidate)} if self.candidate else {})


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
            calls = tuple(self._calls(item, image, sampling, scoring))
        except UserError as error:
            return Judgement(item, sampling, scoring, (), str(error))
        return Judgement(item, sampling, scoring, calls)

    def _question_image(self, file: Path, *, reference: bool) -> QuestionImage:
        rotated = self.config.exif_orientation == "apply" and self._fingerprints.is_rotated(file)
        return QuestionImage(file, reference=reference, rotated=rotated)

    def _calls(self, item: Item, image: Path, sampling: int, scoring: int) -> list[Call]:
        output = self._question_image(image, reference=False)
        references = [self._question_image(file, reference=True) for file in item.images]
        fields = {"instruction": item.instruction, "references": str(len(references))}
        prompt_following = self.templates.prompt_following(self.benchmark, item, scene_pf=self.config.scene_pf)
        subject_consistency = self.templates.subject_consistency(self.benchmark, item)
        questions: list[tuple[Kind, Template, dict[str, str], Sequence[QuestionImage], tuple[int, int] | None]] = [
            ("PF", prompt_following, fields, [*references, output], None),
            ("SC", subject_consistency, fields, [*references, output], None),
        ]
        for i, group in enumerate(item.subjects):
            template = self.templates[PRESENCE]
            for j, subject in enumerate(group):
                questions.append(("DIS", template, {"subject": subject}, [references[i], output], (i, j)))
        if self.config.plausibility:
            questions.append(("PHY", self.templates[PLAUSIBILITY], fields, [output], None))
        return [
            self._call(kind, item, template, fields, images, candidate, sampling, scoring)
            for kind, template, fields, images, candidate in questions
        ]

    def _call(
        self,
        kind: Kind,
        item: Item,
        template: Template,
        fields: dict[str, str],
        images: Sequence[QuestionImage],
        candidate: tuple[int, int] | None,
        sampling: int,
        scoring: int,
    ) -> Call:
        text = template.fill(**fields)
        question = {
            "model": self.config.model,
            "parameters": self.config.parameters,
            "prompt": template.identity,
            "text": text,
            "images": [[image.preparation, self._fingerprints[image.file]] for image in images],
            "scoring": scoring,
        }
        ask = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:32]
        return Call(kind, item, sampling, scoring, template.identity, text, tuple(images), ask, candidate)
