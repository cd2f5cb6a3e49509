"""The key of a study: which image on the page is whose. The page itself does not say."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scone_pl.errors import UserError
from scone_pl.files import read_json, write_json


@dataclass(frozen=True)
class StudyItem:
    """One question of the page."""

    task: str
    key: str
    systems: list[str]
    """Of its images, in the order in which the page holds them."""
    digests: list[str]
    """SHA-256 of the image files."""


@dataclass(frozen=True)
class StudyKey:
    """What the reader of the choices needs."""

    study: str
    """Digest of the page's content; choices name it."""
    seed: int
    systems: list[str]
    benchmark: str | None
    """Of the runs, if they are evaluations."""
    scores: dict[str, str]
    """System -> its `scores.jsonl`, where it was judged."""
    items: list[StudyItem]
    """By their number on the page."""

    def write(self, file: Path) -> None:
        write_json(asdict(self), file)

    @classmethod
    def read(cls, file: Path) -> StudyKey:
        """Raises `UserError` if it is no key as `study-page` writes it."""
        content = read_json(file, dict)
        try:
            items = [_item(entry) for entry in _of(content, "items", list)]
            benchmark = content["benchmark"]
            key = cls(
                _of(content, "study", str),
                _of(content, "seed", int),
                [str(name) for name in _of(content, "systems", list)],
                None if benchmark is None else str(benchmark),
                {str(name): str(path) for name, path in _of(content, "scores", dict).items()},
                items,
            )
            if not items or any(sorted(item.systems) != sorted(key.systems) for item in items):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{file}: not a key as study-page writes it (study_key.json)") from None
        return key


def _item(entry: Any) -> StudyItem:
    systems, digests = _of(entry, "systems", list), _of(entry, "digests", list)
    if len(systems) != len(digests):
        raise ValueError
    return StudyItem(_of(entry, "task", str), _of(entry, "key", str), [*map(str, systems)], [*map(str, digests)])


def _of(content: Any, name: str, kind: type) -> Any:
    if not isinstance(content, dict) or not isinstance(content[name], kind):
        raise TypeError
    return content[name]
