"""What episodes of every world have in common, and what evaluations and drawings need of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from scone_pl.data.sample import Sample

Failure = Literal["none", "omission", "redundancy", "blending", "wrong_subject", "distorted"]
"""How an image fails; none if the target subjects were drawn, wherever, and nothing else."""


class Subject(Protocol):
    """One subject in one image."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels, right and bottom exclusive."""

    @property
    def is_target(self) -> bool:
        """Whether the instruction refers to it."""


class Verdict(Protocol):
    """A judge's verdict on one image."""

    @property
    def prompt_following(self) -> float:
        """0-10."""

    @property
    def subject_consistency(self) -> float:
        """0-10."""

    @property
    def failure(self) -> Failure:
        """The failure signature."""

    def record(self, task: str, key: str) -> dict[str, Any]:
        """As a judged item in SconeEval's format, with `failure` and, where there is a choice, `choice`."""


class Episode(Protocol):
    """References + instruction -> target, and what is true of them. Images are (H, W, 3) uint8 of side `canvas`."""

    @property
    def key(self) -> str: ...

    @property
    def task(self) -> str: ...

    @property
    def instruction(self) -> str: ...

    @property
    def canvas(self) -> int: ...

    @property
    def candidates(self) -> Sequence[Sequence[Subject]]: ...

    @property
    def references(self) -> np.ndarray: ...

    @property
    def target(self) -> np.ndarray: ...

    def to_sample(self) -> Sample:
        """The episode as training data."""

    def judge(self, image: np.ndarray) -> Verdict:
        """The verdict on `image` as an answer."""
