"""Records of judged items, one per (sampling, scoring, item): the input of statistics, tables and reports.

A record has `sampling`, `scoring`, `key`, `task_type`, `PF`, `SC`, and for distinction items `label` and `pred`;
optionally `case_type`, `instruction_language`, `PHY`, and informational fields. It is incomplete if PF, SC or `pred` is
null or missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scone_pl.data.json_rows import JsonRows
from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.calls import Judgement
from scone_pl.evaluation.judge import Verdict, verdict_on
from scone_pl.evaluation.scores import is_complete
from scone_pl.files import write_text
from scone_pl.vlm.parsing import Score
from scone_pl.vlm.store import AnswerStore

Record = dict[str, Any]


def record_of(judgement: Judgement, store: AnswerStore, generation: Mapping[str, Any]) -> Record:
    """The record of one image in one scoring.

    Args:
        judgement: the questions.
        store: the answers.
        generation: settings of the image (weights, seed, round, sampler), stored with the scores.
    """
    item = judgement.item
    verdicts = [(call, verdict_on(call, store)) for call in judgement.calls]
    record: Record = {
        "sampling": judgement.sampling,
        "scoring": judgement.scoring,
        "key": item.key,
        "task_type": item.task_type,
        "case_type": item.case_type,
        "instruction_language": item.language,
    }
    for call, verdict in verdicts:
        if call.kind != "DIS":
            score = verdict.value
            record[call.kind] = score.value if isinstance(score, Score) else None
            record[f"{call.kind}_reason"] = score.reason if isinstance(score, Score) else None
    if not verdicts:
        record |= {"PF": None, "SC": None}
    if item.subjects:
        presence = {call.candidate: verdict.value for call, verdict in verdicts if call.kind == "DIS"}
        record["label"] = [list(group) for group in item.labels]
        pred = [[presence.get((i, j)) for j in range(len(group))] for i, group in enumerate(item.labels)]
        record["pred"] = None if any(value is None for group in pred for value in group) else pred
    # PHY is optional: the benchmark's own scores are complete without it.
    failed = [f"{call.kind}: {v.failure}" for call, v in verdicts if v.value is None and call.kind != "PHY"]
    record["failure"] = judgement.failure or ("; ".join(dict.fromkeys(failed)) or None)
    record["judge"] = _provenance(verdicts)
    record["generation"] = dict(generation)
    return record


def _provenance(verdicts: Sequence[tuple[Any, Verdict]]) -> dict[str, Any]:
    """Judge, date and prompts."""
    answers = [verdict.answer for _, verdict in verdicts if verdict.answer]
    return {
        "model": answers[0].model if answers else None,
        "answered_by": sorted({answer.answered_by for answer in answers}),
        "prompts": {call.kind: call.template for call, _ in verdicts},
        "date": max((answer.date for answer in answers), default=None),
    }


def write_records(records: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Writes records as JSON lines."""
    write_text("".join(json.dumps(record) + "\n" for record in records), file)


def read_records(file: str | Path, benchmark: Benchmark, language: str | None = None) -> list[Record]:
    """Reads and checks records.

    Args:
        file: an object a line, or one list of objects.
        benchmark: their benchmark.
        language: keep only records of this `instruction_language`.

    Raises:
        UserError: names file and line: invalid JSON, a missing or invalid field, an unknown task, a duplicate item in a
            group. Also if no record remains.
    """
    path = Path(file)
    rows = JsonRows.open(path)
    records: list[Record] = []
    seen: dict[tuple[Any, ...], str] = {}
    for number, record in rows.read():
        if isinstance(record, UserError):
            raise record
        where = rows.where(number)
        check_record(record, benchmark, where)
        identity = (record["sampling"], record["scoring"], record["task_type"], str(record["key"]))
        if identity in seen:
            raise UserError(f"{where}: the same sampling, scoring, task and key as {seen[identity]}")
        seen[identity] = where
        if language in (None, record.get("instruction_language")):
            records.append(record)
    if not records:
        raise UserError(f"{path}: no record" + (f" with instruction_language {language}" if language else ""))
    return records


def check_record(record: Record, benchmark: Benchmark, where: str) -> None:
    """Raises `UserError` if a record is invalid."""
    for name in ("sampling", "scoring"):
        if type(record.get(name)) is not int or record[name] < 1:
            raise UserError(f"{where}: `{name}` must be a whole number from 1, not {record.get(name)!r}")
    if not isinstance(record.get("key"), str | int):
        raise UserError(f"{where}: `key` must name the item")
    task = record.get("task_type")
    if task not in benchmark.tasks:
        raise UserError(f"{where}: {task!r} is no task of {benchmark.name}; its tasks: {', '.join(benchmark.tasks)}")
    judge = record.get("judge") or {}
    if not isinstance(judge, dict) or not isinstance(judge.get("prompts") or {}, dict):
        raise UserError(f"{where}: `judge` and `judge.prompts` must be objects, as the verb `judge` writes them")
    for name in ("PF", "SC", "PHY"):
        value = record.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value <= 10):
            raise UserError(f"{where}: `{name}` must be a number of 0 to 10, or null, not {value!r}")
    if benchmark.has_distinction(task) and is_complete(record):
        flattened = {name: _flattened(record[name], f"{where}: `{name}`") for name in ("label", "pred")}
        if len(flattened["label"]) != len(flattened["pred"]) or not flattened["label"]:
            raise UserError(f"{where}: {len(flattened['label'])} labels and {len(flattened['pred'])} predictions")


def _flattened(value: Any, where: str) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(group, list) for group in value):
        raise UserError(f"{where} must be a list (one entry per reference) of lists")
    flattened = [value for group in value for value in group]
    if any(type(value) is not int or value not in (0, 1) for value in flattened):
        raise UserError(f"{where} must hold 0 and 1 only")
    return flattened
