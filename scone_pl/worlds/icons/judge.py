"""The judge: what was drawn, matched with what was asked by rendered candidates (`matching.py`). Nothing is learned.

- The drawn scene is the one whose untextured image is nearest to the image (median over pixels).
- Presence of a candidate: it fits somewhere with a correlation and a gain above thresholds, and no other candidate
  fits the same place as well; nor do others of the atlas, in its hue and identity (`DECOYS`).
- Choice: of each reference's candidates the one that fits best, however badly; right by chance once in so many.
- Prompt following, 0-10: `10 * B * S * X`. B is 1 in the named scene, else 0.5. S is the fraction of the target
  subjects of whose name anything is drawn, in any hue and either identity. X is 0.5 if anything else is drawn, else 1.
- Subject consistency, 0-10: mean over the target subjects of the correlation of their best fit, from `_NOTHING` (0) to
  `_PERFECT` (10).
- Plausibility, where the drawn scene has a ground: of the target subjects present, the fraction that stand on it, at
  the size of their depth.

Thresholds were set on rendered images with known faults, of validation episodes (`faults.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from scone_pl.worlds.episode import Failure
from scone_pl.worlds.icons.atlas import IDENTITIES
from scone_pl.worlds.icons.episode import BASE, Episode, Look
from scone_pl.worlds.icons.hues import HUES, NATURAL
from scone_pl.worlds.icons.matching import Fit, Matcher, Pose
from scone_pl.worlds.icons.scenes import STANDING, every_background, ground_below
from scone_pl.worlds.icons.world import SCALES

PRESENT = 0.72
"""Least correlation of a candidate that is there."""
GAIN = 0.45
"""Least gain: below it, it is too faint to be there."""
MARGIN = 0.03
"""A candidate that fits the same place as well as another within this is doubtful, and so absent."""
DECOYS = 12
"""Names that a candidate must fit better than."""
NAMED = 0.62
"""Least correlation of any drawing of a name."""
FOREGROUND = 36.0
"""Root mean square over the channels from which a pixel differs from its background."""
EXTRA = 0.3
"""Foreground outside the target subjects, as a fraction of their windows, that counts as something extra."""
OCCUPIED = 0.3
"""Foreground that no present subject explains, as a fraction of a subject's area, from which on something is drawn."""
BLEND = (0.25, 0.06, 0.6)
"""Of two candidates that explain a place together: least gain of each, least gain of explained energy over the better
one alone, and least explained energy."""
_NOTHING, _PERFECT = 0.35, 0.95
_SAME_PLACE = 0.4
"""Overlap over which two fits compete."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judge's verdict on one image."""

    prompt_following: float
    subject_consistency: float
    presence: tuple[tuple[int, ...], ...]
    """Per reference and candidate 1 if it was drawn: SconeEval's `pred`."""
    labels: tuple[tuple[int, ...], ...]
    choices: tuple[bool, ...]
    """Per reference whether its target is the candidate that fits best."""
    scene: str
    """The drawn one."""
    named: tuple[bool, ...]
    """Per target subject whether anything of its name is drawn."""
    extra: bool
    plausible: float | None
    """None where nothing can be told."""
    failure: Failure

    def record(self, task: str, key: str) -> dict[str, Any]:
        """The verdict as a judged item in SconeEval's format."""
        judged: dict[str, Any] = {
            "task_type": task,
            "key": key,
            "PF": self.prompt_following,
            "SC": self.subject_consistency,
            "failure": self.failure,
        }
        if self.plausible is not None:
            judged["plausible"] = self.plausible
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
    drawn = _Drawn(episode, image)
    correlations = np.array([fit.correlation for fit in drawn.target_fits])
    factor = (1.0 if drawn.scene == episode.scene.name else 0.5) * (0.5 if drawn.extra else 1.0)
    consistency = ((correlations - _NOTHING) / (_PERFECT - _NOTHING)).clip(0, 1)
    return Verdict(
        prompt_following=10.0 * factor * float(np.mean(drawn.named)),
        subject_consistency=10.0 * float(consistency.mean()),
        presence=drawn.grouped([int(p) for p in drawn.present]),
        labels=episode.labels,
        choices=drawn.choices(),
        scene=drawn.scene,
        named=drawn.named,
        extra=drawn.extra,
        plausible=drawn.plausible(),
        failure=drawn.failure(),
    )


