"""Definition of the two benchmarks: tasks, score columns and scene rules (docs/benchmarks.md 1, 3.3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scone_pl.errors import UserError
from scone_pl.evaluation.scores import (
    COMPOSITION_COLUMNS,
    DISTINCTION_COLUMNS,
    OMNICONTEXT_TASKS,
    SCONEEVAL_TASKS,
    is_distinction,
)

BenchmarkName = Literal["sconeeval", "omnicontext"]
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


@dataclass(frozen=True)
class Benchmark:
    """One benchmark."""

    name: BenchmarkName
    title: str
    tasks: tuple[str, ...]
    """In the order of the table."""
    heads: tuple[tuple[str, tuple[str, ...]], ...]
    """The table's head: groups with the short names of their tasks, in the order of `tasks`."""
    make_target: str
    """Makefile target of the table."""

    def has_distinction(self, task: str) -> bool:
        """Whether the presence of a task's candidates is judged."""
        return self.name == "sconeeval" and is_distinction(task)

    def columns(self, task: str) -> tuple[str, ...]:
        """Names of the scores of a task."""
        return (*COMPOSITION_COLUMNS, *(DISTINCTION_COLUMNS if self.has_distinction(task) else ()))

    @property
    def average_columns(self) -> tuple[str, ...]:
        """Names of the scores of the average row."""
        return (*COMPOSITION_COLUMNS, *(DISTINCTION_COLUMNS if self.name == "sconeeval" else ()))

    @property
    def has_overall(self) -> bool:
        """Whether the benchmark has an Overall score of composition and distinction."""
        return self.name == "sconeeval"

    @property
    def short_names(self) -> dict[str, str]:
        """Task -> its name in the table's head, such as `Distinction / Cross`."""
        names = [f"{group} / {short}" for group, shorts in self.heads for short in shorts]
        return dict(zip(self.tasks, names, strict=True))

    def shows_scene(self, task: str, case_type: str | None) -> bool:
        """Whether subject consistency includes the scene (docs/benchmarks.md 3.3)."""
        return "scene" in task or "scene" in CaseType.parse(case_type).contents

    def check_tasks(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """`tasks` in the table's order.

        Raises:
            UserError: one of them is no task of this benchmark.
        """
        if unrecognised := [task for task in tasks if task not in self.tasks]:
            raise UserError(f"{self.name} has no task {unrecognised[0]!r}; its tasks: {', '.join(self.tasks)}")
        return tuple(task for task in self.tasks if task in tasks)


SCONEEVAL = Benchmark(
    name="sconeeval",
    title="SconeEval",
    tasks=SCONEEVAL_TASKS,
    heads=(
        ("Composition", ("Single", "Multi")),
        ("Distinction", ("Cross", "Intra")),
        ("Distinction & Composition", ("Cross", "Intra")),
    ),
    make_target="table3",
)
OMNICONTEXT = Benchmark(
    name="omnicontext",
    title="OmniContext",
    tasks=OMNICONTEXT_TASKS,
    heads=(
        ("Single", ("Character", "Object")),
        ("Multiple", ("Character", "Object", "Char. + Obj.")),
        ("Scene", ("Character", "Object", "Char. + Obj.")),
    ),
    make_target="table2",
)
BENCHMARKS: dict[str, Benchmark] = {"sconeeval": SCONEEVAL, "omnicontext": OMNICONTEXT}
