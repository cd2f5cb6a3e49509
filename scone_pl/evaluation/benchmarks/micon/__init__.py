"""MICON-Bench (arXiv 2602.19497): 0/1 checkpoints by an open judge; facts in docs/open_benchmarks.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Aggregate, Benchmark, Question
from scone_pl.evaluation.benchmarks.micon.checkpoints import (
    CHECKPOINTS,
    DIMENSIONS,
    TASK_NOTES,
    TASKS,
    Checkpoint,
    dimension_score,
)
from scone_pl.evaluation.benchmarks.micon.reader import STORY, MiconItem, read_cases
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.scores import Row
from scone_pl.vlm.parsing import parse_score
from scone_pl.vlm.ratings import parse_checks

CHECKS = "checks"
"""Key of a record: checkpoint -> 0 or 1."""


class Micon(Benchmark):
    """All checkpoints of an image in one question; for stories a second one."""

    name: ClassVar[str] = "micon"
    title: ClassVar[str] = "MICON-Bench"
    tasks: ClassVar[tuple[str, ...]] = TASKS
    heads: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = (
        ("Task", ("Object", "Spatial", "Attribute", "Component", "FG/BG", "Story")),
    )
    rated: ClassVar[tuple[str, ...]] = ("STORY",)
    score_range: ClassVar[tuple[float, float]] = (0.0, 100.0)
    average_columns: ClassVar[tuple[str, ...]] = (*DIMENSIONS, "Score")
    aggregates: ClassVar[tuple[Aggregate, ...]] = (Aggregate("average", "Average over cases", TASKS, "items"),)
    note: ClassVar[str] = "Scores in percent; the average is over cases."
    headline: ClassVar[Mapping[str, str]] = {
        **{f"{task}.Score": short for task, short in zip(TASKS, heads[0][1], strict=True)},
        "average.Score": "Average",
    }
    varying: ClassVar[Mapping[str, str]] = {"average.Score": "Average"}
    radar: ClassVar[tuple[tuple[str, str], ...]] = (("Score", "score"),)
    radar_methods: ClassVar[tuple[str, ...]] = ("UNO", "OmniGen2", "BAGEL", "BAGEL + DAR")
    sorted_by: ClassVar[tuple[str, ...]] = ("Score",)
    judge: ClassVar[Mapping[str, Any]] = {
        "model": "Qwen/Qwen3-VL-32B-Instruct",
        "parameters": {"temperature": 0.1, "max_tokens": 800},
    }
    published_items: ClassVar[Mapping[str, tuple[tuple[str, ...], int]]] = {
        task.replace("_", " "): ((task,), number)
        for task, number in zip(TASKS, (200, 200, 100, 240, 200, 103), strict=True)
    }
    preparation: ClassVar[Literal["jpeg", "file"]] = "file"

    def columns(self, task: str) -> tuple[str, ...]:
        """The task's dimensions, then the score."""
        return (*CHECKPOINTS[task], "Score")

    def read(self, data: str | Path) -> list[Item]:
        """See `read_cases`."""
        return list(read_cases(self.data_file(data)))

    def inventory(self, data: str | Path, items: Sequence[Item]) -> list[str]:
        """Also the names of the references, and whether hard constraints and hard checkpoints are equally many."""
        cases = [item for item in items if isinstance(item, MiconItem)]
        names = Counter(name for case in cases for name in case.names)
        hard = {task: sum(bool(check.hard) for check in checkpoints_of(task).values()) for task in TASKS}
        other = sum(len(case.constraints) != hard[case.task_type] for case in cases)
        listed = ", ".join(f"{name!r:.40} {count}" for name, count in sorted(names.items()))
        return [
            *super().inventory(data, items),
            f"data: names of references: {listed}; {other} cases have more or fewer hard constraints than their "
            "task has hard checkpoints",
        ]

    def questions(self, item: Item, config: JudgeConfig) -> list[Question]:
        """The checkpoints; for a story also how well the image continues it."""
        if not isinstance(item, MiconItem):
            raise TypeError("an item of MICON-Bench")
        order = ", ".join(f"reference {name} (picture {i})" for i, name in enumerate(item.names, 1))
        checks = checkpoints_of(item.task_type)
        fields = {
            "task": item.task_type.replace("_", " "),
            "references": order,
            "instruction": item.instruction,
            "goal": item.goal,
            "constraints": "\n".join(f"H{i}: {text}" for i, text in enumerate(item.constraints, 1)) or "none",
            "note": TASK_NOTES[item.task_type],
            "checkpoints": "\n".join(
                f"- {name}{f' (hard, {check.hard})' if check.hard else ''}: {check.text}"
                for name, check in checks.items()
            ),
            "skeleton": "{"
            + '"checkpoint_results": {'
            + ", ".join(f'"{name}": {{"pass": 0 or 1}}' for name in checks)
            + '}, "rationale_short": "<one or two short sentences>"}',
        }
        read = partial(parse_checks, names=tuple(checks))
        questions = [Question("CHECKS", "micon_checks", fields, read, names=(CHECKS,))]
        if item.task_type == STORY:
            story = {
                "references": order,
                "background": item.background,
                "positives": _listed(item.positives),
                "negatives": _listed(item.negatives),
            }
            questions.append(Question("STORY", "micon_story", story, parse_score))
        return questions

    def record(self, item: Item, answers: Sequence[tuple[Question, Any]]) -> dict[str, Any]:
        """`checks`, and for stories `STORY`."""
        fields: dict[str, Any] = {CHECKS: None, **({"STORY": None} if item.task_type == STORY else {})}
        for question, value in answers:
            if question.kind == "CHECKS":
                fields[CHECKS] = None if value is None else dict(value.values)
            else:
                fields["STORY"] = None if value is None else value.value
            fields[f"{question.kind}_reason"] = None if value is None else value.reason
        return fields

    def check_record(self, record: Mapping[str, Any], where: str) -> None:
        """The checkpoints of the task, all of them, each 0 or 1."""
        super().check_record(record, where)
        checks, names = record.get(CHECKS), checkpoints_of(record["task_type"])
        if checks is None:
            return
        if not isinstance(checks, dict) or checks.keys() != names.keys():
            raise UserError(f"{where}: `{CHECKS}` must hold {', '.join(names)}")
        if any(type(value) is not int or value not in (0, 1) for value in checks.values()):
            raise UserError(f"{where}: `{CHECKS}` must hold 0 and 1 only")

    def is_complete(self, record: Mapping[str, Any]) -> bool:
        """All checkpoints, and for stories the second answer."""
        return record.get(CHECKS) is not None and (record["task_type"] != STORY or record.get("STORY") is not None)

    def item_scores(self, record: Mapping[str, Any]) -> Row:
        """Dimensions and score, in percent."""
        dimensions = {
            dimension: dimension_score(
                [record[CHECKS][check_name(dimension, i)] for i in range(len(checks))],
                [check.hard is not None for check in checks],
            )
            for dimension, checks in CHECKPOINTS[record["task_type"]].items()
        }
        mean = sum(dimensions.values()) / len(dimensions)
        score = 40 * mean + 6 * record["STORY"] if record["task_type"] == STORY else 100 * mean
        return {**{name: 100 * value for name, value in dimensions.items()}, "Score": round(score, 2)}

    def binary(self, record: Mapping[str, Any]) -> list[int]:
        """The checkpoints in order."""
        return [record[CHECKS][name] for name in checkpoints_of(record["task_type"])]

    def faults(self, record: Mapping[str, Any]) -> Mapping[str, bool] | None:
        """Errors by name, of the checkpoints that tell them."""
        if record.get(CHECKS) is None:
            return None
        found: dict[str, bool] = {}
        for name, check in checkpoints_of(record["task_type"]).items():
            if check.fault:
                found[check.fault] = found.get(check.fault, False) or not record[CHECKS][name]
        return found

    def missed(self, record: Mapping[str, Any]) -> list[str]:
        """The checkpoints that were answered with 0."""
        return [
            f"{name[0]}{name[-1]}{' (hard)' if check.hard else ''}: {check.text}"
            for name, check in checkpoints_of(record["task_type"]).items()
            if not record[CHECKS][name]
        ]


def check_name(dimension: str, index: int) -> str:
    """Name of a checkpoint, as in the published answers."""
    return f"{dimension}_check_{index + 1}"


def checkpoints_of(task: str) -> dict[str, Checkpoint]:
    """Name -> checkpoint, in order."""
    return {
        check_name(dimension, i): check
        for dimension, checks in CHECKPOINTS[task].items()
        for i, check in enumerate(checks)
    }


def _listed(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text}" for text in texts) or "- none"


BENCHMARK = Micon()
