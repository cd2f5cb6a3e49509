"""Parses the judge's answers (docs/benchmarks.md 3.5).

Stricter than the published parser: ambiguous answers are rejected and asked for again.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

MIN_SCORE, MAX_SCORE = 0.0, 10.0
_THINKING = re.compile(
    r"[<\[◁]\s{0,3}(?P<end>/?)\s{0,3}(?:seed:)?(?:think|thinking|thought|reasoning)\s{0,3}[>\]▷]|"
    r"<\|(?:begin|(?P<end2>end))_of_thought\|>",
    re.IGNORECASE,
)
"""Tags around a model's reasoning: `<think>`, `<thinking>`, `[THINK]`, `◁think▷`, ..."""
_CHANNELS = re.compile(r"<\|channel\|>\s{0,3}(?P<name>\w{1,30})[^<]{0,200}<\|message\|>")
"""gpt-oss: `<|channel|>analysis<|message|>...<|channel|>final<|message|>...`."""
_END_OF_MESSAGE = re.compile(r"<\|(?:end|return|im_end|eot_id)\|>\s*$")
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")
_UNQUOTED = re.compile(r"\{\s*score\s*:\s*([0-9.]+)\s*(?:,\s*\w+\s*:[^{}]*)?\}", re.IGNORECASE | re.DOTALL)
_DIGITS = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*", re.ASCII)
_QUOTE_MARKS = " \t\r\n\"'`*_"


class UnusableAnswerError(ValueError):
    """An answer without a valid score; the message is the reason."""


@dataclass(frozen=True)
class Score:
    """A score of 0 to 10 and the judge's reason (may be empty)."""

    value: float
    reason: str = ""


def parse_score(raw: str | None) -> Score:
    """The score of an answer such as `{"score": 7, "reasoning": "..."}`.

    Accepted: text or a code fence around one object, line breaks in strings, trailing commas, a number as a string or
    in a list of one, an object without any quotes, and a bare number as the whole answer.

    Raises:
        UnusableAnswerError: no such object, or its score is not a number from 0 to 10.
    """
    text = answer_text(raw)
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return Score(_number(text))
    text = text[start : end + 1]
    try:
        content = _load(text)
    except ValueError:
        match = None if '"' in text else _UNQUOTED.fullmatch(text)
        if match is None:
            raise UnusableAnswerError("not JSON") from None
        content = {"score": match[1]}
    if not isinstance(content, dict) or "score" not in content:
        raise UnusableAnswerError("JSON without `score`")
    reason = content.get("reasoning", "")
    return Score(_number(content["score"]), reason if isinstance(reason, str) else json.dumps(reason))


def parse_presence(raw: str | None) -> int:
    """1 or 0 from an answer that is one digit, possibly quoted, formatted or with a full stop, or one field of an
    object.

    The published parser takes the first 0 or 1 anywhere, so `image 1 vs 2: 0` gives 1.

    Raises:
        UnusableAnswerError: anything else.
    """
    text = answer_text(raw)
    bare = text.strip(_QUOTE_MARKS).removesuffix(".").rstrip(_QUOTE_MARKS)
    if bare in ("0", "1"):
        return int(bare)
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise UnusableAnswerError("neither 0 nor 1")
    try:
        content = _load(text[start : end + 1])
    except ValueError:
        raise UnusableAnswerError("neither 0 nor 1") from None
    digits = [v for v in content.values() if (type(v) is int and v in (0, 1)) or v in ("0", "1")]
    if len(digits) != 1:
        raise UnusableAnswerError("no field, or several, that are 0 or 1")
    return int(digits[0])


def answer_text(raw: str | None) -> str:
    """The answer after the model's reasoning.

    Only the text after the last closing tag counts; many chat templates remove the opening tag.

    Raises:
        UnusableAnswerError: the answer is empty, or truncated within the reasoning.
    """
    text = raw or ""
    channels = list(_CHANNELS.finditer(text))
    if channels:
        if channels[-1]["name"].lower() != "final":
            raise UnusableAnswerError("cut off while thinking")
        text = text[channels[-1].end() :]
    text = _END_OF_MESSAGE.sub("", text)
    tags = list(_THINKING.finditer(text))
    closing = [tag for tag in tags if tag["end"] or tag["end2"]]
    if tags and (not closing or tags[-1] is not closing[-1]):
        raise UnusableAnswerError("cut off while thinking")
    text = text[closing[-1].end() if closing else 0 :].strip()
    if not text:
        raise UnusableAnswerError("empty answer")
    return text


def load_object(text: str) -> dict[str, Any]:
    """The JSON object in a text, from its first brace to its last.

    Raises:
        UnusableAnswerError: there is none.
    """
    start, end = text.find("{"), text.rfind("}")
    try:
        content = _load(text[start : end + 1]) if 0 <= start < end else None
    except UnusableAnswerError:
        raise
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UnusableAnswerError("not JSON")
    return content


def _load(text: str) -> dict[str, Any]:
    content: dict[str, Any]
    try:
        try:
            content = json.loads(text, strict=False, object_pairs_hook=_unique)
        except json.JSONDecodeError:
            content = json.loads(_TRAILING_COMMA.sub(r"\1", text), strict=False, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise UnusableAnswerError("a field comes twice")
    return content


def _number(value: Any) -> float:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UnusableAnswerError("the score is no number")
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise UnusableAnswerError("the score is no number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise UnusableAnswerError("the score is no number") from None
    if not math.isfinite(number) or not MIN_SCORE <= number <= MAX_SCORE:
        raise UnusableAnswerError("the score is not within 0 to 10")
    return number
