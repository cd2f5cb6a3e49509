"""Prompt templates of the judge: versioned text files (`prompts/README.md`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scone_pl.errors import UserError
from scone_pl.files import read_text

if TYPE_CHECKING:
    from scone_pl.evaluation.benchmark import Benchmark, Question
    from scone_pl.evaluation.judge_config import JudgeConfig

FOLDER = Path(__file__).parent / "prompts"
"""Prompts and parts that benchmarks share."""
PARTS = ("frame", "inputs", "scale")
PLAUSIBILITY = "plausibility"
REFERENCES, GENERATED = "reference_images", "generated_image"
"""Placeholders where images stand."""
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Template:
    """Template of one question."""

    name: str
    text: str
    """With parts included and placeholders for fields and images."""
    version: str
    """Content of the set's `VERSION`, such as `scone_pl-1`."""

    @property
    def identity(self) -> str:
        """Name, version and abbreviated SHA-256 of the text, such as `sconeeval_pf/scone_pl-1/8f3a...`."""
        return f"{self.name}/{self.version}/{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"

    @property
    def placeholders(self) -> set[str]:
        """Names of all placeholders."""
        return set(_PLACEHOLDER.findall(self.text))

    def fill(self, **fields: str) -> str:
        """The question; placeholders within field values are not substituted, those of images stay."""
        return _PLACEHOLDER.sub(lambda match: fields.get(match[1], match[0]), self.text)

    def segments(self, fields: Mapping[str, str], images: Sequence[str] = (REFERENCES, GENERATED)) -> list[str]:
        """The question cut at its images: text, or one of `images` alone.

        Without such placeholders the images follow the text.
        """
        segments, start = [""], 0
        for match in _PLACEHOLDER.finditer(self.text):
            segments[-1] += self.text[start : match.start()]
            start = match.end()
            if match[1] in images:
                segments += [match[1], ""]
            else:
                segments[-1] += fields[match[1]]
        segments[-1] += self.text[start:]
        if len(segments) == 1:
            return [*segments, *images]
        return [part for number, part in enumerate(segments) if number % 2 or part.strip()]


class Templates:
    """The prompt templates of one or more folders; a file of an earlier folder comes before those of later ones."""

    def __init__(self, folder: str | Path = FOLDER, *others: str | Path) -> None:
        """Reads every `VERSION`; templates are read on first access.

        Raises:
            UserError: no such folder, or no `VERSION` in it.
        """
        self.folders = [Path(folder), *map(Path, others)]
        self._versions = [read_text(one / "VERSION").strip() for one in self.folders]
        self._templates: dict[str, Template] = {}

    @classmethod
    def of(cls, benchmark: Benchmark, config: JudgeConfig) -> Templates:
        """Those of a benchmark, below them the shared ones; above both the user's folder, if there is one.

        Raises:
            UserError: see `Templates`; or a file of the user's folder has a name that no prompt has.
        """
        package = [benchmark.folder / "prompts", FOLDER]
        if not config.prompts:
            return cls(*package)
        templates = cls(config.prompts, *package)
        known = {file.name for folder in package for file in folder.glob("*.md")}
        if unknown := sorted(file.name for file in Path(config.prompts).glob("*.md") if file.name not in known):
            raise UserError(f"{config.prompts}/{unknown[0]}: no prompt of {benchmark.name} has that name")
        return templates

    def __getitem__(self, name: str) -> Template:
        """The template `name`.

        Raises:
            UserError: its file or an included part is missing.
        """
        if name not in self._templates:
            file, version = self._find(name)
            text = _PLACEHOLDER.sub(self._part, read_text(file)).strip() + "\n"
            self._templates[name] = Template(name, text, version)
        return self._templates[name]

    def of_question(self, question: Question) -> Template:
        """The template of a question.

        Raises:
            UserError: see `__getitem__`; or it has a placeholder that the question does not fill.
        """
        template = self[question.template]
        if unknown := template.placeholders - set(question.fields) - {REFERENCES, GENERATED}:
            names = _listed([*question.fields, *PARTS, REFERENCES, GENERATED])
            file = self._find(question.template)[0]
            raise UserError(f"{file}: unknown field {{{{{min(unknown)}}}}}; there are {names}")
        shown = template.placeholders & {REFERENCES, GENERATED}
        if len(shown) == 1 and question.references != ():
            raise UserError(
                f"{self._find(question.template)[0]}: has {{{{{min(shown)}}}}} only; name both {{{{{REFERENCES}}}}} "
                f"and {{{{{GENERATED}}}}}, or none"
            )
        return template

    def _find(self, name: str) -> tuple[Path, str]:
        for folder, version in zip(self.folders, self._versions, strict=True):
            if (folder / f"{name}.md").exists():
                return folder / f"{name}.md", version
        return self.folders[0] / f"{name}.md", self._versions[0]  # reading it reports the error

    def _part(self, match: re.Match[str]) -> str:
        return read_text(self._find(match[1])[0]).strip() if match[1] in PARTS else match[0]


def _listed(names: Collection[str]) -> str:
    return ", ".join(dict.fromkeys(names))
