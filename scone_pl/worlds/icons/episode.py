"""One episode: references, instruction, target, and what is true of them. H, W: sides of the canvas in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from scone_pl.data.sample import Candidate, Sample
from scone_pl.worlds.episode import Verdict
from scone_pl.worlds.icons.atlas import DRAWINGS, IDENTITIES, Atlas
from scone_pl.worlds.icons.scenes import Scene
from scone_pl.worlds.png import encode_png

BASE = 0.5
"""Longer side of a subject of scale 1, as a fraction of the canvas."""


@dataclass(frozen=True)
class Look:
    """What a subject looks like, wherever it is: all that a reference tells and its name does not is its identity."""

    index: int
    """Of its name in the atlas."""
    identity: str
    """Key of `atlas.IDENTITIES`."""
    hue: str
    """`natural` or one of `hues.HUES`."""


@dataclass(frozen=True)
class Subject:
    """A look at a place in an image."""

    look: Look
    view: str
    """A drawing of its identity."""
    centre: float
    """Column of its middle in pixels."""
    base: float
    """Row of its lower edge in pixels."""
    scale: float
    """Its longer side is this many times `BASE` of the canvas."""
    flip: bool = False
    angle: int = 0
    is_target: bool = False
    where: str = ""
    """How its place is named among the others of its image: empty where it is alone."""
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    """(left, top, right, bottom) in pixels, within the canvas; set by `placed`."""

    @property
    def other_view(self) -> str:
        """The other view of the same identity, if the atlas has one."""
        others = [view for view in IDENTITIES[self.look.identity] if view != self.view]
        return others[0] if others else self.view

    def sprite(self, atlas: Atlas, canvas: int) -> np.ndarray:
        """See `Atlas.sprite`."""
        side = max(3, round(self.scale * BASE * canvas))
        return atlas.sprite(self.look.index, self.view, self.look.hue, side, flip=self.flip, angle=self.angle)

    def placed(self, atlas: Atlas, canvas: int) -> Subject:
        """The same, moved into the canvas where it would leave it."""
        height, width = self.sprite(atlas, canvas).shape[:2]
        left = min(max(round(self.centre - width / 2), 0), max(canvas - width, 0))
        top = min(max(round(self.base) - height, 0), max(canvas - height, 0))
        return replace(
            self, centre=left + width / 2, base=top + height, box=(left, top, left + width, min(top + height, canvas))
        )


def draw_image(subjects: Sequence[Subject], background: np.ndarray, atlas: Atlas) -> np.ndarray:
    """(H, W, 3) uint8: placed subjects over (H, W, 3) float32, the nearer over the farther."""
    image = background.copy()
    for subject in sorted(subjects, key=lambda s: s.base):
        sprite = subject.sprite(atlas, len(image))
        left, top = subject.box[:2]
        part = image[top : top + sprite.shape[0], left : left + sprite.shape[1]]
        sprite = sprite[: part.shape[0], : part.shape[1]]
        part *= 1 - sprite[..., 3:]
        part += sprite[..., :3]
    drawn: np.ndarray = image.round().clip(0, 255).astype(np.uint8)
    return drawn


@dataclass(frozen=True, eq=False, kw_only=True)
class Episode:
    """References + instruction -> target. Images are (canvas, canvas, 3) uint8."""

    key: str
    """Unique over all streams, tasks and indices of a seed."""
    task: str
    """One of SconeEval's."""
    instruction: str
    names: tuple[str, ...]
    """How it names the target subjects, in its own words and order."""
    canvas: int
    atlas: Atlas
    reference_scenes: tuple[Scene, ...]
    candidates: tuple[tuple[Subject, ...], ...]
    """Per reference the subjects in it."""
    scene: Scene
    """Of the target."""
    asked: tuple[Subject, ...]
    """The target subjects as they stand in the target, one a reference, in that order."""

    @cached_property
    def references(self) -> np.ndarray:
        """(R, H, W, 3) uint8."""
        pairs = zip(self.candidates, self.reference_scenes, strict=True)
        return np.stack([draw_image(group, scene.draw(), self.atlas) for group, scene in pairs])

    @cached_property
    def target(self) -> np.ndarray:
        """(H, W, 3) uint8: a perfect answer."""
        return draw_image(self.asked, self.scene.draw(), self.atlas)

    @property
    def labels(self) -> tuple[tuple[int, ...], ...]:
        """Per reference and candidate 1 if it is a target, as SconeEval's `subject_label`."""
        return tuple(tuple(int(subject.is_target) for subject in group) for group in self.candidates)

    def name_of(self, subject: Subject) -> str:
        """Its category."""
        return self.atlas.names[subject.look.index]

    def judge(self, image: np.ndarray) -> Verdict:
        """See `judge.judge`."""
        from scone_pl.worlds.icons.judge import judge

        return judge(self, image)

    def to_sample(self, *, boxes: bool = True) -> Sample:
        """The episode as data: PNG bytes; `boxes` as fractions of the canvas, which no training set has."""
        side = self.canvas
        return Sample(
            key=self.key,
            references=tuple(encode_png(reference) for reference in self.references),
            instruction=self.instruction,
            target=encode_png(self.target),
            kind="single" if self.task.startswith("composition") else "multi",
            candidates=tuple(
                tuple(
                    Candidate(
                        box=(s.box[0] / side, s.box[1] / side, s.box[2] / side, s.box[3] / side),
                        is_target=s.is_target,
                        name=self.name_of(s),
                    )
                    for s in group
                )
                for group in self.candidates
            )
            if boxes
            else None,
            metadata={"task": self.task, "scene": self.scene.name, "source": "icons", "names": list(self.names)},
        )


assert set(DRAWINGS) == {view for views in IDENTITIES.values() for view in views}
