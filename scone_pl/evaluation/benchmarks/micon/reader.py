"""Reader of MICON-Bench's published layout: `TASK/cases/CASE_ID.yaml`, and for stories one JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scone_pl.data.prompts import plain_name
from scone_pl.errors import UserError
from scone_pl.evaluation.benchmarks.micon.checkpoints import TASKS
from scone_pl.evaluation.items import Item
from scone_pl.files import read_json, read_yaml

STORY = "story_infer"
STORY_FILE = f"{STORY}/simple_candidate_template.json"


@dataclass(frozen=True)
class MiconItem(Item):
    """One case."""

    names: tuple[str, ...] = ()
    """Names of the references: RA, RB, ..."""
    goal: str = ""
    constraints: tuple[str, ...] = ()
    background: str = ""
    """Stories: what has happened so far."""
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()


def read_cases(root: Path) -> Iterator[MiconItem]:
    """All cases below a folder, by task and file name. Tasks without a folder are left out.

    Raises:
        UserError: names the file: a missing or invalid field, a missing image, a file name that is not its `case_id`,
            a story without its candidates; or no case at all.
    """
    stories = _stories(root) if (root / STORY / "cases").is_dir() else {}
    found = False
    for task in TASKS:
        for file in sorted((root / task / "cases").glob("*.y*ml")):
            found = True
            yield _case(root, task, file, stories)
    if not found:
        raise UserError(f"{root}: no TASK/cases/*.yaml of MICON-Bench; its tasks are {', '.join(TASKS)}")


def _case(root: Path, task: str, file: Path, stories: Mapping[str, Mapping[str, Any]]) -> MiconItem:
    content = read_yaml(file, dict)
    case = plain_name(content.get("case_id"), "case_id", str(file))
    if case != file.stem:
        raise UserError(f"{file}: `case_id` is {case!r}; it must be the file's name, as images are found by it")
    refs = content.get("refs")
    if not isinstance(refs, dict) or not refs or not all(isinstance(path, str) and path for path in refs.values()):
        raise UserError(f"{file}: `refs` must map names (RA, RB, ...) to image files")
    more: dict[str, Any] = {}
    if task == STORY:
        if case not in stories:
            raise UserError(f"{root / STORY_FILE}: has no case {case!r}, which {file} is")
        more = dict(stories[case])
    return MiconItem(
        key=case,
        task_type=task,
        instruction=_text(content, "generation_prompt", file),
        images=tuple(_image(root, path, file) for path in refs.values()),
        names=tuple(map(str, refs)),
        goal=_text(content, "goal", file),
        constraints=_texts(content, "constraints_hard", str(file)),
        **more,
    )


def _image(root: Path, path: str, file: Path) -> Path:
    """A reference: relative to the root, without a leading `data/`."""
    relative = Path(path)
    parts = relative.parts[1:] if relative.parts[:1] == ("data",) else relative.parts
    image = root.joinpath(*parts)
    if relative.is_absolute() or ".." in parts or "\0" in path or not image.is_file():
        raise UserError(f"{file}: no such image file {path!r:.200}; `refs` are relative to {root}")
    return image


def _stories(root: Path) -> dict[str, dict[str, Any]]:
    file = root / STORY_FILE
    cases = read_json(file, dict).get("cases")
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise UserError(f"{file}: `cases` must be a list of objects")
    stories = {}
    for number, case in enumerate(cases, 1):
        where = f"{file}: case {number}"
        name = plain_name(case.get("case_id"), "case_id", where)
        if name in stories:
            raise UserError(f"{where}: {name!r} comes twice")
        stories[name] = {
            "background": _text(case, "background_summary", where),
            "positives": _texts(case, "positive_candidates", where, least=1),
            "negatives": _texts(case, "negative_candidates", where),
        }
    return stories


def _text(content: Mapping[str, Any], field: str, where: object) -> str:
    value = content.get(field)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: `{field}` must be a text")
    return value.strip()


def _texts(content: Mapping[str, Any], field: str, where: str, least: int = 0) -> tuple[str, ...]:
    value = content.get(field) or []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value) or len(value) < least:
        raise UserError(f"{where}: `{field}` must be a list of texts" + (f", at least {least}" if least else ""))
    return tuple(text.strip() for text in value)
