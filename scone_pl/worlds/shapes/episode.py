"""One episode of the mini-world: images, instruction and the ground truth about them.

H, W are the canvas sides, `cell` the side of a subject, all in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from scone_pl.data.sample import Candidate, Sample
from scone_pl.evaluation.scores import SCONEEVAL_TASKS
from scone_pl.worlds.episode import Verdict
from scone_pl.worlds.png import encode_png
from scone_pl.worlds.shapes.shapes import shape_mask

TASKS = SCONEEVAL_TASKS

REFERENCE_GREY = (128, 128, 128)
"""RGB behind the subjects of every reference image."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": (130, 0, 0),
    "green": (0, 115, 0),
    "blue": (0, 0, 140),
    "purple": (110, 0, 110),
}
"""RGB of the backgrounds that can be asked for: darker than any subject colour, or white.

At least 60 from one another and 50 from every subject colour, as root mean square over the channels.
"""

SLOTS: dict[str, tuple[int, int]] = {
    "centre": (2, 2),
    "left": (1, 2),
    "right": (3, 2),
    "northwest": (1, 1),
    "northeast": (3, 1),
    "southwest": (1, 3),
    "southeast": (3, 3),
}
"""Named slots: (x, y) of a subject's centre in quarters of the canvas."""

SLOTS_BY_COUNT: dict[int, tuple[str, ...]] = {
    1: ("centre",),
    2: ("left", "right"),
    3: ("northwest", "northeast", "southwest"),
    4: ("northwest", "northeast", "southwest", "southeast"),
}
"""Where so many subjects stand in one image, in the order of the references (target) or at random (reference)."""


def slot_corner(slot: str, canvas: int, cell: int) -> tuple[int, int]:
    """(left, top) in pixels of a subject standing in `slot`."""
    x, y = SLOTS[slot]
    return x * canvas // 4 - cell // 2, y * canvas // 4 - cell // 2


@dataclass(frozen=True, eq=False)
class Subject:
    """One subject standing in one image."""

    shape: str
    """Its category, which the instruction can name."""
    colours: np.ndarray
    """(P, P, 3) uint8: its identity, one colour a patch, which only the reference tells."""
    slot: str
    """Key of `SLOTS`."""
    corner: tuple[int, int]
    """(left, top) of its cell in pixels."""
    cell: int
    """Side of its cell in pixels."""
    is_target: bool
    """Whether the instruction refers to it."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels, right and bottom exclusive."""
        left, top = self.corner
        return left, top, left + self.cell, top + self.cell

    @property
    def mask(self) -> np.ndarray:
        """(cell, cell) bool: its silhouette."""
        return shape_mask(self.shape, self.cell)

    @cached_property
    def pattern(self) -> np.ndarray:
        """(cell, cell, 3) uint8: its colours at pixel size, not yet cut to the silhouette."""
        side = self.cell // len(self.colours)
        return self.colours.repeat(side, axis=0).repeat(side, axis=1)

    def draw(self, image: np.ndarray) -> None:
        """Paints itself into `image`, (H, W, 3) uint8, in place."""
        left, top, right, bottom = self.box
        np.copyto(image[top:bottom, left:right], self.pattern, where=self.mask[:, :, None])

    def moved(self, slot: str, canvas: int) -> Subject:
        """The same subject in another slot."""
        return replace(self, slot=slot, corner=slot_corner(slot, canvas, self.cell))


def _scaled(box: tuple[int, int, int, int], canvas: int) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    return left / canvas, top / canvas, right / canvas, bottom / canvas


def draw_image(subjects: tuple[Subject, ...], background: tuple[int, int, int], canvas: int) -> np.ndarray:
    """(canvas, canvas, 3) uint8: `subjects` on a plain `background`."""
    image = np.empty((canvas, canvas, 3), dtype=np.uint8)
    image[:] = background
    for subject in subjects:
        subject.draw(image)
    return image


@dataclass(frozen=True, eq=False, kw_only=True)
class Episode:
    """References + instruction -> target, and what is true of them."""

    key: str
    """Unique over all streams, tasks and indices of a seed."""
    task: str
    """One of `TASKS`."""
    instruction: str
    """E.g. `draw the left star and the left ring on red`."""
    background: str
    """Key of `BACKGROUNDS`: what the target must stand on."""
    canvas: int
    """Sides of all images in pixels."""
    candidates: tuple[tuple[Subject, ...], ...]
    """Per reference image the subjects standing in it, in the order of their slots."""
    asked: tuple[Subject, ...]
    """The target subjects as they must stand in the target, one for each reference, in that order."""

    @cached_property
    def references(self) -> np.ndarray:
        """(R, H, W, 3) uint8."""
        return np.stack([draw_image(group, REFERENCE_GREY, self.canvas) for group in self.candidates])

    @cached_property
    def target(self) -> np.ndarray:
        """(H, W, 3) uint8: the perfect answer."""
        return draw_image(self.asked, BACKGROUNDS[self.background], self.canvas)

    @property
    def labels(self) -> tuple[tuple[int, ...], ...]:
        """Per reference and candidate 1 if it is a target, as SconeEval's `subject_label`."""
        return tuple(tuple(int(subject.is_target) for subject in group) for group in self.candidates)

    def target_mask(self, reference: int) -> np.ndarray:
        """(H, W) bool: the pixels of the target subject in reference image number `reference`."""
        mask = np.zeros((self.canvas, self.canvas), dtype=bool)
        for subject in self.candidates[reference]:
            left, top, right, bottom = subject.box
            if subject.is_target:
                mask[top:bottom, left:right] = subject.mask
        return mask

    def judge(self, image: np.ndarray) -> Verdict:
        """See `judge.judge`."""
        from scone_pl.worlds.shapes.judge import judge

        return judge(self, image)

    def to_sample(self) -> Sample:
        """The episode as training data: PNG bytes, boxes as fractions of the canvas."""
        return Sample(
            key=self.key,
            references=tuple(encode_png(reference) for reference in self.references),
            instruction=self.instruction,
            target=encode_png(self.target),
            kind="single" if self.task.startswith("composition") else "multi",
            candidates=tuple(
                tuple(
                    Candidate(
                        box=_scaled(subject.box, self.canvas),
                        is_target=subject.is_target,
                        name=f"{subject.slot} {subject.shape}",
                    )
                    for subject in group
                )
                for group in self.candidates
            ),
            metadata={"task": self.task, "background": self.background, "source": "mini-world"},
        )
