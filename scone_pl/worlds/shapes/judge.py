"""An exact judge: what was drawn, compared pixel by pixel with what was asked. Nothing is learned.

Errors are root mean squares over pixels and channels, in units of 0..255. Everything is measured against the
background that was *drawn* (b, a median), so a wrong background is counted once and hides nothing else.

- Prompt following, 0-10, identity ignored: `10 * B * S * X`. B is 1 on the named background, else 0.5. S is the mean
  over the asked slots of 1 (the named shape stands there), 0.5 (it stands in another slot) or 0. X is 0.5 if
  anything else is drawn, else 1.
- Subject consistency, 0-10, position ignored: mean over the target subjects of `10 * max(0, 1 - e / 100)`, where e is
  the colour error inside the subject's silhouette at the offset where it fits best.
- Presence of each candidate: at some offset the cell (silhouette, pattern and b around it) has an error of at most
  40, and the image is there less than a fifth of the way towards any other candidate. So of two look-alikes only
  the nearer one is present, and an even mixture is neither (doubtful means absent, docs/benchmarks.md 3.3).
- Choice: of each reference's candidates the one whose cell the image comes nearest to, however badly it is painted.
  Presence asks for choosing and painting, this for choosing alone; by chance it is right once in so many candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import combinations
from typing import Any

import numpy as np

from scone_pl.worlds.episode import Failure
from scone_pl.worlds.shapes.episode import BACKGROUNDS, SLOTS, Episode, Subject, slot_corner
from scone_pl.worlds.shapes.shapes import SHAPES, shape_mask

BACKGROUND_TOLERANCE = 30.0
"""Half of the distance between the two nearest backgrounds that can be asked for."""
FOREGROUND = 32.0
"""A pixel farther than this from the drawn background belongs to a subject; subjects differ from it by 50."""
SHAPE_OVERLAP = 0.75
"""Least intersection over union of the foreground with a silhouette to be taken for it."""
EXTRA_FRACTION = 0.125
"""Foreground outside the explained slots, as a fraction of a cell's pixels, that counts as something extra."""
OCCUPIED_FRACTION = 0.25
"""Foreground inside a slot, as a fraction of a cell's pixels, from which on the slot is not empty."""
CONSISTENCY_SCALE = 100.0
"""Colour error at which subject consistency reaches 0. Independent patterns differ by as much and more."""
PRESENCE_TOLERANCE = 40.0
"""Largest error of a cell that shows a candidate."""
MIXTURE = 0.2
"""Weight from which on another candidate is part of the mixture."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judge's verdict on one image."""

    prompt_following: float
    """0-10, see the module."""
    subject_consistency: float
    """0-10, see the module."""
    presence: tuple[tuple[int, ...], ...]
    """Per reference and candidate 1 if it was drawn: SconeEval's `pred`."""
    labels: tuple[tuple[int, ...], ...]
    """Per reference and candidate 1 if it is a target: SconeEval's `label`."""
    choices: tuple[bool, ...]
    """Per reference whether the target of its candidates is the nearest to what was drawn."""
    background_right: bool
    """Whether the drawn background is the named one."""
    slots: tuple[float, ...]
    """Per asked slot 1 (named shape there), 0.5 (in another slot) or 0 (nowhere)."""
    extra: bool
    """Whether anything was drawn that was not asked for."""
    failure: Failure
    """The failure signature, `none` if the target subjects were drawn, wherever, and nothing else."""

    def record(self, task: str, key: str) -> dict[str, Any]:
        """The verdict as a judged item in SconeEval's format, ready for `scone_pl.evaluation.scores`."""
        judged = {
            "task_type": task,
            "key": key,
            "PF": self.prompt_following,
            "SC": self.subject_consistency,
            "failure": self.failure,
        }
        if task.startswith("distinction"):
            judged |= {
                "label": [list(g) for g in self.labels],
                "pred": [list(g) for g in self.presence],
                "choice": sum(self.choices) / len(self.choices),
            }
        return judged


def judge(episode: Episode, image: np.ndarray) -> Verdict:
    """Judges `image`, (H, W, 3) uint8 of the episode's canvas size, as an answer to `episode`."""
    if image.shape != (episode.canvas, episode.canvas, 3):
        raise ValueError(f"the episode asks for ({episode.canvas}, {episode.canvas}, 3), got {image.shape}")
    drawn = _Drawn(episode, image.astype(np.float64))
    named = np.array(BACKGROUNDS[episode.background], dtype=np.float64)
    background_right = _rms(drawn.background - named) <= BACKGROUND_TOLERANCE
    slots, extra = drawn.slots_and_extra()
    consistency = np.maximum(0.0, 1.0 - drawn.colour_errors() / CONSISTENCY_SCALE)
    factor = (1.0 if background_right else 0.5) * (0.5 if extra else 1.0)
    return Verdict(
        prompt_following=10.0 * factor * float(np.mean(slots)),
        subject_consistency=10.0 * float(consistency.mean()),
        presence=drawn.presence(),
        labels=episode.labels,
        choices=drawn.choices(),
        background_right=bool(background_right),
        slots=slots,
        extra=extra,
        failure=drawn.failure(extra),
    )


