"""What a benchmark is: a reader of its layout, its questions, formulas and reference rows.

Each benchmark is a package that holds an instance named `BENCHMARK` of a subclass of `Benchmark`, a folder `prompts/`
and optionally `published.yaml`; those in `scone_pl.evaluation.benchmarks` are found by name, others by the name of
their module. Everything else (asking, storing, averaging, intervals, tables, plots, report) uses only this interface.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from scone_pl.errors import UserError
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.scores import Row
from scone_pl.files import read_bytes
from scone_pl.vlm.parsing import Score
from scone_pl.vlm.ratings import NamedScores

Record = Mapping[str, Any]
"""A judged item, see `records.py`."""


@dataclass(frozen=True)
class Question:
    """One question about a generated image."""

    kind: str
    """Short name, such as PF."""
    template: str
    """Name of its prompt. Where it has `{{reference_images}}` and `{{generated_image}}`, the images stand there;
    without them, they follow the text."""
    fields: Mapping[str, str]
    """Values of the prompt's other placeholders."""
    read: Callable[[str | None], Any]
    """Parser of an answer: `Score`, `NamedScores` or int; if it raises `UnusableAnswerError`, the question is asked
    again."""
    references: tuple[int, ...] | None = None
    """Indices of the references that are shown; None = all."""
    names: tuple[str, ...] = ()
    """Keys of the record that the answer fills; empty = `kind`."""
    candidate: tuple[int, int] | None = None
    """Indices (reference, candidate) of a question about the presence of one subject."""
    optional: bool = False
    """Whether a record is complete without it."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the request that differ from the judge's."""


@dataclass(frozen=True)
class Aggregate:
    """A row below the tasks: the mean of every column over some of them; none if one of them has no records."""

    name: str
    """Of its columns: `NAME.COLUMN`."""
    title: str
    tasks: tuple[str, ...]
    weighting: Literal["tasks", "items"] = "tasks"
    """tasks: the mean of the tasks' means. items: the mean over the items of all of them."""


