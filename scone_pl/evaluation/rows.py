"""The models of a table: the evaluated one, and others on the same items to compare it with."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.folder import name_of_scores
from scone_pl.evaluation.published import published, unique_names
from scone_pl.evaluation.records import Record, read_records
from scone_pl.evaluation.steps import compare_all
from scone_pl.evaluation.summary import Summary


@dataclass(frozen=True)
class ScoredModel:
    """A model's name and records."""

    name: str
    records: Sequence[Record]


def read_models(files: Sequence[str], benchmark: Benchmark, language: str | None) -> list[ScoredModel]:
    """Other models, by their files of scores; see `read_records` for what it raises."""
    return [ScoredModel(name_of_scores(Path(file)), read_records(file, benchmark, language)) for file in files]


def of_items(records: Sequence[Record], items: Collection[tuple[str, str]], source: str) -> list[Record]:
    """The records of the chosen items, so that rows of one table compare the same items.

    Raises:
        UserError: there is none; names `source`.
    """
    chosen = [record for record in records if (record["task_type"], str(record["key"])) in items]
    if not chosen:
        raise UserError(f"{source}: has no score of these items; judge them first")
    return chosen


def summarise(
    model: ScoredModel, others: Sequence[ScoredModel], benchmark: Benchmark, seed: int
) -> tuple[list[Summary], list[dict[str, Any]]]:
    """Statistics of a model and the others, under distinct names, and its paired comparisons with them.

    Args:
        model: the first row.
        others: further rows.
        benchmark: of all records.
        seed: of the bootstrap.
    """
    names = unique_names([one.name for one in (model, *others)], taken=published(benchmark).rows)
    named = [ScoredModel(name, one.records) for name, one in zip(names, (model, *others), strict=True)]
    summaries = [Summary.of(one.records, benchmark, one.name, seed=seed) for one in named]
    return summaries, compare_all(model.records, [(one.name, one.records) for one in named[1:]], benchmark, seed)


def name_of_checkpoint(checkpoint: str) -> str:
    """Name of a checkpoint folder; for `weights`, which training writes, that of its parent."""
    path = Path(checkpoint)
    return path.parent.name if path.name == "weights" and path.parent.name else path.name