class _Drawn:
    """One image being judged. O offsets of a cell, C candidates of all references, K = cell^2 * 3."""

    def __init__(self, episode: Episode, image: np.ndarray) -> None:
        self.episode = episode
        self.image = image
        self.cell = episode.asked[0].cell
        # At the size they are asked for; in the reference one may be smaller.
        self.candidates: list[Subject] = [replace(s, cell=self.cell) for group in episode.candidates for s in group]
        self.slots = _slots(episode.canvas, self.cell)
        outside = np.ones(image.shape[:2], dtype=bool)
        for subject in episode.asked:
            outside[_area(subject.corner, self.cell)] &= ~subject.mask
        self.background = np.median(image[outside], axis=0)
        self.foreground = np.sqrt(((image - self.background) ** 2).mean(-1)) > FOREGROUND
        windows = np.lib.stride_tricks.sliding_window_view(image, (self.cell, self.cell, 3))
        self.windows = windows.reshape(-1, self.cell**2 * 3)  # (O, K)
        self.rendered = np.stack([self._cell(subject) for subject in self.candidates])  # (C, K)

    def _cell(self, subject: Subject) -> np.ndarray:
        """(K,): `subject` on the drawn background."""
        return np.where(subject.mask[:, :, None], subject.pattern, self.background).ravel()

    # ------------------------------------------------------------------ prompt following
    def slots_and_extra(self) -> tuple[tuple[float, ...], bool]:
        """Credit of each asked slot, and whether more was drawn than asked."""
        seen = {slot: self._shape_in(slot) for slot in self.slots}
        asked = {subject.slot: subject.shape for subject in self.episode.asked}
        credits, explained = [], [slot_corner(slot, self.episode.canvas, self.cell) for slot in asked]
        for slot, shape in asked.items():
            elsewhere = [s for s in seen if seen[s] == shape and asked.get(s) != shape]
            credits.append(1.0 if seen[slot] == shape else 0.5 if elsewhere else 0.0)
            if credits[-1] == 0.5:
                explained.append(slot_corner(elsewhere[0], self.episode.canvas, self.cell))
        rest = self.foreground.copy()
        for corner in explained:
            rest[_area(corner, self.cell)] = False
        return tuple(credits), bool(rest.sum() >= EXTRA_FRACTION * self.cell**2)

    def _shape_in(self, slot: str) -> str | None:
        """The shape standing in `slot`, whatever its colours; None if no silhouette fits."""
        window, masks = self.slots[slot]
        seen = self.foreground & window
        overlaps = (seen & masks).sum((1, 2)) / (seen | masks).sum((1, 2))
        best = int(overlaps.argmax())
        return SHAPES[best] if overlaps[best] >= SHAPE_OVERLAP else None

    # ------------------------------------------------------------------ subject consistency
    def colour_errors(self) -> np.ndarray:
        """(references,): least colour error of each target subject inside its silhouette, over all offsets."""
        inside = np.stack([np.repeat(subject.mask.ravel(), 3) for subject in self.episode.asked])
        patterns = np.stack([subject.pattern.ravel() for subject in self.episode.asked])
        least: np.ndarray = self._errors(patterns.astype(np.float64), inside.astype(np.float64)).min(0)
        return least

    def _errors(self, expected: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(O, N): error of every offset against each of `expected` (N, K), over the values of weight 1 in `weights`."""
        # |x - w|^2 multiplied out, so that no (O, N, K) array is made; whole numbers stay exact in float64.
        squares = self.windows**2 @ weights.T - 2 * self.windows @ (weights * expected).T
        squares += (weights * expected**2).sum(-1)
        errors: np.ndarray = np.sqrt(squares.clip(0.0) / weights.sum(-1))
        return errors

    # ------------------------------------------------------------------ presence
    def presence(self) -> tuple[tuple[int, ...], ...]:
        """Per reference and candidate whether it was drawn, anywhere."""
        flat = iter([bool(corners) for corners in self.cells_found])
        return tuple(tuple(int(next(flat)) for _ in group) for group in self.episode.candidates)

    @cached_property
    def cells_found(self) -> list[list[tuple[int, int]]]:
        """Per candidate the (left, top) of every cell that shows it."""
        return [self._cells_showing(number, self.errors[:, number]) for number in range(len(self.candidates))]

    @cached_property
    def errors(self) -> np.ndarray:
        """(O, C): error of every offset against every candidate's cell."""
        return self._errors(self.rendered, np.ones_like(self.rendered))

    def choices(self) -> tuple[bool, ...]:
        """Per reference whether no candidate's cell comes nearer to the image than the target's, anywhere."""
        nearest = iter(self.errors.min(0))
        groups = [[(next(nearest), candidate.is_target) for candidate in group] for group in self.episode.candidates]
        return tuple(min(group, key=lambda one: one[0])[1] for group in groups)

    def _cells_showing(self, number: int, errors: np.ndarray) -> list[tuple[int, int]]:
        near = (errors <= PRESENCE_TOLERANCE).nonzero()[0]
        own = self.rendered[number]
        towards = self.rendered - own  # (C, K)
        length = (towards**2).sum(-1)
        # An identical twin is indistinguishable and so does not contradict.
        rivals = length > 1.0
        way = (self.windows[near] - own) @ towards[rivals].T / length[rivals]
        columns = self.episode.canvas - self.cell + 1
        return [(int(o % columns), int(o // columns)) for o in near[(way < MIXTURE).all(-1)]]

    # ------------------------------------------------------------------ failure signature
    def failure(self, extra: bool) -> Failure:
        """Names what went wrong; of several faults the first of blending, wrong subject, distorted and omission.

        Wrong subject: a distractor was drawn. Distorted: what stands in the slot of a target subject is no candidate.
        """
        drawn = list(zip(self.candidates, self.cells_found, strict=True))
        # One target candidate a reference, so these run like `asked`.
        present = [bool(corners) for candidate, corners in drawn if candidate.is_target]
        distractor = any(corners and not candidate.is_target for candidate, corners in drawn)
        if all(present):
            return "redundancy" if distractor or extra else "none"
        if self._mixture():
            return "blending"
        absent = [s for s, there in zip(self.episode.asked, present, strict=True) if not there]
        if distractor:
            return "wrong_subject"
        return "distorted" if any(map(self._occupied, absent)) else "omission"

    def _mixture(self) -> bool:
        """Whether a slot that no candidate explains shows two of them mixed."""
        explained = [corner for corners in self.cells_found for corner in corners]
        for slot in self.slots:
            left, top = slot_corner(slot, self.episode.canvas, self.cell)
            if not any(abs(x - left) < self.cell and abs(y - top) < self.cell for x, y in explained):
                cell = self.image[_area((left, top), self.cell)].ravel()
                if any(_is_mixture(cell, *pair) for pair in combinations(self.rendered, 2)):
                    return True
        return False

    def _occupied(self, asked: Subject) -> bool:
        """Whether something stands where `asked` should."""
        return bool(self.foreground[_area(asked.corner, self.cell)].mean() >= OCCUPIED_FRACTION)


def _is_mixture(cell: np.ndarray, one: np.ndarray, other: np.ndarray) -> bool:
    """Whether `one` and `other`, in new proportions in each quarter, explain `cell`; all (K,)."""
    towards, seen = other - one, cell - one
    quarters = _quarters(math.isqrt(len(cell) // 3))
    length = np.bincount(quarters, towards**2)
    if length.sum() <= 1.0:
        return False
    way = (np.bincount(quarters, towards * seen) / np.maximum(length, 1.0)).clip(0.0, 1.0)
    weight = (way * length).sum() / length.sum()
    rest = _rms(seen - way[quarters] * towards)
    return bool(rest <= PRESENCE_TOLERANCE and MIXTURE <= weight <= 1.0 - MIXTURE)


def _rms(difference: np.ndarray) -> np.ndarray:
    """Root mean square over the last axis."""
    root: np.ndarray = np.sqrt((difference**2).mean(-1))
    return root


def _area(corner: tuple[int, int], cell: int) -> tuple[slice, slice]:
    """The rows and columns of a cell with this (left, top)."""
    left, top = corner
    return slice(top, top + cell), slice(left, left + cell)


@cache
def _quarters(cell: int) -> np.ndarray:
    """(cell^2 * 3,) int: in which quarter of the cell a value lies."""
    half = np.arange(cell) // (cell // 2)
    return np.repeat((2 * half[:, None] + half).ravel(), 3)


@cache
def _slots(canvas: int, cell: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per slot the window to search, (H, W) bool, and the silhouettes standing in it, (shapes, H, W) bool.

    The window extends a quarter of a cell beyond the cell, so that a piece of something larger is no shape, but not
    into slots that another subject could fill at the same time.
    """
    corners = {slot: slot_corner(slot, canvas, cell) for slot in SLOTS}
    slots = {}
    for slot, (left, top) in corners.items():
        margin = cell // 4
        window = np.zeros((canvas, canvas), dtype=bool)
        window[max(0, top - margin) : top + cell + margin, max(0, left - margin) : left + cell + margin] = True
        for x, y in corners.values():
            if abs(x - left) >= cell or abs(y - top) >= cell:
                window[_area((x, y), cell)] = False
        window[_area((left, top), cell)] = True
        masks = np.zeros((len(SHAPES), canvas, canvas), dtype=bool)
        for mask, shape in zip(masks, SHAPES, strict=True):
            mask[_area((left, top), cell)] = shape_mask(shape, cell)
        slots[slot] = window, masks
    return slots
