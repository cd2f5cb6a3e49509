"""World 2 as an evaluator of studies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from scone_pl.evaluation.evaluator import Column, Report
from scone_pl.worlds.evaluator import WorldEvaluator
from scone_pl.worlds.icons.episode import Episode
from scone_pl.worlds.icons.world import IconsConfig, IconWorld, fixed_set

_MODULES = ("world", "episode", "atlas", "hues", "scenes", "language", "judge", "matching")
PLAUSIBLE = Column("plausible", "plausible", " %")


@dataclass(frozen=True, kw_only=True)
class IconsEvaluator(WorldEvaluator):
    """Fixed episodes of world 2."""

    name: ClassVar[str] = "icons"
    world_config: ClassVar[type] = IconsConfig
    code: ClassVar[tuple[str, ...]] = tuple(f"worlds/icons/{name}" for name in _MODULES)
    metrics: ClassVar[Mapping[str, Callable[[Report], float]]] = {
        **WorldEvaluator.metrics,
        "plausible": lambda report: 100.0 * report.get("means", {}).get("plausible", float("nan")),
        "choice / 10": lambda report: WorldEvaluator.metrics["choice"](report) / 10,
    }
    """`plausible`: in percent, of the images in which it can be told (see `judge.py`). `choice / 10`: on the scale of
    scores, for figures."""
    plotted: ClassVar[tuple[str, ...]] = ("COM", "choice / 10")
    """Conclusions rest on choice here, which labels confirm, not on DIS (docs/icons.md, "The judge")."""
    compared: ClassVar[tuple[Column, ...]] = (*WorldEvaluator.compared, Column("plausible", "plausible, %"))

    @classmethod
    def episodes(cls, per_task: int, *, stream: str, tasks: Sequence[str], world: Mapping[str, Any]) -> list[Episode]:
        return fixed_set(per_task, stream=stream, tasks=tasks, config=IconsConfig(**world))

    @classmethod
    def episode_of(cls, key: str, world: Mapping[str, Any]) -> Episode:
        stream, seed, task, index = key.split("-")
        return IconWorld(int(seed), IconsConfig(**world), stream).sample(task, int(index))

    @classmethod
    def tables(cls, reports: Sequence[Report]) -> list[tuple[str, tuple[Column, ...]]]:
        (head, scores), *others = super().tables(reports)
        return [(head, (*scores, PLAUSIBLE)), *others]
