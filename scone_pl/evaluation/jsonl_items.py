"""Reader of items in a `data.jsonl`, the published form of SconeEval and OmniContext (docs/benchmarks.md 1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from scone_pl.data.prompts import requests_and_records
from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.case_types import CaseType
from scone_pl.evaluation.items import Item
from scone_pl.messages import warn

FILE = "data.jsonl"
T = TypeVar("T")


def jsonl_file(data: str | Path) -> Path:
    """The JSONL of a benchmark folder (or the file itself).

    Raises:
        UserError: there is none.
    """
    path = Path(data)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"--data {data}: no {FILE} there; give the folder of the published JSONL format")
    return file


def read_jsonl(
    benchmark: Benchmark, data: str | Path, has_candidates: Callable[[str], bool] = lambda task: False
) -> list[Item]:
    """Reads and checks all items of a `data.jsonl`.

    Args:
        benchmark: the benchmark of the data.
        data: folder with `data.jsonl` and the images, or the file.
        has_candidates: whether items of a task list candidates whose presence is judged.

    Raises:
        UserError: names file and line: see `requests_and_records`; an unknown task; labels that do not match the
            candidates; more lists of candidates than references. Items without a target and unrecognised case types
            are reported as warnings.
    """
    file = jsonl_file(data)
    items = []
    unrecognised: Counter[str] = Counter()
    without_target: list[str] = []
    for request, record in requests_and_records([file]):
        if request.task_type not in benchmark.tasks:
            raise UserError(
                f"{request.where}: {request.task_type!r} is no task of {benchmark.name}; its tasks: "
                f"{', '.join(benchmark.tasks)}"
            )
        case_type = _optional_string(record, "case_type", request.where)
        parsed = CaseType.parse(case_type)
        if parsed.unrecognised:
            unrecognised[str(case_type)] += 1
        subjects: tuple[tuple[str, ...], ...] = ()
        labels: tuple[tuple[int, ...], ...] = ()
        if has_candidates(request.task_type):
            subjects, labels = _candidates(record, len(request.images), request.where)
            without_target += [] if any(map(any, labels)) else [request.where]
        items.append(
            Item(
                key=request.key,
                task_type=request.task_type,
                instruction=request.instruction,
                images=request.images,
                scene=shows_scene(request.task_type, case_type),
                case_type=case_type,
                language=_optional_string(record, "instruction_language", request.where),
                subjects=subjects,
                labels=labels,
            )
        )
    if without_target:  # kept: the published numbers have them too (docs/benchmarks.md 5)
        warn(
            f"{without_target[0]}: no candidate is labelled 1, so the item's DIS is at most 5 "
            f"({len(without_target)} such items)"
        )
    if unrecognised:
        names = ", ".join(f"{name!r} ({count})" for name, count in unrecognised.most_common(5))
        warn(f"{file}: case_type {names} partly unrecognised; only its known parts count (C, O, S, char, obj, scene)")
    return items


def shows_scene(task: str, case_type: str | None) -> bool:
    """Whether subject consistency includes the scene (docs/benchmarks.md 3.3)."""
    return "scene" in task or "scene" in CaseType.parse(case_type).contents


def _optional_string(record: dict[str, Any], field: str, where: str) -> str | None:
    value = record.get(field)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: `{field}` must be a string, not {value!r}")
    return value


def _candidates(
    record: dict[str, Any], references: int, where: str
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[int, ...], ...]]:
    """`subject_list` and `subject_label`, checked against each other."""
    subjects = _nested(record.get("subject_list"), str)
    labels = _nested(record.get("subject_label"), int)
    if subjects is None or labels is None:
        raise UserError(f"{where}: `subject_list` and `subject_label` must be lists (one per reference) of lists")
    if [len(group) for group in subjects] != [len(group) for group in labels]:
        raise UserError(f"{where}: `subject_label` must have the shape of `subject_list`, a 0 or 1 per candidate")
    if len(subjects) > references:
        raise UserError(f"{where}: {len(subjects)} lists in `subject_list` for {references} reference images")
    flat = [label for group in labels for label in group]
    if set(flat) - {0, 1}:
        raise UserError(f"{where}: `subject_label` must hold 0 and 1 only")
    if not flat:
        raise UserError(f"{where}: `subject_list` names no candidate, so DIS cannot be scored")
    if any(not name.strip() for group in subjects for name in group):
        raise UserError(f"{where}: a candidate in `subject_list` has no description")
    return tuple(map(tuple, subjects)), tuple(map(tuple, labels))


def _nested(value: Any, kind: type[T]) -> list[list[T]] | None:
    """`value` if it is a list of lists of `kind`."""
    valid = isinstance(value, list) and all(
        isinstance(group, list) and all(isinstance(one, kind) and not isinstance(one, bool) for one in group)
        for group in value
    )
    return value if valid else None
