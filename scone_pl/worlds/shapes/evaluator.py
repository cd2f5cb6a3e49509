"""The mini-world of shapes as an evaluator of studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from scone_pl.worlds.evaluator import WorldEvaluator
from scone_pl.worlds.shapes.episode import Episode
from scone_pl.worlds.shapes.world import World, WorldConfig, fixed_set


@dataclass(frozen=True, kw_only=True)
class ShapesEvaluator(WorldEvaluator):
    """Fixed episodes of the mini-world."""

    name: ClassVar[str] = "shapes"
    world_config: ClassVar[type] = WorldConfig
    code: ClassVar[tuple[str, ...]] = tuple(
        f"worlds/shapes/{name}" for name in ("world", "episode", "shapes", "questions", "judge")
    )

    @classmethod
    def episodes(cls, per_task: int, *, stream: str, tasks: Sequence[str], world: Mapping[str, Any]) -> list[Episode]:
        return fixed_set(per_task, stream=stream, tasks=tasks, config=WorldConfig(**world))

    @classmethod
    def episode_of(cls, key: str, world: Mapping[str, Any]) -> Episode:
        stream, seed, task, index = key.split("-")
        return World(int(seed), WorldConfig(**world), stream=stream).sample(task, int(index))
