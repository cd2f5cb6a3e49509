"""Records of judged items, one per (sampling, scoring, item): the input of statistics, tables and reports.

A record has `sampling`, `scoring`, `key`, `task_type`, and the benchmark's answers: `PF` and `SC`, for distinction
items `label` and `pred`, ...; optionally `case_type`, `instruction_language`, `picture` (SHA-256 of the image file),
`PHY`, and informational fields. It is incomplete if an answer is null or missing, see `Benchmark.is_complete`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scone_pl.data.json_rows import JsonRows
from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark, check_rating
from scone_pl.evaluation.calls import Call, Judgement
from scone_pl.evaluation.judge import Verdict, verdict_on
from scone_pl.files import write_text
from scone_pl.vlm.store import AnswerStore

Record = dict[str, Any]
PHY = "PHY"
"""Physical plausibility, an additional question of any benchmark."""


def record_of(benchmark: Benchmark, judgement: Judgement, store: AnswerStore, generation: Mapping[str, Any]) -> Record:
    """The record of one image in one scoring.

    Args:
        benchmark: says what the answers mean.
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
    record |= {"picture": judgement.image} if judgement.image else {}
    asked = [(call.question, verdict.value) for call, verdict in verdicts]
    record |= benchmark.record(item, [(question, value) for question, value in asked if question.kind != PHY])
    for question, value in asked:
        if question.kind == PHY:
            record |= {PHY: value.value if value else None, f"{PHY}_reason": value.reason if value else None}
    failed = [
        f"{call.question.kind}: {v.failure}" for call, v in verdicts if v.value is None and not call.question.optional
    ]
    record["failure"] = judgement.failure or ("; ".join(dict.fromkeys(failed)) or None)
    record["judge"] = _provenance(verdicts)
    record["generation"] = dict(generation)
    return record


def _provenance(verdicts: Sequence[tuple[Call, Verdict]]) -> dict[str, Any]:
    """Judge, date and prompts."""
    answers = [verdict.answer for _, verdict in verdicts if verdict.answer]
    return {
        "model": answers[0].model if answers else None,
        "answered_by": sorted({answer.answered_by for answer in answers}),
        "prompts": {call.question.kind: call.template for call, _ in verdicts},
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
    check_rating(record, PHY, where)
    benchmark.check_record(record, where)