class Benchmark(ABC):
    """One benchmark. Constants describe its table; methods read its data, ask and score."""

    name: ClassVar[str]
    title: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    """In the order of the table."""
    heads: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]]
    """The table's head: groups with the short names of their tasks, in the order of `tasks`."""
    rated: ClassVar[tuple[str, ...]]
    """Numbers that the judge gives, as keys of a record; the reason is under `NAME_reason`."""
    rating_range: ClassVar[tuple[float, float]] = (0.0, 10.0)
    score_range: ClassVar[tuple[float, float]] = (0.0, 10.0)
    """Of the columns of the table, for plots."""
    average_columns: ClassVar[tuple[str, ...]]
    """All columns of the table of tasks, in order."""
    aggregates: ClassVar[tuple[Aggregate, ...]]
    derived: ClassVar[Mapping[str, Callable[[Mapping[str, Any]], Any]]] = {}
    """Further numbers from the flat row of aggregates, such as `overall`; works on floats and arrays."""
    note: ClassVar[str] = ""
    """A sentence below the main table."""
    headline: ClassVar[Mapping[str, str]]
    """Flat column -> title of the few numbers that sum up the benchmark: head of the report, bars."""
    varying: ClassVar[Mapping[str, str]] = {}
    """The same for the plot over groups; empty = `headline`."""
    radar: ClassVar[tuple[tuple[str, str], ...]]
    """(column, title) of each radar plot over the tasks that have the column."""
    radar_methods: ClassVar[tuple[str, ...]] = ()
    """Published rows in the radar plots."""
    sorted_by: ClassVar[tuple[str, ...]]
    """Columns by which items can be sorted in the report."""
    judge: ClassVar[Mapping[str, Any]] = {"model": "gpt-4.1", "parameters": {"max_tokens": 1400}}
    """Settings of the published judge: defaults of `JudgeOptions`."""
    preparation: ClassVar[Literal["jpeg", "file"]] = "jpeg"
    """How the judge gets images: references resized and all as JPEG, or the files as they are."""
    published_items: ClassVar[Mapping[str, tuple[tuple[str, ...], int]]] = {}
    """Name of a group of tasks -> its tasks, and how many items the paper counts in them; empty = not known."""
    english_view: ClassVar[bool] = False
    """Whether tables also hold the items with `instruction_language` en alone."""

    @property
    def folder(self) -> Path:
        """The benchmark's package."""
        return Path(inspect.getfile(type(self))).parent

    @property
    def short_names(self) -> dict[str, str]:
        """Task -> its name in the table's head, such as `Distinction / Cross`."""
        names = [f"{group} / {short}" for group, shorts in self.heads for short in shorts]
        return dict(zip(self.tasks, names, strict=True))

    @property
    def main_columns(self) -> tuple[str, ...]:
        """Columns of the main table if there is no published one: each task's last column and `headline`."""
        tasks = (f"{task}.{self.columns(task)[-1]}" for task in self.tasks)
        return tuple(dict.fromkeys((*tasks, *self.headline)))

    def columns(self, task: str) -> tuple[str, ...]:
        """Names of the scores of a task; the first exists for every complete item."""
        return self.average_columns

    def check_tasks(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """`tasks` in the table's order.

        Raises:
            UserError: one of them is no task of this benchmark.
        """
        if unrecognised := [task for task in tasks if task not in self.tasks]:
            raise UserError(f"{self.name} has no task {unrecognised[0]!r}; its tasks: {', '.join(self.tasks)}")
        return tuple(task for task in self.tasks if task in tasks)

    def data_file(self, data: str | Path) -> Path:
        """What `--data` names: a folder, or a file in it that the reader starts from.

        Raises:
            UserError: it does not exist.
        """
        path = Path(data)
        if not path.is_dir():
            raise UserError(f"--data {data}: no such folder; give the folder of {self.title} in its published layout")
        return path

    def digest(self, data: str | Path) -> str:
        """Short hash of what the items say (not of their images), for results that are stored.

        Raises:
            UserError: see `data_file` and `read`.
        """
        file = self.data_file(data)
        if file.is_file():
            return hashlib.sha256(read_bytes(file)).hexdigest()[:16]
        items = [
            {**vars(item), "images": [os.path.relpath(image, file) for image in item.images]}
            for item in self.read(data)
        ]
        return hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()[:16]

    @abstractmethod
    def read(self, data: str | Path) -> list[Item]:
        """Reads and checks all items, in order.

        Raises:
            UserError: names the file and what to correct.
        """

    def inventory(self, data: str | Path, items: Sequence[Item]) -> list[str]:
        """What the data hold, beside what the paper counts: lines for the terminal.

        Args:
            data: as for `read`.
            items: all of them.
        """
        by_task, by_references = Counter(i.task_type for i in items), Counter(len(i.images) for i in items)
        counted = [
            f"{name} {sum(by_task[task] for task in tasks)} of {number}"
            for name, (tasks, number) in self.published_items.items()
        ]
        total = sum(number for _, number in self.published_items.values())
        beside = f" (the paper counts {total}: {', '.join(counted)})" if counted else ""
        numbers = ", ".join(f"{count} with {number}" for number, count in sorted(by_references.items()))
        images = sum(number * count for number, count in by_references.items())
        return [
            f"data: {len(items)} items of {len(by_task)} tasks{beside}",
            f"data: {images} references; items: {numbers}",
        ]

    def check_judge(self, config: JudgeConfig) -> None:
        """Refuses settings that have no effect on this benchmark.

        Raises:
            UserError: names the setting.
        """
        if config.scene_pf:
            raise UserError(f"--judge.scene_pf is a question of OmniContext; {self.name} has no such tasks")

    @abstractmethod
    def questions(self, item: Item, config: JudgeConfig) -> list[Question]:
        """All questions about the image of an item, in order."""

    def record(self, item: Item, answers: Sequence[tuple[Question, Any]]) -> dict[str, Any]:
        """What the answers say, as fields of a record.

        Args:
            item: the item.
            answers: each question with the parsed answer, None if there is none; empty if nothing could be asked.
        """
        fields: dict[str, Any] = dict.fromkeys(self.rated)
        for question, value in answers:
            names = question.names or (question.kind,)
            if isinstance(value, NamedScores):
                fields |= {name: value.values[name] for name in names}
            else:
                fields |= dict.fromkeys(names, value.value if isinstance(value, Score) else value)
            fields[f"{question.kind}_reason"] = getattr(value, "reason", None)
        return fields

    def check_record(self, record: Record, where: str) -> None:
        """Checks the fields of `record`.

        Raises:
            UserError: starts with `where`.
        """
        low, high = self.rating_range
        for name in self.rated:
            check_rating(record, name, where, low, high)

    def is_complete(self, record: Record) -> bool:
        """Whether a record has everything that scoring needs; others count in no column of their group."""
        return all(record.get(name) is not None for name in self.rated)

    @abstractmethod
    def item_scores(self, record: Record) -> Row:
        """All columns of one complete record."""

    def binary(self, record: Record) -> list[int]:
        """Yes/no answers of a complete record, in a fixed order; for their agreement over scorings."""
        return []

    def faults(self, record: Record) -> Mapping[str, bool] | None:
        """Errors by name of a complete record, such as redundancy; None if its task has no such answers."""
        return None

    def failures(self, record: Record) -> Mapping[str, bool] | None:
        """Like `faults`, with the patterns that several answers together tell, such as a swap (see `failures.py`)."""
        return self.faults(record)

    def missed(self, record: Record) -> list[str]:
        """Yes/no points of a complete record that were answered with no, in words, for the report."""
        return []

    def extra_tables(self, records: Sequence[Record]) -> list[tuple[str, list[list[str]]]]:
        """Further tables: title, and rows of cells below a header."""
        return []


def check_rating(record: Record, name: str, where: str, low: float = 0, high: float = 10) -> None:
    """Checks one number of a record, which may be missing.

    Raises:
        UserError: it is no number in the range.
    """
    value = record.get(name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and low <= value <= high):
        raise UserError(f"{where}: `{name}` must be a number of {low:g} to {high:g}, or null, not {value!r}")
