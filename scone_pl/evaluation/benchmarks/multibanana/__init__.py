"""MultiBanana (arXiv 2511.22989): 1 to 8 references, five criteria in one answer; docs/open_benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Aggregate, Benchmark, Question
from scone_pl.evaluation.benchmarks.multibanana.reader import (
    NUMBERS,
    STRUCTURES,
    TASKS,
    TWO,
    MultiBananaItem,
    read_sets,
    side_files,
)
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.scores import Row
from scone_pl.vlm.ratings import parse_labelled

LABELS = {
    "IA": "Instruction Alignment",
    "RC": "Reference Consistency",
    "BM": "Background-Subject Match",
    "PR": "Physical Realism",
    "VQ": "Visual Quality",
}
WEIGHTS = {"IA": 3, "RC": 3, "BM": 1, "PR": 1, "VQ": 1}
"""Of the paper's total; the released code averages the five equally."""
_STRUCTURE_TITLES = {"local": "local", "global": "global", "back": "background", "object": "objects"}


class MultiBanana(Benchmark):
    """One question an image; `Total` is the paper's weighted total, `Mean` that of the released code."""

    name: ClassVar[str] = "multibanana"
    title: ClassVar[str] = "MultiBanana"
    tasks: ClassVar[tuple[str, ...]] = TASKS
    heads: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = (
        ("1 reference", ("single",)),
        ("2 references", TWO),
        *((f"{n} references", STRUCTURES) for n in NUMBERS),
    )
    rated: ClassVar[tuple[str, ...]] = tuple(LABELS)
    rating_range: ClassVar[tuple[float, float]] = (1.0, 10.0)
    average_columns: ClassVar[tuple[str, ...]] = (*LABELS, "Total", "Mean")
    aggregates: ClassVar[tuple[Aggregate, ...]] = (
        Aggregate("two", "2 references, mean over tasks", TWO),
        *(
            Aggregate(structure, f"3 to 8, {title}, mean over numbers", tuple(f"{n}_{structure}" for n in NUMBERS))
            for structure, title in _STRUCTURE_TITLES.items()
        ),
    )
    note: ClassVar[str] = (
        "Total = (3 IA + 3 RC + BM + PR + VQ) / 9, as in the published rows; Mean, that of the five, is in the table "
        "per task and not comparable with them."
    )
    headline: ClassVar[Mapping[str, str]] = {
        "single.Total": "1 reference",
        "two.Total": "2 references",
        **{f"{structure}.Total": f"3 to 8, {title}" for structure, title in _STRUCTURE_TITLES.items()},
    }
    radar: ClassVar[tuple[tuple[str, str], ...]] = (("Total", "weighted total"),)
    radar_methods: ClassVar[tuple[str, ...]] = ("OmniGen2", "DreamOmni2", "Nano Banana (1/2026)")
    sorted_by: ClassVar[tuple[str, ...]] = ("Total", "Mean", "RC")
    judge: ClassVar[Mapping[str, Any]] = {
        "model": "Qwen/Qwen3-VL-8B-Instruct",
        "parameters": {"max_tokens": 2048},
    }
    published_items: ClassVar[Mapping[str, tuple[tuple[str, ...], int]]] = {
        "1 reference": (("single",), 264),
        "2 references": (TWO, 907),
        "3 to 8": (TASKS[1 + len(TWO) :], 2598),
    }
    preparation: ClassVar[Literal["jpeg", "file"]] = "file"

    def read(self, data: str | Path) -> list[Item]:
        """See `read_sets`."""
        return list(read_sets(self.data_file(data)))

    def inventory(self, data: str | Path, items: Sequence[Item]) -> list[str]:
        """Also what the files beside the sets hold, whose form is not published."""
        return [*super().inventory(data, items), *side_files(self.data_file(data), items)]

    def questions(self, item: Item, config: JudgeConfig) -> list[Question]:
        """All five criteria at once."""
        read = partial(parse_labelled, labels=LABELS, low=1, high=10)
        return [Question("RATE", "multibanana", {"instruction": item.instruction}, read, names=self.rated)]

    def record(self, item: Item, answers: Sequence[tuple[Question, Any]]) -> dict[str, Any]:
        """The criteria, and the set's difficulty."""
        difficulty = list(item.difficulty) if isinstance(item, MultiBananaItem) else []
        return {**super().record(item, answers), "difficulty": difficulty}

    def check_record(self, record: Mapping[str, Any], where: str) -> None:
        """Also the difficulty."""
        super().check_record(record, where)
        difficulty = record.get("difficulty") or []
        if not isinstance(difficulty, list) or not all(isinstance(one, str) for one in difficulty):
            raise UserError(f"{where}: `difficulty` must be a list of texts")

    def item_scores(self, record: Mapping[str, Any]) -> Row:
        """The criteria and both totals."""
        row = {name: float(record[name]) for name in LABELS}
        weighted = sum(weight * row[name] for name, weight in WEIGHTS.items()) / sum(WEIGHTS.values())
        return {**row, "Total": weighted, "Mean": sum(row.values()) / len(row)}

    def extra_tables(self, records: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[list[str]]]]:
        """Both totals of the sets with each difficulty, and without it."""
        complete = [record for record in records if self.is_complete(record)]
        categories = list(dict.fromkeys(one for record in complete for one in record.get("difficulty") or []))
        rows = [["Difficulty", "n", "Total", "Total without", "Mean", "Mean without"]]
        for category in sorted(categories):
            groups: tuple[list[Row], list[Row]] = ([], [])
            for record in complete:
                groups[category not in (record.get("difficulty") or [])].append(self.item_scores(record))
            cells = [_mean(group, name) for name in ("Total", "Mean") for group in groups]
            rows.append([category, str(len(groups[0])), *cells])
        return [("Difficulty", rows)] if categories else []


def _mean(rows: Sequence[Row], name: str) -> str:
    return f"{sum(row[name] for row in rows) / len(rows):.2f}" if rows else "-"


BENCHMARK = MultiBanana()
