"""The documents, and what of them can be tested: fenced blocks with the marker above them, and inline code.

A marker is an HTML comment, so it does not show: `<!-- test: run -->` (executed by `make test`), `<!-- test: slow -->`
(executed by `make test-slow`), `<!-- test: parse (reason) -->` (only parsed, because of what it needs or how long it
takes). Every block of bash or Python has one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from running import ROOT

DOCUMENTS = sorted(
    file
    for pattern in (
        "*.md",
        "docs/*.md",
        "docs/api/*.md",
        "docs/evidence/*.md",
        "data_shards/**/*.md",
        "experiments/**/*.md",
    )
    for file in ROOT.glob(pattern)
)
_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"<!-- test: (?P<mode>run|slow|parse)(?: \((?P<reason>[^)]+)\))? -->\n\Z")
_INLINE = re.compile(r"(?<!`)`(?!`)([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    file: str
    """From the root of the repository."""
    line: int
    language: str
    mode: str | None
    """run, slow or parse; None without a marker."""
    reason: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """All fenced blocks in one of these languages."""
    return [block for file in DOCUMENTS for block in _blocks(file) if block.language in languages]


def _blocks(file: Path) -> Iterator[Block]:
    text = file.read_text()
    for fence in _FENCE.finditer(text):
        marker = _MARKER.search(text, 0, fence.start())
        yield Block(
            file=file.relative_to(ROOT).as_posix(),
            line=text.count("\n", 0, fence.start()) + 1,
            language=fence["language"],
            mode=marker and marker["mode"],
            reason=marker and marker["reason"],
            text=fence["text"],
        )


def commands(block: Block) -> list[list[str]]:
    """The command lines of a bash block, each as words; `A=1 command` keeps its assignments as words."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def inline_code(*, evidence: bool = False) -> list[tuple[str, str]]:
    """(file, code) for all code within sentences; without the pages that are generated from results."""
    found = []
    for file in DOCUMENTS:
        if "evidence" in (file.stem, file.parent.name) and not evidence:
            continue
        text = _FENCE.sub("", file.read_text())
        found += [(file.relative_to(ROOT).as_posix(), code) for code in _INLINE.findall(text)]
    return found


def links() -> list[tuple[Path, str]]:
    """(file, target) for all relative links and images."""
    found = []
    for file in DOCUMENTS:
        targets = re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", file.read_text()))
        found += [(file, target) for target in targets if "://" not in target]
    return found
