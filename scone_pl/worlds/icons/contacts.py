"""Targets that show contacts: what stands on a ground, at every depth, partly hidden by what is nearer.

In other sets two fifths of the targets have no ground, and where there is one, all subjects stand in the middle of it
(`world._SPREAD`): one position and one size fit nearly all. Here depth and size vary as much as in references.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scone_pl.errors import UserError
from scone_pl.worlds.icons.episode import Episode
from scone_pl.worlds.icons.scenes import STANDING, Scene
from scone_pl.worlds.icons.world import IconsConfig, IconWorld

_TOGETHER = 0.7
"""Distance of several subjects from the middle, relative to other sets', so that one often hides a part of another."""


class ContactWorld(IconWorld):
    """The references of an `IconWorld` with other targets; see `grounded` for its config."""

    def sample(self, task: str, index: int) -> Episode:
        episode = super().sample(task, index)
        return replace(episode, key=episode.key.replace(self.stream, "contacts", 1))

    def _places(
        self, rng: np.random.Generator, count: int, scene: Scene, spread: float = 1.0
    ) -> list[tuple[float, float, float]]:
        places = super()._places(rng, count, scene)
        if spread == 1.0:  # a reference
            return places
        middle = self.config.canvas / 2
        return [(middle + _TOGETHER * (centre - middle), base, scale) for centre, base, scale in places]


def grounded(config: IconsConfig) -> IconsConfig:
    """`config` with those of its scenes that have a ground.

    Raises:
        UserError: none has.
    """
    scenes = tuple(scene for scene in config.scenes if scene in STANDING)
    if not scenes:
        raise UserError(
            f"world.scenes has none of {', '.join(STANDING)}, on which contacts stand; add one, or pass --contacts 0"
        )
    return replace(config, scenes=scenes)