class _Drawn:
    """One image being judged."""

    def __init__(self, episode: Episode, image: np.ndarray) -> None:
        self.episode = episode
        self.scene, self.horizon, background = _background(image)
        self.matcher = Matcher(image, background, episode.atlas)
        self.candidates = [s for group in episode.candidates for s in group]
        self.fits = self.matcher.best([s.look for s in self.candidates])
        self.foreground = np.sqrt((self.matcher.difference**2).mean(-1)) > FOREGROUND

    def grouped(self, values: list[int]) -> tuple[tuple[int, ...], ...]:
        """One value a candidate -> per reference."""
        flat = iter(values)
        return tuple(tuple(next(flat) for _ in group) for group in self.episode.candidates)

    @property
    def target_fits(self) -> list[Fit]:
        """Of the target subjects."""
        return [fit for fit, s in zip(self.fits, self.candidates, strict=True) if s.is_target]

    @cached_property
    def present(self) -> list[bool]:
        """Per candidate whether it was drawn."""
        return [
            f.correlation >= PRESENT and f.gain >= GAIN and not self._doubtful(f) and not self._like_others(f)
            for f in self.fits
        ]

    def _like_others(self, fit: Fit) -> bool:
        """Whether one of `DECOYS` other names, in the same hue and identity, fits the same place better."""
        own = {s.look.index for s in self.candidates}
        decoys = [i for i in self.episode.atlas.order if i not in own][:DECOYS]
        poses = [
            replace(fit.pose, look=replace(fit.pose.look, index=index), view=view, flip=flip, angle=0)
            for index in decoys
            for view in IDENTITIES[fit.pose.look.identity]
            for flip in (False, True)
        ]
        return any(f.correlation > fit.correlation for f in self.matcher.fits(poses, [fit.box] * len(poses)))

    def _doubtful(self, fit: Fit) -> bool:
        """Whether another candidate fits the same place as well, or is part of what is there."""
        return any(
            (other.correlation > fit.correlation - MARGIN and fit.overlap(other) > _SAME_PLACE)
            or self._mixture(fit, other)
            for other in self.fits
            if other.pose.look != fit.pose.look
        )

    def choices(self) -> tuple[bool, ...]:
        """Per reference whether no candidate fits better than the target."""
        flat = iter(self.fits)
        groups = [[(next(flat).correlation, s.is_target) for s in group] for group in self.episode.candidates]
        return tuple(max(group)[1] for group in groups)

    @cached_property
    def named(self) -> tuple[bool, ...]:
        """Per target subject whether any drawing of its name, in any hue, fits somewhere."""
        targets = [s for s in self.candidates if s.is_target]
        found = []
        for subject, fit in zip(targets, self.target_fits, strict=True):
            best = fit.correlation
            if best < NAMED:
                looks = [Look(subject.look.index, i, NATURAL) for i in IDENTITIES]
                for first in self.matcher.best(looks):
                    poses = [
                        Pose(Look(subject.look.index, identity, hue), view, first.pose.side, first.pose.flip)
                        for identity, views in IDENTITIES.items()
                        for view in views
                        for hue in HUES
                    ]
                    others = self.matcher.fits(poses, [first.box] * len(poses))
                    best = max(best, first.correlation, *(other.correlation for other in others))
            found.append(bool(best >= NAMED))
        return tuple(found)

    def _window(self, fits: list[Fit]) -> np.ndarray:
        """(H, W) bool: the windows of some fits, a pixel wider."""
        area: np.ndarray = np.zeros_like(self.foreground)
        for fit in fits:
            left, top, right, bottom = (max(edge, 0) for edge in fit.box)
            area[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = True
        return area

    @cached_property
    def extra(self) -> bool:
        """Whether anything was drawn that was not asked for."""
        window = self._window(self.target_fits)
        return bool((self.foreground & ~window).sum() >= EXTRA * window.sum() / len(self.target_fits))

    def failure(self) -> Failure:
        """Names what went wrong; of several faults the first of blending, wrong subject, distorted and omission."""
        pairs = list(zip(self.candidates, self.present, strict=True))
        distractor = any(present and not s.is_target for s, present in pairs)
        if all(present for s, present in pairs if s.is_target):
            return "redundancy" if distractor or self.extra else "none"
        if self._blended():
            return "blending"
        if distractor:
            return "wrong_subject"
        rest = self.foreground & ~self._window(
            [f for f, present in zip(self.fits, self.present, strict=True) if present]
        )
        areas = [(s.box[2] - s.box[0]) * (s.box[3] - s.box[1]) for s in self.episode.asked]
        return "distorted" if rest.sum() >= OCCUPIED * min(areas) else "omission"

    def _blended(self) -> bool:
        """Whether two candidates, neither of them present, are mixed."""
        absent = [fit for fit, present in zip(self.fits, self.present, strict=True) if not present]
        return any(self._mixture(a, b) for a, b in combinations(absent, 2) if a.pose.look != b.pose.look)

    def _mixture(self, one: Fit, other: Fit) -> bool:
        """Whether two candidates explain a place together, better than either alone."""
        if one.overlap(other) <= _SAME_PLACE:
            return False
        first, window, x = self.matcher.parts(one.pose)
        second, more, _ = self.matcher.parts(other.pose)
        area = window | more
        basis = np.stack([first[area].ravel(), second[area].ravel()], 1)
        seen = x[area].ravel()
        gains, *_ = np.linalg.lstsq(basis, seen, rcond=None)
        energy = float((seen**2).sum()) + 1.0
        together = 1 - float(((seen - basis @ gains) ** 2).sum()) / energy
        alone = max(float((seen @ basis[:, i]) ** 2 / ((basis[:, i] ** 2).sum() + 1.0)) / energy for i in (0, 1))
        least, better, explained = BLEND
        return bool(min(gains) >= least and together - alone >= better and together >= explained)

    def plausible(self) -> float | None:
        """See the module."""
        standing = [
            fit
            for fit, present, s in zip(self.fits, self.present, self.candidates, strict=True)
            if present and s.is_target
        ]
        if self.scene not in STANDING or not standing:
            return None
        return float(np.mean([stands(f.box[3], f.pose.side, self.horizon, self.episode) for f in standing]))


def stands(base: float, side: float, horizon: int, episode: Episode) -> bool:
    """Whether a subject of this lower edge and longer side (pixels) stands on the ground, at the size of its depth."""
    canvas = episode.canvas
    first, last = ground_below(horizon, canvas)
    low, high = SCALES[len(episode.asked)]
    depth = min(max((base - first) / (last - first), 0.0), 1.0)
    expected = (low + (high - low) * depth) * BASE * canvas
    return bool(first - canvas / 16 <= base <= last + canvas / 16 and 0.7 <= side / expected <= 1.4)


def _background(image: np.ndarray) -> tuple[str, int, np.ndarray]:
    """(scene, horizon, untextured image) of the drawn scene."""
    errors = [float(np.median(np.abs(image - plain).mean(-1))) for _, _, plain in every_background(len(image))]
    return every_background(len(image))[int(np.argmin(errors))]
