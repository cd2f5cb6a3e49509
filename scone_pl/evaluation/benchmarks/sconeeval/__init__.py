"""SconeEval (docs/benchmarks.md): composition, and distinction among several candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Aggregate, Question
from scone_pl.evaluation.composition import CompositionBenchmark
from scone_pl.evaluation.failures import by_reference, failures_of
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.jsonl_items import read_jsonl
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.scores import (
    COMPOSITION_COLUMNS,
    DISTINCTION_COLUMNS,
    SCONEEVAL_TASKS,
    is_complete,
    is_distinction,
    overall_score,
)
from scone_pl.vlm.parsing import parse_presence

PRESENCE = "sconeeval_dis"


def _overall(row: Mapping[str, Any]) -> Any:
    return overall_score({"COM": row["average.COM"], "DIS": row["average.DIS"]})


class SconeEval(CompositionBenchmark):
    """PF and SC, and for distinction tasks the presence of every candidate."""

    name: ClassVar[str] = "sconeeval"
    title: ClassVar[str] = "SconeEval"
    tasks: ClassVar[tuple[str, ...]] = SCONEEVAL_TASKS
    heads: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = (
        ("Composition", ("Single", "Multi")),
        ("Distinction", ("Cross", "Intra")),
        ("Distinction & Composition", ("Cross", "Intra")),
    )
    average_columns: ClassVar[tuple[str, ...]] = (*COMPOSITION_COLUMNS, *DISTINCTION_COLUMNS)
    published_items: ClassVar[Mapping[str, tuple[tuple[str, ...], int]]] = {
        task: ((task,), number) for task, number in zip(SCONEEVAL_TASKS, (50, 95, 60, 60, 72, 72), strict=True)
    }
    aggregates: ClassVar[tuple[Aggregate, ...]] = (Aggregate("average", "Average over tasks", SCONEEVAL_TASKS),)
    derived: ClassVar[Mapping[str, Any]] = {"overall": _overall}
    headline: ClassVar[Mapping[str, str]] = {"average.COM": "COM", "average.DIS": "DIS", "overall": "Overall"}
    radar: ClassVar[tuple[tuple[str, str], ...]] = (("COM", "composition (COM)"), ("DIS", "distinction (DIS)"))
    sorted_by: ClassVar[tuple[str, ...]] = ("COM", "DIS")

    def columns(self, task: str) -> tuple[str, ...]:
        """DIS only where candidates are judged."""
        return self.average_columns if is_distinction(task) else COMPOSITION_COLUMNS

    def read(self, data: str | Path) -> list[Item]:
        """See `read_jsonl`."""
        return read_jsonl(self, data, is_distinction)

    def questions(self, item: Item, config: JudgeConfig) -> list[Question]:
        """PF, SC, then one question for each candidate (docs/benchmarks.md 3.4)."""
        presence = [
            Question("DIS", PRESENCE, {"subject": subject}, parse_presence, references=(i,), candidate=(i, j))
            for i, group in enumerate(item.subjects)
            for j, subject in enumerate(group)
        ]
        return [*super().questions(item, config), *presence]

    def record(self, item: Item, answers: Sequence[tuple[Question, Any]]) -> dict[str, Any]:
        """PF, SC; `label` and `pred` where candidates are judged."""
        fields = super().record(item, [(question, value) for question, value in answers if not question.candidate])
        if item.subjects:
            presence = {question.candidate: value for question, value in answers if question.candidate}
            fields["label"] = [list(group) for group in item.labels]
            pred = [[presence.get((i, j)) for j in range(len(group))] for i, group in enumerate(item.labels)]
            fields["pred"] = None if any(value is None for group in pred for value in group) else pred
        return fields

    def check_record(self, record: Mapping[str, Any], where: str) -> None:
        """Also checks labels and predictions against each other."""
        super().check_record(record, where)
        if is_distinction(record["task_type"]) and is_complete(record):
            flattened = {name: _flattened(record[name], f"{where}: `{name}`") for name in ("label", "pred")}
            if len(flattened["label"]) != len(flattened["pred"]) or not flattened["label"]:
                raise UserError(f"{where}: {len(flattened['label'])} labels and {len(flattened['pred'])} predictions")

    def is_complete(self, record: Mapping[str, Any]) -> bool:
        """PF, SC, and for distinction tasks `label` and `pred`."""
        return is_complete(record)

    def binary(self, record: Mapping[str, Any]) -> list[int]:
        """The predictions."""
        return [value for group in record.get("pred") or [] for value in group]

    def faults(self, record: Mapping[str, Any]) -> Mapping[str, bool] | None:
        """redundancy: a distractor is present (low precision); omission: a target is missing (low recall)."""
        if not is_distinction(record["task_type"]) or not record.get("pred"):
            return None
        label = [value for group in record.get("label") or [] for value in group]
        pairs = list(zip(label, self.binary(record), strict=True))
        return {"redundancy": (0, 1) in pairs, "omission": (1, 0) in pairs}

    def failures(self, record: Mapping[str, Any]) -> Mapping[str, bool] | None:
        """See `failures_of`; only the two of `faults` if label and prediction differ in shape."""
        faults = self.faults(record)
        return failures_of(record["label"], record["pred"]) if faults and _same_shape(record) else faults

    def extra_tables(self, records: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[list[str]]]]:
        """By task and position of the reference: which of its subjects are in the images, and what went wrong."""
        patterns = ("swap", "dominance", "drift")
        rows = [["Task", "reference", "targets present", "distractors present", *patterns, "images"]]
        for task in self.tasks:
            members = [record for record in records if record["task_type"] == task and self.is_complete(record)]
            for number, found in by_reference([record for record in members if _same_shape(record)]).items():
                cells = [
                    _percent(found.targets_present, found.targets),
                    _percent(found.distractors_present, found.distractors),
                    *(_percent(found.failed[name], found.images) for name in patterns),
                ]
                rows.append([self.short_names[task], str(number), *cells, str(found.images)])
        return [("References and generated subjects", rows)] if len(rows) > 1 else []


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _same_shape(record: Mapping[str, Any]) -> bool:
    label, pred = record.get("label"), record.get("pred")
    return bool(pred) and [len(group) for group in label or []] == [len(group) for group in pred or []]


def _flattened(value: Any, where: str) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(group, list) for group in value):
        raise UserError(f"{where} must be a list (one entry per reference) of lists")
    flattened = [value for group in value for value in group]
    if any(type(value) is not int or value not in (0, 1) for value in flattened):
        raise UserError(f"{where} must hold 0 and 1 only")
    return flattened


BENCHMARK = SconeEval()
SCONEEVAL = BENCHMARK
