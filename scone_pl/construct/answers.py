"""Parsers of models' answers; what is not entirely as asked for is asked again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scone_pl.vlm.parsing import UnusableAnswerError, answer_text, load_object

MAX_TEXT = 2000
_BOX_SCALE = 1000


@dataclass(frozen=True)
class Found:
    """A subject in an image."""

    name: str
    box: tuple[float, float, float, float]
    """Left, top, right, bottom as fractions."""
    wanted: bool = False


@dataclass(frozen=True)
class Located:
    """Subjects of an image, and which of them is asked for."""

    subjects: tuple[Found, ...]
    same: int
    """From 1; 0 = none."""
    phrase: str


def read_score(raw: str | None) -> tuple[int, list[str]]:
    """A score from 0 to 4, and what was deducted."""
    content = load_object(answer_text(raw))
    score = content.get("score")
    if isinstance(score, str) and score.strip().isdecimal():
        score = int(score)
    if isinstance(score, bool) or not isinstance(score, int | float) or score not in range(5):
        raise UnusableAnswerError("the score is no whole number from 0 to 4")
    deductions = content.get("deductions", [])
    deductions = deductions if isinstance(deductions, list) else [deductions]
    return int(score), [str(one)[:300] for one in deductions if one][:20]


def read_texts(*names: str) -> Callable[[str | None], tuple[str, ...]]:
    """Parser of an object with these texts, none of them empty."""

    def read(raw: str | None) -> tuple[str, ...]:
        content = load_object(answer_text(raw))
        return tuple(_text(content, name) for name in names)

    return read


def read_lists(count: int, *names: str) -> Callable[[str | None], list[tuple[str, ...]]]:
    """Parser of an object with lists of so many texts each."""

    def read(raw: str | None) -> list[tuple[str, ...]]:
        content = load_object(answer_text(raw))
        for name in names:
            if not isinstance(content.get(name), list) or len(content[name]) != count:
                raise UnusableAnswerError(f"`{name}` is no list of {count}")
        return [tuple(_text({name: one}, name) for one in content[name]) for name in names]

    return read


def read_names(count: int) -> Callable[[str | None], tuple[str, ...]]:
    """Parser of a list of so many names."""
    return lambda raw: read_lists(count, "names")(raw)[0]


def read_numbers(name: str, count: int) -> Callable[[str | None], tuple[int, ...]]:
    """Parser of a list of numbers from 1 to `count`, in order."""

    def read(raw: str | None) -> tuple[int, ...]:
        numbers = load_object(answer_text(raw)).get(name)
        valid = isinstance(numbers, list) and all(type(one) is int and 1 <= one <= count for one in numbers)
        if not isinstance(numbers, list) or not valid:
            raise UnusableAnswerError(f"`{name}` is no list of numbers from 1 to {count}")
        return tuple(sorted(set(numbers)))

    return read


def read_flag(name: str) -> Callable[[str | None], bool]:
    """Parser of true or false."""

    def read(raw: str | None) -> bool:
        value = load_object(answer_text(raw)).get(name)
        if not isinstance(value, bool):
            raise UnusableAnswerError(f"`{name}` is neither true nor false")
        return value

    return read


def read_located(raw: str | None) -> Located:
    """Subjects with boxes, one of them asked for."""
    content = load_object(answer_text(raw))
    subjects = _subjects(content)
    same = content.get("same")
    if isinstance(same, bool) or not isinstance(same, int) or not 0 <= same <= len(subjects):
        raise UnusableAnswerError("`same` is no number of the list")
    return Located(subjects, same, _text(content, "phrase") if same else "")


def read_subjects(raw: str | None) -> tuple[Found, ...]:
    """Subjects with boxes, each wanted or not."""
    return _subjects(load_object(answer_text(raw)))


def read_candidate(count: int) -> Callable[[str | None], int]:
    """Parser of a letter: index from 0; -1 = none, -2 = several."""

    def read(raw: str | None) -> int:
        value = load_object(answer_text(raw)).get("candidate")
        text = str(value).strip().strip(".").upper()
        if text in ("NONE", "SEVERAL"):
            return -1 if text == "NONE" else -2
        if len(text) != 1 or not 0 <= ord(text) - ord("A") < count:
            raise UnusableAnswerError("`candidate` is no letter of the list")
        return ord(text) - ord("A")

    return read


def _subjects(content: dict[str, Any]) -> tuple[Found, ...]:
    listed = content.get("subjects")
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise UnusableAnswerError("`subjects` is no list of objects")
    return tuple(Found(_text(one, "name"), _box(one.get("box")), one.get("wanted") is True) for one in listed[:26])


def _text(content: dict[str, Any], name: str) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT:
        raise UnusableAnswerError(f"`{name}` is no text")
    return " ".join(value.split())


def _box(value: Any) -> tuple[float, float, float, float]:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 4 or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise UnusableAnswerError("a box is no list of four numbers")
    left, top, right, bottom = (min(max(n / _BOX_SCALE, 0.0), 1.0) for n in numbers)
    if not (left < right and top < bottom) or max(numbers) > 1.05 * _BOX_SCALE:
        raise UnusableAnswerError("a box has no area, or is not from 0 to 1000")
    return round(left, 4), round(top, 4), round(right, 4), round(bottom, 4)
