"""World 2: endless, stateless episodes, each a pure function of (atlas, config, seed, stream, task, index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from scone_pl.errors import UserError
from scone_pl.evaluation.scores import SCONEEVAL_TASKS
from scone_pl.ranges import check_number, check_whole
from scone_pl.worlds.icons.atlas import IDENTITIES, Atlas, read_atlas
from scone_pl.worlds.icons.episode import Episode, Look, Subject
from scone_pl.worlds.icons.hues import HUES, NATURAL
from scone_pl.worlds.icons.language import NAMINGS, PLACES, SIZES, instruction, name_by
from scone_pl.worlds.icons.scenes import PHRASES, STANDING, Scene

STREAMS: tuple[str, ...] = ("base", "refined", "multi", "validation", "test", "questions", "plain")
"""Disjoint sources of episodes. A stream's number in this list decides its episodes."""
SCALES: dict[int, tuple[float, float]] = {1: (0.8, 1.2), 2: (0.7, 1.0), 3: (0.6, 0.8), 4: (0.6, 0.8)}
"""Number of subjects in an image -> their smallest and largest scale; in scenes with a ground from far to near."""
_SPREAD = 0.4
"""How far places and scales in a target vary, relative to those in references: no instruction says where a subject is
to stand, and what nobody can predict a small model learns to blur."""
_ANGLES = (-12, 0, 12)
_ATTRIBUTES = ("place", "order", "hue", "size", "combination")


