"""Which questions the judge is asked about a picture (benchmarks 3.4), and the hash that finds their answers again."""

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
from scone_pl.evaluation.judge_images import Fingerprints, Shown, data_url
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
    """Identity of the wording."""
    text: str
    images: tuple[Shown, ...]
    """References in order, the generated picture last."""
    ask: str
    """Hash of everything that was asked."""
    candidate: tuple[int, int] | None = None
    """DIS: (reference, candidate), from 0."""

    @property
    def read(self) -> Callable[[str | None], Score | int]:
        """The parser of its answers."""
        return parse_presence if self.kind == "DIS" else parse_score

    def content(self) -> list[dict[str, Any]]:
        """The user message: the text, then the images.

        Raises:
            UserError: an image can not be decoded.
        """
        urls = [{"type": "image_url", "image_url": {"url": data_url(shown)}} for shown in self.images]
        return [{"type": "text", "text": self.text}, *urls]

    @property
    def about(self) -> dict[str, Any]:
        """For the store's readers."""
        found = {
            "kind": self.kind,
            "task_type": self.item.task_type,
            "key": self.item.key,
            "sampling": self.sampling,
            "scoring": self.scoring,
            "prompt": self.template,
        }
        return found | ({"candidate": list(self.candidate)} if self.candidate else {})


@dataclass(frozen=True)
class Judgement:
    """Everything asked about one picture in one scoring."""

    item: Item
    sampling: int
    """Generation round, from 1."""
    scoring: int
    """Judging round, from 1."""
    calls: tuple[Call, ...]
    failure: str | None = None
    """Why nothing can be asked."""


class Planner:
    """Makes the questions."""

    def __init__(self, benchmark: Benchmark, config: JudgeConfig, templates: Templates) -> None:
        self.benchmark, self.config, self.templates = benchmark, config, templates
        self._fingerprints = Fingerprints()

    def judgement(self, item: Item, picture: Path, sampling: int, scoring: int) -> Judgement:
        """All questions about `picture`, in the published order; none if it is not there."""
        if not picture.is_file():
            return Judgement(item, sampling, scoring, (), f"no picture {picture.name} in round {sampling}")
        try:
            calls = tuple(self._calls(item, picture, sampling, scoring))
        except UserError as error:
            return Judgement(item, sampling, scoring, (), str(error))
        return Judgement(item, sampling, scoring, calls)

    def _shown(self, file: Path, *, reference: bool) -> Shown:
        turned = self.config.exif_orientation == "apply" and self._fingerprints.is_turned(file)
        return Shown(file, reference=reference, turned=turned)

    def _calls(self, item: Item, picture: Path, sampling: int, scoring: int) -> list[Call]:
        output = self._shown(picture, reference=False)
        references = [self._shown(file, reference=True) for file in item.images]
        fields = {"instruction": item.instruction, "references": str(len(references))}
        following = self.templates.prompt_following(self.benchmark, item, scene_pf=self.config.scene_pf)
        consistency = self.templates.subject_consistency(self.benchmark, item)
        asked: list[tuple[Kind, Template, dict[str, str], Sequence[Shown], tuple[int, int] | None]] = [
            ("PF", following, fields, [*references, output], None),
            ("SC", consistency, fields, [*references, output], None),
        ]
        for i, group in enumerate(item.subjects):
            template = self.templates[PRESENCE]
            for j, subject in enumerate(group):
                asked.append(("DIS", template, {"subject": subject}, [references[i], output], (i, j)))
        if self.config.plausibility:
            asked.append(("PHY", self.templates[PLAUSIBILITY], fields, [output], None))
        return [
            self._call(kind, item, template, given, shown, candidate, sampling, scoring)
            for kind, template, given, shown, candidate in asked
        ]

    def _call(
        self,
        kind: Kind,
        item: Item,
        template: Template,
        fields: dict[str, str],
        shown: Sequence[Shown],
        candidate: tuple[int, int] | None,
        sampling: int,
        scoring: int,
    ) -> Call:
        text = template.fill(**fields)
        asked = {
            "model": self.config.model,
            "parameters": self.config.parameters,
            "prompt": template.identity,
            "text": text,
            "images": [[one.preparation, self._fingerprints[one.file]] for one in shown],
            "scoring": scoring,
        }
        ask = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
        return Call(kind, item, sampling, scoring, template.identity, text, tuple(shown), ask, candidate)
