"""A training sample, independent of model size and tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from scone_pl.errors import printable_line

Kind = Literal["single", "multi"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One subject visible in a reference image."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom as fractions of the image's width and height."""
    is_target: bool
    """Whether the instruction refers to this subject; the others are distractors."""
    name: str = ""
    """Optional human-readable description."""

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        # Comparing with NaN is false; comparing with a string is a TypeError.
        if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1) or not isinstance(self.is_target, bool):
            raise ValueError(
                f"the box {self.box} must be left, top, right, bottom from 0 to 1, and is_target true or false"
            )
        if not isinstance(self.name, str):
            raise TypeError(f"the name {self.name!r} must be a string")

    def to_json(self) -> dict[str, Any]:
        """As stored in the JSON member of a shard (docs/shards.md)."""
        return {"box": self.box, "is_target": self.is_target, "name": self.name}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Reference images + instruction -> target image or answer, images still encoded (PNG, JPEG, ...)."""

    key: str
    """Unique within its data set; letters, digits, `_` and `-` only (a tar member name)."""
    references: tuple[bytes, ...]
    """Encoded reference images, in order. May be empty (text to image)."""
    instruction: str
    target: bytes
    """Encoded target image; empty = none (understanding only, or a prompt)."""
    kind: Kind = "single"
    """`single`: every reference shows one subject. `multi`: a reference shows several candidates."""
    candidates: tuple[tuple[Candidate, ...], ...] | None = None
    """Per reference image the subjects in it; None = not annotated."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Any JSON object: category, source, licence."""
    answer: str = ""
    """Target text after the instruction, trained by cross-entropy (docs/specification.md 4); empty = none."""


def parse_candidates(groups: Any) -> tuple[tuple[Candidate, ...], ...] | None:
    """Candidates from JSON: null, or per reference a list of `{"box": [...], "is_target": bool, "name": str}`.

    `meant`, the former name of `is_target`, is read too.

    Raises:
        KeyError, TypeError, ValueError: any other content.
    """
    if groups is None:
        return None
    return tuple(tuple(map(_parse_candidate, group)) for group in groups)


def _parse_candidate(item: Any) -> Candidate:
    if not isinstance(item, dict) or len(item.keys() & {"meant", "is_target"}) != 1:
        raise TypeError(f"{item!r:.80} must be an object with `box` and `is_target`")
    values = {"is_target" if name == "meant" else name: value for name, value in item.items()}
    return Candidate(**{**values, "box": tuple(item["box"])})


class BrokenSampleError(ValueError):
    """A sample cannot be used. It is skipped and counted under `reason`; the message names it and the fault."""

    def __init__(self, reason: str, message: str) -> None:
        """`reason`: a fixed phrase, the name of the counter. `message`: the details."""
        super().__init__(printable_line(message))
        self.reason = reason

    def __reduce__(self) -> tuple[type[BrokenSampleError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


def sample_or_error(read: Callable[..., Sample], *args: Any) -> Sample | BrokenSampleError:
    """`read(*args)`, or the error that it raised."""
    try:
        return read(*args)
    except BrokenSampleError as error:
        return error
