"""Reads and checks a benchmark's published `data.jsonl` (docs/benchmarks.md 1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scone_pl.data.prompts import requests_and_records
from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark, CaseType
from scone_pl.messages import warn
from scone_pl.ranges import check_whole

FILE = "data.jsonl"


@dataclass(frozen=True)
class Item:
    """One item (line) of a benchmark."""

    key: str
    """Unique within its task."""
    task_type: str
    instruction: str
    images: tuple[Path, ...]
    """Reference images, in order."""
    scene: bool
    """Whether a reference shows a scene that must be preserved."""
    case_type: str | None = None
    language: str | None = None
    """`instruction_language` of the line."""
    subjects: tuple[tuple[str, ...], ...] = ()
    """Per reference the descriptions of its candidates; empty if presence is not judged."""
    labels: tuple[tuple[int, ...], ...] = ()
    """Same shape: 1 for targets, 0 for distractors."""

    @property
    def id(self) -> tuple[str, str]:
        """(task, key), unique within the benchmark."""
        return self.task_type, self.key

    @property
    def image_name(self) -> Path:
        """Path of its generated image within a folder of images (docs/benchmarks.md 2)."""
        return Path(self.task_type) / f"{self.key}.png"


def data_file(data: str | Path) -> Path:
    """The JSONL of a benchmark folder (or the file itself)."""
    path = Path(data)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"--data {data}: no {FILE} there; give the folder of the published JSONL format")
    return file


def read_items(
    benchmark: Benchmark,
    data: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    language: str | None = None,
) -> list[Item]:
    """Reads a benchmark; the whole file is checked, whatever the selection.

    Args:
        benchmark: the benchmark of the data.
        data: folder with `data.jsonl` and the images, or the file.
        tasks: only these tasks.
        limit: only the first this many items per task.
        language: only items with this `instruction_language`.

    Raises:
        UserError: names file and line: see `requests_and_records`; an unknown task; labels that do not match the
            candidates; more lists of candidates than references. Also if the selection is empty. Items without a target
            and unrecognised case types are reported as warnings.
    """
    file = data_file(data)
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
        if CaseType.parse(case_type).unrecognised:
            unrecognised[str(case_type)] += 1
        subjects, labels = (), ()
        if benchmark.has_distinction(request.task_type):
            subjects, labels = _candidates(record, len(request.images), request.where)
            without_target += [] if any(map(any, labels)) else [request.where]
        items.append(
            Item(
                key=request.key,
                task_type=request.task_type,
                instruction=request.instruction,
                images=request.images,
                scene=benchmark.shows_scene(request.task_type, case_type),
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
    return _selected(items, file, benchmark.check_tasks(tasks) if tasks else benchmark.tasks, limit, language)


def _selected(
    items: Sequence[Item], file: Path, tasks: Sequence[str], limit: int | None, language: str | None
) -> list[Item]:
    if limit is not None:
        check_whole("--limit", limit, minimum=1)
    seen: Counter[str] = Counter()
    selected = []
    for item in items:
        if item.task_type in tasks and language in (None, item.language):
            seen[item.task_type] += 1
            if limit is None or seen[item.task_type] <= limit:
                selected.append(item)
    if not selected:
        raise UserError(f"{file}: no item of {', '.join(tasks)}" + (f" in language {language}" if language else ""))
    return selected


def _optional_string(record: dict[str, Any], field: str, where: str) -> str | None:
    value = record.get(field)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: `{field}` must be a string, not {value!r}")
    return value


def _candidates(
    record: dict[str, Any], references: int, where: str
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[int, ...], ...]]:
    """`subject_list` and `subject_label`, checked against each other."""
    subjects, labels = record.get("subject_list"), record.get("subject_label")
    if not _is_nested(subjects, str) or not _is_nested(labels, int):
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


def _is_nested(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(
        isinstance(group, list) and all(isinstance(one, kind) and not isinstance(one, bool) for one in group)
        for group in value
    )
