"""`case_type` of SconeEval and OmniContext: number and content of the references (docs/benchmarks.md 1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Content = Literal["character", "object", "scene"]

_TOKENS = re.compile(r"[A-Z]?[a-z]+|[A-Z]|\d+")
_LETTERS: dict[str, Content] = {"C": "character", "O": "object", "S": "scene"}
_WORDS: dict[str, Content] = {"char": "character", "obj": "object", "sce": "scene"}


@dataclass(frozen=True)
class CaseType:
    """A parsed `case_type`: number and content of the references."""

    count: int | None
    """Number of references; None if not stated."""
    contents: frozenset[Content]
    unrecognised: tuple[str, ...] = ()
    """Unrecognised words."""

    @classmethod
    def parse(cls, text: str | None) -> CaseType:
        """Parses `2CS`, `2 C+S`, `2_char_scene`, `CharacterScene`; other words are collected in `unrecognised`.

        The published code treats anything with a capital S as a scene, including `Single` (docs/benchmarks.md 5).
        """
        count, contents, unrecognised = None, set(), []
        for token in _TOKENS.findall(text or ""):
            if token.isdigit():
                count = int(token) if count is None else count
            elif content := _LETTERS.get(token) or _WORDS.get(token.lower()[: 4 if token[0] in "cC" else 3]):
                contents.add(content)
            elif token.lower() not in ("and", "image", "images", "img", "ref", "refs"):
                unrecognised.append(token)
        return cls(count, frozenset(contents), tuple(unrecognised))
