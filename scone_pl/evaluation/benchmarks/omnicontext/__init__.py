"""OmniContext (docs/benchmarks.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from scone_pl.evaluation.benchmark import Aggregate
from scone_pl.evaluation.composition import CompositionBenchmark
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.scores import OMNICONTEXT_TASKS


class OmniContext(CompositionBenchmark):
    """Single, multiple and scene references; its overall score is COM."""

    name: ClassVar[str] = "omnicontext"
    title: ClassVar[str] = "OmniContext"
    tasks: ClassVar[tuple[str, ...]] = OMNICONTEXT_TASKS
    heads: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = (
        ("Single", ("Character", "Object")),
        ("Multiple", ("Character", "Object", "Char. + Obj.")),
        ("Scene", ("Character", "Object", "Char. + Obj.")),
    )
    aggregates: ClassVar[tuple[Aggregate, ...]] = (Aggregate("average", "Average over tasks", OMNICONTEXT_TASKS),)
    headline: ClassVar[Mapping[str, str]] = {"average.COM": "Average"}
    varying: ClassVar[Mapping[str, str]] = {"average.PF": "PF", "average.SC": "SC", "average.COM": "Average"}
    radar: ClassVar[tuple[tuple[str, str], ...]] = (("COM", "overall score"),)
    sorted_by: ClassVar[tuple[str, ...]] = ("COM",)
    english_view: ClassVar[bool] = True

    def check_judge(self, config: JudgeConfig) -> None:
        """Its scene wording is a question of its own."""

    def scene_prompt_following(self, item: Item, config: JudgeConfig) -> bool:
        """With `scene_pf`; the published code never uses that wording (docs/benchmarks.md 5)."""
        return config.scene_pf and item.scene


BENCHMARK = OmniContext()
OMNICONTEXT = BENCHMARK
