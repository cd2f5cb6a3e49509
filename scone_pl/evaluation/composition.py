"""What SconeEval and OmniContext share: PF and SC of every image, and their geometric mean COM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from scone_pl.evaluation.benchmark import Benchmark, Question
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.jsonl_items import jsonl_file, read_jsonl
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.scores import COMPOSITION_COLUMNS, Row, item_scores
from scone_pl.vlm.parsing import parse_score


class CompositionBenchmark(Benchmark):
    """A `data.jsonl` whose images are rated for prompt following (PF) and subject consistency (SC)."""

    rated: ClassVar[tuple[str, ...]] = ("PF", "SC")
    average_columns: ClassVar[tuple[str, ...]] = COMPOSITION_COLUMNS
    radar_methods: ClassVar[tuple[str, ...]] = ("BAGEL", "OmniGen2", "Echo-4o", "Scone")

    def data_file(self, data: str | Path) -> Path:
        """See `jsonl_file`."""
        return jsonl_file(data)

    def read(self, data: str | Path) -> list[Item]:
        """See `read_jsonl`."""
        return read_jsonl(self, data)

    def scene_prompt_following(self, item: Item, config: JudgeConfig) -> bool:
        """Whether PF has its scene wording."""
        return False

    def questions(self, item: Item, config: JudgeConfig) -> list[Question]:
        """PF and SC, in the published order."""
        fields = {"instruction": item.instruction, "references": str(len(item.images))}
        following = "_pf_scene" if self.scene_prompt_following(item, config) else "_pf"
        consistency = "_sc_scene" if item.scene else "_sc"
        return [
            Question("PF", self.name + following, fields, parse_score),
            Question("SC", self.name + consistency, fields, parse_score),
        ]

    def item_scores(self, record: Mapping[str, Any]) -> Row:
        """PF, SC and COM (docs/benchmarks.md 4)."""
        return item_scores(record)
