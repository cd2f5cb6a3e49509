"""What raters have chosen, from the files that the page saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scone_pl.errors import UserError
from scone_pl.evaluation.blind_study.key import StudyKey
from scone_pl.files import read_json

_MAX_NAME = 60


@dataclass(frozen=True)
class Choice:
    """One answer."""

    rater: str
    item: int
    """Index into `StudyKey.items`."""
    system: str | None
    """The chosen one; None = no image is best."""
    position: int | None
    """Of its image on the screen, from 0."""


def read_choices(files: Sequence[str], key: StudyKey) -> list[Choice]:
    """Reads and checks all files; a folder stands for its JSON files.

    Raises:
        UserError: names the file: no choices of this study, a rater or an item twice, or nothing chosen at all.
    """
    paths: list[Path] = []
    for path in map(Path, files):
        paths += sorted(path.glob("*.json")) if path.is_dir() else [path]
    choices: list[Choice] = []
    seen: dict[str, Path] = {}
    for path in paths:
        content = read_json(path, dict)
        if content.get("study") != key.study:
            raise UserError(f"{path}: no choices of study {key.study} (its study is {content.get('study')!r:.40})")
        rater = content.get("rater")
        if not isinstance(rater, str) or not rater.strip() or len(rater) > _MAX_NAME:
            raise UserError(f"{path}: `rater` must be a name of at most {_MAX_NAME} characters")
        if rater in seen:
            raise UserError(f"{path}: the choices of {rater!r} are in {seen[rater]}, too; give the newer file only")
        seen[rater] = path
        entries = content.get("choices")
        if not isinstance(entries, list):
            raise UserError(f"{path}: `choices` must be a list")
        of_rater = [_choice(entry, rater, key, f"{path}: choice {n}") for n, entry in enumerate(entries, 1)]
        items = [choice.item for choice in of_rater]
        if len(set(items)) < len(items):
            twice = next(item for item in items if items.count(item) > 1)
            raise UserError(f"{path}: item {twice} is chosen from twice")
        choices += of_rater
    if not any(choice.system for choice in choices):
        raise UserError(f"{' '.join(files)}: nothing is chosen")
    return choices


def _choice(entry: Any, rater: str, key: StudyKey, where: str) -> Choice:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    item, image, position = (fields.get(name) for name in ("item", "image", "position"))
    if type(item) is not int or not 0 <= item < len(key.items):
        raise UserError(f"{where}: `item` must be a whole number below {len(key.items)}")
    systems = key.items[item].systems
    for name, value in (("image", image), ("position", position)):
        if value is not None and (type(value) is not int or not 0 <= value < len(systems)):
            raise UserError(f"{where}: `{name}` must be a whole number below {len(systems)}, or null")
    return Choice(rater, item, None if image is None else systems[image], position)
