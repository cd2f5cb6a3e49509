"""Parses answers with several named values: labelled lines with scores, and checkpoints with 0 or 1.

All values are demanded, whole and in range; anything else is rejected, so that the question is asked again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from scone_pl.vlm.parsing import UnusableAnswerError, answer_text, load_object

_MARKS = r"[*_`#>\-\s]*"
_CHECKS = ("checkpoint_results", "checkpoints")
"""Keys under which checkpoints may be listed."""


@dataclass(frozen=True)
class NamedScores:
    """Several values from one answer."""

    values: Mapping[str, float]
    reason: str = ""


def parse_labelled(raw: str | None, labels: Mapping[str, str], low: int, high: int) -> NamedScores:
    """Whole numbers from the last line of each label, such as `Visual Quality: 7`; the text before them is the reason.

    Accepted: Markdown around label and number, `7/10` where 10 is `high`. The lines must form one block in any order:
    a label that is quoted earlier, in the reasoning, does not count.

    Args:
        raw: the answer.
        labels: name of a score -> its label.
        low: least score.
        high: greatest score.

    Raises:
        UnusableAnswerError: a line is missing or comes twice in the block, or its value is no whole number in range.
    """
    text = answer_text(raw)
    pattern = "|".join(re.escape(label) for label in labels.values())
    line = re.compile(rf"{_MARKS}({pattern}){_MARKS}:{_MARKS}(.*?){_MARKS}", re.IGNORECASE)
    names = {label.casefold(): name for name, label in labels.items()}
    lines = text.splitlines()
    block: dict[str, str] = {}
    start = len(lines)
    for number in range(len(lines) - 1, -1, -1):
        match = line.fullmatch(lines[number])
        if match is None:
            if lines[number].strip(" \t*_`-#>{}") and block:
                break
            continue
        name = names[match[1].casefold()]
        if name in block:
            break
        block[name], start = match[2], number
    if missing := [label for name, label in labels.items() if name not in block]:
        raise UnusableAnswerError(f"no line `{missing[0]}: <number>` in the last block")
    values = {name: _whole(block[name], labels[name], low, high) for name in labels}
    reason = re.sub(rf"^{_MARKS}reasoning{_MARKS}:{_MARKS}", "", "\n".join(lines[:start]).strip(), flags=re.IGNORECASE)
    return NamedScores(values, reason.strip())


def parse_checks(raw: str | None, names: Collection[str]) -> NamedScores:
    """0 or 1 for each checkpoint, from JSON: `{"checkpoint_results": {"A1": {"pass": 1}, "A2": 0}, ...}`.

    Accepted: text or a code fence around the object, the checkpoints at its top level, `"1"` or true for 1.

    Args:
        raw: the answer.
        names: all checkpoints; no other may be there.

    Raises:
        UnusableAnswerError: no such object; a checkpoint is missing, unknown, or neither 0 nor 1.
    """
    content = load_object(answer_text(raw))
    checks = next((content[key] for key in _CHECKS if isinstance(content.get(key), dict)), None)
    if checks is None:
        checks = {name: value for name, value in content.items() if name in names}
    if unknown := [name for name in checks if name not in names]:
        raise UnusableAnswerError(f"checkpoint {unknown[0][:40]!r} was not asked for")
    if missing := [name for name in names if name not in checks]:
        raise UnusableAnswerError(f"checkpoint {missing[0]} is missing")
    values = {name: _binary(checks[name], name) for name in names}
    reason = content.get("rationale_short", content.get("reasoning", ""))
    return NamedScores(values, reason if isinstance(reason, str) else "")


def _whole(text: str, label: str, low: int, high: int) -> int:
    match = re.fullmatch(rf"(\d{{1,6}})(?:\.0+)?(?:\s*/\s*{high})?\.?", text.strip(), re.ASCII)
    if match is None:
        raise UnusableAnswerError(f"`{label}` is no whole number")
    value = int(match[1])
    if not low <= value <= high:
        raise UnusableAnswerError(f"`{label}` is not within {low} to {high}")
    return value


def _binary(value: Any, name: str) -> int:
    if isinstance(value, dict):
        value = value.get("pass")
    if isinstance(value, str) and value.strip() in ("0", "1"):
        value = int(value)
    if isinstance(value, bool | int | float) and value in (0, 1):
        return int(value)
    raise UnusableAnswerError(f"checkpoint {name} is neither 0 nor 1")
