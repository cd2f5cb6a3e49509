"""What a training sample is, before any model size or tokenizer is known."""

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
    meant: bool
    """Whether the instruction means this subject (the others are distractors)."""
    name: str = ""
    """Free description, for people."""

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        # A comparison with NaN is false, with a text a TypeError.
        if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1) or not isinstance(self.meant, bool):
            raise ValueError(f"the box {self.box} must be left, top, right, bottom from 0 to 1, `meant` true or false")
        if not isinstance(self.name, str):
            raise TypeError(f"the name {self.name!r} must be a text")


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
    """Per reference image the subjects in it, where known."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Anything JSON: category, source, licence."""
    answer: str = ""
    """Text that must be said after the instruction; empty = none. It is trained by cross-entropy (specification 4)."""


def parse_candidates(groups: Any) -> tuple[tuple[Candidate, ...], ...] | None:
    """Candidates out of JSON: null, or per reference a list of `{"box": [...], "meant": bool, "name": str}`.

    Raises:
        KeyError, TypeError, ValueError: it is not that.
    """
    if groups is None:
        return None
    return tuple(tuple(Candidate(**{**one, "box": tuple(one["box"])}) for one in group) for group in groups)


class BrokenSampleError(ValueError):
    """One sample cannot be used. It is skipped and counted under `reason`; the message says which and why."""

    def __init__(self, reason: str, message: str) -> None:
        """`reason`: a few fixed words, the name of a counter. `message`: the details."""
        super().__init__(printable_line(message))
        self.reason = reason

    def __reduce__(self) -> tuple[type[BrokenSampleError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


def usable(read: Callable[..., Sample], *args: Any) -> Sample | BrokenSampleError:
    """What `read(*args)` returns, or why it cannot."""
    try:
        return read(*args)
    except BrokenSampleError as error:
        return error
