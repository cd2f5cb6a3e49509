"""Prompt templates of the judge: versioned text files (`prompts/README.md`)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from scone_pl.errors import UserError
from scone_pl.vlm.templates import Template, TemplateFolders

if TYPE_CHECKING:
    from scone_pl.evaluation.benchmark import Benchmark, Question
    from scone_pl.evaluation.judge_config import JudgeConfig

FOLDER = Path(__file__).parent / "prompts"
"""Prompts and parts that benchmarks share."""
PARTS = ("frame", "inputs", "scale")
PLAUSIBILITY = "plausibility"
REFERENCES, GENERATED = "reference_images", "generated_image"
"""Placeholders where images stand."""


class Templates(TemplateFolders):
    """The prompt templates of one or more folders; a file of an earlier folder comes before those of later ones."""

    def __init__(self, folder: str | Path = FOLDER, *others: str | Path) -> None:
        """Reads every `VERSION`; templates are read on first access.

        Raises:
            UserError: no such folder, or no `VERSION` in it.
        """
        super().__init__(folder, *others, parts=PARTS)

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

    def of_question(self, question: Question) -> Template:
        """The template of a question.

        Raises:
            UserError: see `__getitem__`; or it has a placeholder that the question does not fill.
        """
        template = self[question.template]
        if unknown := template.placeholders - set(question.fields) - {REFERENCES, GENERATED}:
            names = _listed([*question.fields, *PARTS, REFERENCES, GENERATED])
            file = self.find(question.template)[0]
            raise UserError(f"{file}: unknown field {{{{{min(unknown)}}}}}; there are {names}")
        shown = template.placeholders & {REFERENCES, GENERATED}
        if len(shown) == 1 and question.references != ():
            raise UserError(
                f"{self.find(question.template)[0]}: has {{{{{min(shown)}}}}} only; name both {{{{{REFERENCES}}}}} "
                f"and {{{{{GENERATED}}}}}, or none"
            )
        return template


def _listed(names: Collection[str]) -> str:
    return ", ".join(dict.fromkeys(names))
