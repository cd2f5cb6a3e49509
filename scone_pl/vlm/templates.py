"""Prompt templates for vision-language models: versioned text files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scone_pl.files import read_text

PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


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
        return set(PLACEHOLDER.findall(self.text))

    def fill(self, **fields: str) -> str:
        """The question; placeholders within field values are not substituted, those of images stay."""
        return PLACEHOLDER.sub(lambda match: fields.get(match[1], match[0]), self.text)

    def segments(self, fields: Mapping[str, str], images: Sequence[str]) -> list[str]:
        """The question cut at its images: text, or one of `images` alone.

        Without such placeholders the images follow the text.
        """
        segments, start = [""], 0
        for match in PLACEHOLDER.finditer(self.text):
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


class TemplateFolders:
    """The prompt templates of one or more folders; a file of an earlier folder comes before those of later ones."""

    def __init__(self, *folders: str | Path, parts: Collection[str] = ()) -> None:
        """Reads every `VERSION`; templates are read on first access.

        Args:
            folders: with `NAME.md` files and `VERSION`.
            parts: names of files that other files include.

        Raises:
            UserError: no such folder, or no `VERSION` in it.
        """
        self.folders = [*map(Path, folders)]
        self.parts = parts
        self._versions = [read_text(one / "VERSION").strip() for one in self.folders]
        self._templates: dict[str, Template] = {}

    def __getitem__(self, name: str) -> Template:
        """The template `name`.

        Raises:
            UserError: its file or an included part is missing.
        """
        if name not in self._templates:
            file, version = self.find(name)
            text = PLACEHOLDER.sub(self._part, read_text(file)).strip() + "\n"
            self._templates[name] = Template(name, text, version)
        return self._templates[name]

    def find(self, name: str) -> tuple[Path, str]:
        """File and version of a template or part."""
        for folder, version in zip(self.folders, self._versions, strict=True):
            if (folder / f"{name}.md").exists():
                return folder / f"{name}.md", version
        return self.folders[0] / f"{name}.md", self._versions[0]  # reading it reports the error

    def _part(self, match: re.Match[str]) -> str:
        return read_text(self.find(match[1])[0]).strip() if match[1] in self.parts else match[0]
