"""The mini-world: endless, stateless episodes, each a pure function of (seed, stream, task, index).

A subject has a category that can be named (its shape) and an identity that cannot (a pattern of saturated colours
that must be copied from the reference). Instructions have four words around each name and the same length for
cross- and intra-category cases: `draw the only star on red` names by shape, `draw the left star on red` by place.
`WorldConfig.naming` puts another word in the place's: `draw the green star on red`, `draw the one star on red`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from scone_pl.errors import UserError
from scone_pl.ranges import check_number, check_whole
from scone_pl.worlds.shapes.episode import BACKGROUNDS, SLOTS, SLOTS_BY_COUNT, TASKS, Episode, Subject, slot_corner
from scone_pl.worlds.shapes.questions import QUESTION_WORDS, hue_name
from scone_pl.worlds.shapes.shapes import BASE_CELL, SHAPES

WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(("draw", "the", "and", "on", "only", *list(SLOTS)[1:], *SHAPES, *BACKGROUNDS, *QUESTION_WORDS))
)
"""Every word of instructions, questions and answers, whatever the settings."""

SIZES: tuple[str, str] = ("one", "four")
"""Words for the small and the large one of an image: how many quarters of its slot it fills.

The shipped tokenizer is as old as the base weights and has no `small` or `large`, but it has numbers. The base learned
numbers as answers about counts (never `four`), not as a size: their meaning here is new to it, as that of any word is.
"""

STREAMS: tuple[str, ...] = ("base", "refined", "multi", "validation", "test", "wide", "questions", "plain")
"""Disjoint sources of episodes: one to choose by, one to report, the others to train on. A stream's place in this list
decides its episodes."""

_FAR = 100.0
"""Two independent patterns differ by at least this (root mean square over patches and channels, of 255)."""
_PROPOSALS = 6
_MAX_SIDE = 4096


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """The sizes and the difficulty of a mini-world."""

    canvas: int = 16
    """Sides of all images in pixels."""
    cell: int = 8
    """Sides of a subject in pixels, a multiple of 8."""
    patches: int = 2
    """Patches a side of a subject's pattern, each of one colour."""
    shapes: tuple[str, ...] = SHAPES[:6]
    """Categories to draw from."""
    candidates: int = 2
    """Subjects in each reference of a distinction task, 2 to 4."""
    references: int = 2
    """Reference images of a `_multi` task, 2 to 4."""
    similarity: float = 0.0
    """How far distractors approach the target subject's colours, in [0, 1]: 0 independent, 1 the same pattern."""
    single_slot: str = "any"
    """Where the only subject of a reference stands: `any` (centre, left or right) or a key of `SLOTS`."""
    naming: Literal["place", "colour", "size"] = "place"
    """What tells the target subject from its likes in intra-category tasks: its place, the hue of its first patch, or
    its size (`SIZES`). By size it is the small one among large ones or the other way round. A small subject stands in
    the upper left quarter of its slot, and is asked for at full size, so to draw it is to enlarge it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", tuple(self.shapes))
        for name in ("canvas", "cell", "patches"):
            check_whole(f"world.{name}", getattr(self, name), minimum=1, maximum=_MAX_SIDE)
        check_number("world.similarity", self.similarity, minimum=0, maximum=1)
        if self.patches < 1 or self.cell < BASE_CELL or self.cell % BASE_CELL or self.cell % self.patches:
            raise UserError(
                f"world.cell is {self.cell}; it must be a multiple of {BASE_CELL} and of world.patches ({self.patches})"
            )
        if self.naming not in ("place", "colour", "size"):
            raise UserError(f"world.naming is {self.naming!r:.80}; it must be place, colour or size")
        if self.naming == "size" and self.cell // 2 % self.patches:
            raise UserError(
                f"world.naming size: half of world.cell {self.cell} must be a multiple of world.patches {self.patches}"
            )
        if self.naming == "colour" and self.similarity:
            raise UserError(
                f"world.naming colour needs candidates of different hues: set world.similarity 0 (is {self.similarity})"
            )
        if self.canvas < 2 * self.cell or self.canvas % 4:
            raise UserError(
                f"world.canvas {self.canvas} must be a multiple of 4 and hold two subjects of {self.cell} pixels"
            )
        if unknown := set(self.shapes) - set(SHAPES):
            raise UserError(f"world.shapes has no {min(unknown)!r:.80}; choose from {', '.join(SHAPES)}")
        if not (2 <= self.candidates <= 4 and 2 <= self.references <= 4):
            raise UserError(
                f"world.candidates {self.candidates} and world.references {self.references} must be 2, 3 or 4"
            )
        if len(set(self.shapes)) <= self.references:
            raise UserError(f"world.references {self.references} need more than {self.references} world.shapes")
        if self.single_slot != "any" and self.single_slot not in SLOTS:
            raise UserError(f"world.single_slot is {self.single_slot!r:.80}; choose from any, {', '.join(SLOTS)}")


class World:
    """Episodes by index. Worlds of different seeds or streams never share an episode's random numbers."""

    def __init__(self, seed: int = 0, config: WorldConfig | None = None, *, stream: str = "base") -> None:
        """`seed`: below 2**40. `stream`: one of `STREAMS`."""
        if not 0 <= seed < 2**40:
            raise UserError(f"seed {seed} must lie in 0 .. 2**40 - 1")
        if stream not in STREAMS:
            raise UserError(f"unknown stream {stream!r}: choose from {', '.join(STREAMS)}")
        self.seed = seed
        self.stream = stream
        self.config = config or WorldConfig()

    def sample(self, task: str, index: int) -> Episode:
        """Episode number `index` (any, below 2**64) of `task`, one of `TASKS`."""
        if task not in TASKS:
            raise UserError(f"unknown task {task!r}: choose from {', '.join(TASKS)}")
        rng = self._generator(task, index)
        kind, number, *likes = task.split("_")
        named_by = self.config.naming if likes == ["intra"] else "shape"
        num_references = self.config.references if number == "multi" else 1
        num_candidates = self.config.candidates if kind == "distinction" else 1

        background = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
        shapes = self._shapes(rng, num_references, num_candidates, intra=likes == ["intra"])
        targets = rng.integers(num_candidates, size=num_references)
        colours = self._colours(rng, num_references, num_candidates, targets, name_hues=named_by == "colour")
        cells = self._cells(rng, num_references, num_candidates, targets, differ=named_by == "size")
        candidates = []
        for i in range(num_references):
            slots = SLOTS_BY_COUNT[num_candidates] if num_candidates > 1 else (self._single_slot(rng),)
            # The target subject's shape was drawn first; it changes places with whoever stands in its slot.
            row = list(shapes[i])
            row[0], row[targets[i]] = row[targets[i]], row[0]
            candidates.append(
                tuple(
                    self._subject(row[j], colours[i, j], slot, int(cells[i, j]), is_target=bool(j == targets[i]))
                    for j, slot in enumerate(slots)
                )
            )
        chosen = [group[place] for group, place in zip(candidates, targets, strict=True)]
        target_slots = SLOTS_BY_COUNT[num_references]
        names = [f"the {self._word(s, named_by)} {s.shape}" for s in chosen]
        return Episode(
            key=f"{self.stream}-{self.seed}-{task}-{index:08d}",
            task=task,
            instruction=f"draw {' and '.join(names)} on {background}",
            background=background,
            canvas=self.config.canvas,
            candidates=tuple(candidates),
            asked=tuple(
                replace(s, cell=self.config.cell).moved(slot, self.config.canvas)
                for s, slot in zip(chosen, target_slots, strict=True)
            ),
        )

    def _generator(self, task: str, index: int) -> np.random.Generator:
        # Philox is a keyed bijection of a counter: different keys are different streams, without any state.
        key = (self.seed << 80) | (STREAMS.index(self.stream) << 72) | (TASKS.index(task) << 64) | index
        return np.random.Generator(np.random.Philox(key=key))

    def _subject(self, shape: str, colours: np.ndarray, slot: str, cell: int, *, is_target: bool) -> Subject:
        # The corner is that of a whole cell: a small subject then fills whole tokens of the model's grid.
        corner = slot_corner(slot, self.config.canvas, self.config.cell)
        return Subject(shape, colours, slot, corner, cell, is_target)

    def _word(self, subject: Subject, named_by: str) -> str:
        """What stands between `the` and the shape."""
        return {
            "shape": "only",
            "place": subject.slot,
            "colour": hue_name(subject.colours[0, 0]),
            "size": SIZES[subject.cell == self.config.cell],
        }[named_by]

    def _single_slot(self, rng: np.random.Generator) -> str:
        if self.config.single_slot != "any":
            return self.config.single_slot
        return ("centre", "left", "right")[int(rng.integers(3))]

    def _shapes(
        self, rng: np.random.Generator, num_references: int, num_candidates: int, *, intra: bool
    ) -> list[list[str]]:
        """Per reference the shapes of its candidates, the target first; a target shape never occurs elsewhere."""
        order = [self.config.shapes[k] for k in rng.permutation(len(self.config.shapes))]
        targets, others = order[:num_references], order[num_references:]
        if intra:
            return [[shape] * num_candidates for shape in targets]
        distractors = num_candidates - 1
        # Going round `others` keeps distractors of one reference apart as long as there are enough shapes.
        return [
            [shape, *(others[(i * distractors + j) % len(others)] for j in range(distractors))]
            for i, shape in enumerate(targets)
        ]

    def _cells(
        self, rng: np.random.Generator, num_references: int, num_candidates: int, targets: np.ndarray, *, differ: bool
    ) -> np.ndarray:
        """(references, candidates) sides in pixels; if they `differ`, the target or all others have half."""
        cells = np.full((num_references, num_candidates), self.config.cell)
        if differ:
            cells[(np.arange(num_candidates) == targets[:, None]) == rng.integers(2, size=(num_references, 1))] //= 2
        return cells

    def _colours(
        self,
        rng: np.random.Generator,
        num_references: int,
        num_candidates: int,
        targets: np.ndarray,
        *,
        name_hues: bool,
    ) -> np.ndarray:
        """(references, candidates, P, P, 3) uint8 patterns, apart by `_FAR` but for `similarity`.

        With `name_hues` the first patches of a reference's candidates have different names; it draws until they do.
        """
        while True:
            patterns = self._some_colours(rng, num_references, num_candidates, targets)
            if not name_hues or all(len({hue_name(p[0, 0]) for p in group}) == num_candidates for group in patterns):
                return patterns

    def _some_colours(
        self, rng: np.random.Generator, num_references: int, num_candidates: int, targets: np.ndarray
    ) -> np.ndarray:
        side = self.config.patches
        proposals = _propose_patterns(rng, num_references * num_candidates, side * side)
        picked = _pick_far(proposals).reshape(num_references, num_candidates, side * side, 3)
        if self.config.similarity and num_candidates > 1:
            own = picked[np.arange(num_references), targets][:, None]
            picked = _approach(picked, own, self.config.similarity)
        rgb = _rgb(picked)
        return rgb.round().astype(np.uint8).reshape(num_references, num_candidates, side, side, 3)


