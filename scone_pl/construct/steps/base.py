"""What a step is: it finds facts about a sample, which are stored, and decides by them, which is free to repeat."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from scone_pl.construct.items import Item, Rejected
from scone_pl.construct.models import Budget, Model
from scone_pl.construct.pools import Images

Facts = dict[str, Any]
Outcome = list[Item] | Rejected
"""The samples that go on, or the reason why none does."""
Rows = Callable[[], Iterator[tuple[Item, Facts]]]
"""All samples of a step with their facts, in order, as often as it is called."""


class Calls(NamedTuple):
    """Questions that a step asks about each sample, for the plan."""

    model: str
    number: float
    """Expected for each sample."""
    images: float
    """Shown with each."""
    tokens: int
    """Of text in the question."""
    answer: int
    """Of the answer."""
    edits: bool = False
    """Whether the answer is an image."""


def _digest(content: Any) -> bytes:
    return hashlib.sha256(json.dumps(content).encode()).digest()[:16]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step; its fields are its settings in the pipeline's file."""

    name: str = ""
    """By default what it does."""
    input: tuple[str, ...] = ()
    """Names of earlier steps, or pools; by default the step before."""

    version: ClassVar[int] = 1
    """Of what it computes; stored facts of other versions do not count."""
    expected: ClassVar[float] = 1.0
    """Fraction of samples that go on, for a plan before anything is known."""

    def facts_id(self, models: Mapping[str, str]) -> bytes:
        """Hash of everything but the sample that decides facts.

        Args:
            models: by name, everything about a model that decides its answers.
        """
        return _digest([self.facts_name, self.version])

    @property
    def facts_name(self) -> str:
        """Steps of the same name share facts."""
        return type(self).__name__

    @property
    def settings(self) -> list[str]:
        """Everything that decides its result, but for samples."""
        values = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if f.name not in ("name", "input", "budget")
        ]
        return [self.name, type(self).__name__, str(self.version), *values]

    def draw(self, item: Item) -> random.Random:
        """Random numbers that depend on step and sample only."""
        return random.Random(f"{type(self).__name__} {item.key}")

    @property
    def own(self) -> int:
        """Number of samples that it makes of nothing; such a step has no input."""
        return 0

    def blanks(self) -> Iterator[Item]:
        """What the facts of such samples are about."""
        for number in range(self.own):
            yield Item(key=f"{self.name}-{number:09d}", references=(), instruction="", target=None)

    def passing(self, incoming: float) -> float:
        """Expected number of samples that go on."""
        return incoming * self.expected

    def check(self) -> None:
        """Checks inputs outside of the pools, before anything is read.

        Raises:
            UserError: one is missing.
        """

    def measure(self, item: Item, images: Images) -> Facts:
        """Facts about a sample, found in a process of their own.

        Raises:
            BrokenSampleError: the sample cannot be used.
        """
        return {}

    def decide(self, item: Item, facts: Mapping[str, Any]) -> Outcome:
        """What becomes of a sample."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SelectStep(Step):
    """A step that decides about a sample by comparing it with others."""

    def select(self, rows: Rows) -> Iterator[tuple[Item, Outcome]]:
        """What becomes of every sample, in order."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ModelStep(Step):
    """A step that asks models."""

    budget: Budget = field(default_factory=Budget)
    """What it may spend in a run; samples beyond it are left for the next."""

    models: ClassVar[tuple[str, ...]] = ()
    """Fields that name models."""

    def facts_id(self, models: Mapping[str, str]) -> bytes:
        """See `Step.facts_id`; facts of other settings cost nothing where the answers are stored."""
        return _digest([self.settings[1:], [models[getattr(self, name)] for name in self.models]])

    async def ask(self, item: Item, models: Mapping[str, Model]) -> Facts:
        """Facts about a sample.

        Args:
            item: the sample.
            models: by name.

        Raises:
            NoAnswerError, BudgetError: a question got no answer.
            BrokenSampleError: the sample cannot be used.
        """
        raise NotImplementedError

    def calls(self) -> list[Calls]:
        """Questions about a sample."""
        raise NotImplementedError
