"""Prompt templates of the judge: versioned text files (`prompts/README.md`)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.items import Item
from scone_pl.files import read_text

FOLDER = Path(__file__).parent / "prompts"
PARTS = ("frame", "inputs", "scale")
PRESENCE, PLAUSIBILITY = "sconeeval_dis", "plausibility"
"""Questions that are independent of the benchmark."""
_FIELDS = {PRESENCE: ("subject",)}
_USUAL_FIELDS = ("instruction", "references")
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Template:
    """Template of one question."""

    name: str
    text: str
    """With parts included and placeholders for fields."""
    version: str
    """Content of the set's `VERSION`, such as `scone_pl-1`."""

    @property
    def identity(self) -> str:
        """Name, version and abbreviated SHA-256 of the text, such as `sconeeval_pf/scone_pl-1/8f3a...`."""
        return f"{self.name}/{self.version}/{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"

    def fill(self, **fields: str) -> str:
        """The question; placeholders within field values are not substituted."""
        return _PLACEHOLDER.sub(lambda match: fields[match[1]], self.text)


class Templates:
    """The prompt templates of a folder."""

    def __init__(self, folder: str | Path = FOLDER) -> None:
        """Reads `VERSION`; templates are read on first access.

        Raises:
            UserError: no such folder, or no `VERSION` in it.
        """
        self.folder = Path(folder)
        self.version = read_text(self.folder / "VERSION").strip()
        self._templates: dict[str, Template] = {}

    def __getitem__(self, name: str) -> Template:
        """The template `name`.

        Raises:
            UserError: its file or an included part is missing, or it has an unknown `{{field}}`.
        """
        if name not in self._templates:
            file = self.folder / f"{name}.md"
            text = _PLACEHOLDER.sub(self._part, read_text(file)).strip() + "\n"
            fields = _FIELDS.get(name, _USUAL_FIELDS)
            if unknown := set(_PLACEHOLDER.findall(text)) - set(fields):
                raise UserError(f"{file}: unknown field {{{{{unknown.pop()}}}}}; there are {', '.join(fields + PARTS)}")
            self._templates[name] = Template(name, text, self.version)
        return self._templates[name]

    def _part(self, match: re.Match[str]) -> str:
        return read_text(self.folder / f"{match[1]}.md").strip() if match[1] in PARTS else match[0]

    def prompt_following(self, benchmark: Benchmark, item: Item, *, scene_pf: bool = False) -> Template:
        """Template for PF. The published code never uses OmniContext's scene variant (docs/benchmarks.md 5)."""
        scene = scene_pf and item.scene and benchmark.name == "omnicontext"
        return self[f"{benchmark.name}_pf{'_scene' if scene else ''}"]

    def subject_consistency(self, benchmark: Benchmark, item: Item) -> Template:
        """Template for SC."""
        return self[f"{benchmark.name}_sc{'_scene' if item.scene else ''}"]
