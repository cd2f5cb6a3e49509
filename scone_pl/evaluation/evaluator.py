"""The interface of evaluators: settings of one evaluation of a checkpoint's weights, and how its report is read.

Implementations are named in `scone_pl.study.evaluators.REGISTRY`.
"""

from __future__ import annotations

import ast
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from scone_pl.errors import UserError

if TYPE_CHECKING:
    from scone_pl.analysis.drawing import MapRow

Report = Mapping[str, Any]
"""The numbers of one evaluation of one run, as stored in JSON."""
E = TypeVar("E", bound="Evaluator")


@dataclass(frozen=True)
class Column:
    """A column of a table of reports."""

    metric: str
    """Key of the evaluator's `metrics`."""
    head: str
    unit: str = ""
    interval: bool = True
    """Mean with its interval; False = the mean, rounded to a whole number."""


@dataclass(frozen=True, kw_only=True)
class Evaluator(ABC):
    """Settings of one evaluation; fields are the keys of an evaluation in a study's YAML file."""

    label: str = ""
    """For tables and plots, where a study has several evaluations."""

    name: ClassVar[str]
    """In the registry."""
    metrics: ClassVar[Mapping[str, Callable[[Report], float]]]
    """Name -> reads it off a report; nan where the report lacks it."""
    compared: ClassVar[tuple[Column, ...]]
    """Columns of tables of differences, the study's primary scores first."""
    plotted: ClassVar[tuple[str, ...]]
    """Metrics of the bar plot, 0 to 10."""

    @classmethod
    def from_mapping(cls: type[E], content: Mapping[str, Any]) -> E:
        """From YAML.

        Raises:
            UserError: unknown keys or invalid values.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [key for key in content if key not in known]:
            raise UserError(f"evaluator {cls.name} has no key {unknown[0]}; its keys are {', '.join(known)}")
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in content.items()}
        return cls(**values)

    @property
    def settings(self) -> dict[str, Any]:
        """For the result's JSON."""
        return {"evaluator": self.name, **asdict(self)}

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything besides the weights that decides the report; JSON types only."""

    @abstractmethod
    def shortened(self: E, per_task: int) -> E:
        """With at most `per_task` items of each task, for `--quick`."""

    def check(self, bridge: Mapping[str, Any] | None, source: str) -> None:  # noqa: B027 (optional)
        """Checks that the evaluation applies to weights that are sampled with `bridge` (None: no mask).

        Raises:
            UserError: it does not; the message starts with `source`.
        """

    def check_inputs(self, source: str) -> None:  # noqa: B027 (optional)
        """Checks data and services, before anything is trained.

        Raises:
            UserError: something is missing; the message starts with `source`.
        """

    @abstractmethod
    def evaluate(self, weights: Path, folder: Path) -> dict[str, Any]:
        """The report of a checkpoint folder.

        Args:
            weights: the checkpoint folder.
            folder: for intermediate files; an evaluation that was interrupted resumes from it.
        """

    @classmethod
    @abstractmethod
    def tables(cls, reports: Sequence[Report]) -> list[tuple[str, tuple[Column, ...]]]:
        """(head of the first column, the others) of each table that shows `reports`, a row each."""

    @classmethod
    def by_episode(cls, report: Report, metric: str) -> Mapping[str, Sequence[float]] | None:
        """What each episode adds to a metric, by task: the metric is the sum over tasks of the means over episodes.

        None where the report does not say.
        """
        return None

    @classmethod
    def maps(cls, settings: Mapping[str, Any], label: str, report: Report) -> list[MapRow]:
        """Similarity maps in a report, if it has any; `settings` as stored with the result."""
        return []

    @classmethod
    def summary(cls, report: Report) -> str:
        """A report in a few words, for a progress line."""
        values = {name: cls.metrics[name](report) for name in cls.plotted}
        return " ".join(f"{name} {value:.2f}" for name, value in values.items() if value == value)


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean; nan of none."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else float("nan")


def digest(content: Any) -> str:
    """Short hash of JSON types."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


@cache
def code_digest(file: Path) -> str:
    """Short hash of a module's syntax tree: comments and formatting do not count."""
    return digest(ast.dump(ast.parse(file.read_text())))


def with_at_most(evaluator: E, **limits: int) -> E:
    """`evaluator` with fields lowered to `limits`."""
    return replace(evaluator, **{name: min(limit, getattr(evaluator, name)) for name, limit in limits.items()})