def fixed_set(
    per_task: int,
    *,
    stream: str = "test",
    tasks: Sequence[str] = TASKS,
    config: WorldConfig | None = None,
    seed: int = 0,
) -> list[Episode]:
    """The same episodes every time, `per_task` of each task in turn; a longer set begins with the shorter one's."""
    world = World(seed, config, stream=stream)
    return [world.sample(task, index) for task in tasks for index in range(per_task)]


def _propose_patterns(rng: np.random.Generator, count: int, patches: int) -> np.ndarray:
    """(proposals, count, patches, 3) HSV in [0, 1]: hues spread round the circle, then shuffled."""
    hues, saturations, values, order, turn = rng.random((5, _PROPOSALS, count, patches))
    spread = (np.arange(patches) + 0.5 * hues) / patches + turn[..., :1]
    spread = np.take_along_axis(spread, order.argsort(-1), -1) % 1.0
    return np.stack((spread, 0.85 + 0.15 * saturations, 0.9 + 0.1 * values), axis=-1)


def _pick_far(proposals: np.ndarray) -> np.ndarray:
    """(count, patches, 3): for each subject the first proposal that is far from all earlier ones, or the farthest."""
    count = proposals.shape[1]
    if count == 1:
        first: np.ndarray = proposals[0]
        return first
    flat = _rgb(proposals).reshape(*proposals.shape[:2], -1)
    picked = [0]
    for number in range(1, count):
        earlier = flat[picked, np.arange(number)]
        gaps = np.sqrt(((flat[:, number, None] - earlier) ** 2).mean(-1)).min(-1)
        far = gaps >= _FAR
        picked.append(int(far.argmax() if far.any() else gaps.argmax()))
    return proposals[picked, np.arange(count)]


def _approach(patterns: np.ndarray, own: np.ndarray, similarity: float) -> np.ndarray:
    """Moves hue (the shorter way round), saturation and value of `patterns` towards `own` by `similarity`."""
    step = own - patterns
    step[..., 0] = (step[..., 0] + 0.5) % 1.0 - 0.5
    moved: np.ndarray = patterns + similarity * step
    moved[..., 0] %= 1.0
    return moved


def _rgb(hsv: np.ndarray) -> np.ndarray:
    """Hue, saturation, value in [0, 1] -> RGB in [0, 255], last axis."""
    hue, saturation, value = hsv[..., 0, None], hsv[..., 1, None], hsv[..., 2, None]
    k = (np.array([5.0, 3.0, 1.0]) + 6.0 * hue) % 6.0
    rgb: np.ndarray = 255.0 * value * (1.0 - saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0))
    return rgb