@dataclass(frozen=True, kw_only=True)
class IconsConfig:
    """The sizes and the difficulty of the world."""

    canvas: int = 32
    """Sides of all images in pixels."""
    candidates: int = 2
    """Subjects in each reference of a distinction task, 2 to 4."""
    references: int = 2
    """Reference images of a `_multi` task, 2 to 4."""
    naming: str = "any"
    """What intra-category tasks name the target subject by: one of place, order, hue, size, combination, or any."""
    alike: tuple[str, ...] = ()
    """What candidates of intra-category tasks have in common: identity, hue; more makes distinction harder. What the
    target is named by always differs."""
    names: int = 0
    """How many names of the atlas to use; 0 = all but those held out."""
    unseen: bool = False
    """Use the tenth of the names that are held out instead."""
    scenes: tuple[str, ...] = tuple(PHRASES)
    """Scenes of targets."""
    atlas: str = ""
    """Folder of an atlas (see `atlas.py`); empty = the shipped one."""

    def __post_init__(self) -> None:
        for name in ("alike", "scenes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_whole("world.canvas", self.canvas, minimum=16, maximum=1024)
        check_whole("world.names", self.names)
        for name in ("candidates", "references"):
            check_number(f"world.{name}", getattr(self, name), minimum=2, maximum=4)
            check_whole(f"world.{name}", getattr(self, name))
        _check_known("naming", [self.naming], ("any", *_ATTRIBUTES))
        _check_known("alike", self.alike, ("identity", "hue"))
        _check_known("scenes", self.scenes, tuple(PHRASES))
        if not self.scenes:
            raise UserError(f"world.scenes is empty; choose from {', '.join(PHRASES)}")
        if "hue" in self.alike and ("identity" in self.alike or self.candidates > len(IDENTITIES)):
            raise UserError(
                "world.alike: a name has two identities of one hue, so leave out identity, and take 2 candidates"
            )
        if "hue" in self.alike and self.naming in ("hue", "combination"):
            raise UserError(
                f"world.naming {self.naming} needs candidates of different hues; leave hue out of world.alike"
            )


def _check_known(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [one for one in given if one not in known]:
        raise UserError(f"world.{name} has no {unknown[0]!r}; choose from {', '.join(known)}")


@dataclass(frozen=True, eq=False)
class IconWorld:
    """Episodes by index."""

    seed: int = 0
    config: IconsConfig = field(default_factory=IconsConfig)
    stream: str = "base"
    atlas: Atlas = field(init=False)
    pool: np.ndarray = field(init=False)
    """Indices of the names that episodes are drawn from."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**40:
            raise UserError(f"seed {self.seed} must lie in 0 .. 2**40 - 1")
        _check_known("stream", [self.stream], STREAMS)
        atlas = read_atlas(self.config.atlas)
        pool = atlas.chosen(self.config.names, unseen=self.config.unseen)
        needed = self.config.references * self.config.candidates
        if len(pool) < needed:
            raise UserError(
                f"world: {self.config.references} references of {self.config.candidates} candidates need {needed} "
                f"names, but there are {len(pool)}"
            )
        object.__setattr__(self, "atlas", atlas)
        object.__setattr__(self, "pool", np.array(pool))

    def sample(self, task: str, index: int) -> Episode:
        """Episode number `index` (any, below 2**64) of `task`, one of SconeEval's."""
        _check_known("task", [task], SCONEEVAL_TASKS)
        key = (1 << 127) | (self.seed << 80) | (STREAMS.index(self.stream) << 72)
        rng = np.random.Generator(np.random.Philox(key=key | (SCONEEVAL_TASKS.index(task) << 64) | index))
        kind, number, *likes = task.split("_")
        references = self.config.references if number == "multi" else 1
        count = self.config.candidates if kind == "distinction" else 1
        intra = likes == ["intra"]
        namings = [self._naming(rng, intra=intra) for _ in range(references)]
        categories = rng.choice(self.pool, size=(references, count), replace=False)
        groups, scenes, names = [], [], []
        for row, naming in zip(categories, namings, strict=True):
            looks = self._looks(rng, [int(row[0])] * count if intra else row.tolist(), naming, intra=intra)
            scene = self._scene(rng, "cloth" if naming == "size" else "")
            target = int(rng.integers(count))
            group = self._group(rng, looks, scene, target, sized=naming == "size")
            groups.append(group)
            scenes.append(scene)
            names.append(self.name(group, group[target], naming, rng))
        scene = self._scene(rng, self.config.scenes[int(rng.integers(len(self.config.scenes)))])
        chosen = [next(s for s in group if s.is_target) for group in groups]
        return Episode(
            key=f"{self.stream}-{self.seed}-{task}-{index:08d}",
            task=task,
            instruction=instruction(names, scene.name, rng),
            names=tuple(names),
            canvas=self.config.canvas,
            atlas=self.atlas,
            reference_scenes=tuple(scenes),
            candidates=tuple(groups),
            scene=scene,
            asked=self._answer(rng, chosen, scene),
        )

    def _naming(self, rng: np.random.Generator, *, intra: bool) -> str:
        drawn = int(rng.integers(len(_ATTRIBUTES)))
        if not intra:
            return NAMINGS[0]
        if self.config.naming != "any":
            return self.config.naming
        free = [a for a in _ATTRIBUTES if "hue" not in self.config.alike or a not in ("hue", "combination")]
        return free[drawn % len(free)]

    def _scene(self, rng: np.random.Generator, name: str = "") -> Scene:
        drawn, seed = list(PHRASES)[int(rng.integers(len(PHRASES)))], int(rng.integers(2**62))
        return Scene(name or drawn, self.config.canvas, seed)

    def _looks(self, rng: np.random.Generator, row: list[int], naming: str, *, intra: bool) -> list[Look]:
        """Of the candidates of one reference: no two are the same, and hues differ where they are named."""
        identities = list(IDENTITIES)
        drawn = [identities[int(i)] for i in rng.integers(len(identities), size=len(row))]
        if "identity" in self.config.alike:
            drawn = [drawn[0]] * len(row)
        if "hue" in self.config.alike and intra:
            drawn = rng.permutation(identities).tolist()
        hues = rng.permutation(HUES)[: len(row)].tolist()
        plain = rng.random(len(row)) < 0.5
        if naming not in ("hue", "combination"):
            # Where it is not named, a hue is one more thing that only the reference tells.
            hues = [NATURAL if p and not intra else hue for p, hue in zip(plain, hues, strict=True)]
        if intra and "hue" in self.config.alike:
            hues = [hues[0]] * len(row)
        return [Look(index, identity, hue) for index, identity, hue in zip(row, drawn, hues, strict=True)]

    def _group(
        self, rng: np.random.Generator, looks: list[Look], scene: Scene, target: int, *, sized: bool
    ) -> tuple[Subject, ...]:
        count = len(looks)
        views = [
            IDENTITIES[look.identity][int(i) % len(IDENTITIES[look.identity])]
            for look, i in zip(looks, rng.integers(2, size=count), strict=True)
        ]
        flips, angles = rng.integers(2, size=count), rng.integers(len(_ANGLES), size=count)
        places = self._places(rng, count, scene)
        scales = [scale for _, _, scale in places]
        if sized:
            small = bool(rng.integers(2))
            low, high = SCALES[max(count, 2)]
            scales = [low * 0.9 if (i == target) == small else high for i in range(count)]
        return tuple(
            Subject(
                look=look,
                view=views[i],
                centre=places[i][0],
                base=places[i][1],
                scale=scales[i],
                flip=bool(flips[i]),
                angle=_ANGLES[angles[i]],
                is_target=i == target,
                where=PLACES[count][i],
            ).placed(self.atlas, self.config.canvas)
            for i, look in enumerate(looks)
        )

    def _answer(self, rng: np.random.Generator, chosen: list[Subject], scene: Scene) -> tuple[Subject, ...]:
        """Side by side, in the order of the references, upright and in their other view."""
        places = self._places(rng, len(chosen), scene, _SPREAD)
        return tuple(
            replace(s, view=s.other_view, centre=centre, base=base, scale=scale, angle=0, where="").placed(
                self.atlas, self.config.canvas
            )
            for s, (centre, base, scale) in zip(chosen, places, strict=True)
        )

    def _places(
        self, rng: np.random.Generator, count: int, scene: Scene, spread: float = 1.0
    ) -> list[tuple[float, float, float]]:
        """(centre, base, scale) of each of `count` subjects, in the order of `PLACES`; `spread`: see `_SPREAD`."""
        side = self.config.canvas
        columns, rows = (2, 2) if count == 4 else (count, 1)
        low, high = SCALES[count]
        first, last = scene.ground
        places = []
        for i in range(count):
            row, column = divmod(i, columns)
            across, depth, size = 0.5 + spread * (rng.random(3) - 0.5)
            if rows == 2:
                depth = (row + 0.35 * depth + (0.3 if row else 0.1)) / 2
            scale = low + (high - low) * (depth if scene.name in STANDING else size)
            centre = side * (column + 0.5 + 0.5 * (across - 0.5)) / columns
            if scene.name in STANDING:
                base = first + depth * (last - first)
            else:
                base = side * (0.5 * scale + depth * (1 - 0.5 * scale)) if rows == 1 else side * (row + 0.9) / 2
            places.append((centre, base, scale))
        return places

    def name(self, group: Sequence[Subject], subject: Subject, naming: str, rng: np.random.Generator) -> str:
        """How an instruction names `subject` of `group`."""
        position = sorted(group, key=lambda s: s.centre).index(subject)
        larger = all(subject.scale >= other.scale for other in group)
        return name_by(
            "place" if naming == "order" and len(group) == 4 else naming,
            self.atlas.names[subject.look.index],
            where=subject.where,
            hue=subject.look.hue,
            size=SIZES[larger],
            position=position,
            long=bool(rng.integers(2)),
        )


def fixed_set(
    per_task: int,
    *,
    stream: str = "test",
    tasks: Sequence[str] = SCONEEVAL_TASKS,
    config: IconsConfig | None = None,
    seed: int = 0,
) -> list[Episode]:
    """The same episodes every time, `per_task` of each task in turn; a longer set begins with the shorter one's."""
    world = IconWorld(seed, config or IconsConfig(), stream)
    return [world.sample(task, index) for task in tasks for index in range(per_task)]
