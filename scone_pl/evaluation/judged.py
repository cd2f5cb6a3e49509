"""Benchmarks as evaluators of studies: the verb `evaluate` in a process of its own, then its scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import scone_pl
from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.benchmarks.micon import BENCHMARK as MICON
from scone_pl.evaluation.benchmarks.multibanana import BENCHMARK as MULTIBANANA
from scone_pl.evaluation.benchmarks.omnicontext import OMNICONTEXT
from scone_pl.evaluation.benchmarks.sconeeval import SCONEEVAL
from scone_pl.evaluation.evaluator import Column, Evaluator, Report, code_digest, mean, with_at_most
from scone_pl.evaluation.folder import EvaluationFolder
from scone_pl.evaluation.judge_config import JudgeConfig, JudgeOptions
from scone_pl.evaluation.records import read_records
from scone_pl.evaluation.summary import Summary
from scone_pl.files import read_json

PACKAGE = Path(scone_pl.__file__).parent
CODE = ("evaluation/scores", "evaluation/composition", "evaluation/groups", "evaluation/calls", "vlm/parsing")
"""Modules that decide scores, given images and a judge."""
TRANSPORT = (
    *("base_url", "api_key_env", "concurrency", "timeout", "max_tries", "first_wait", "longest_wait", "stop_after"),
    *("retry_failed", "prices"),
)
"""Settings of the judge that decide no score."""
J = TypeVar("J", bound="JudgedEvaluator")


def _average(name: str, benchmark: Benchmark) -> Callable[[Report], float]:
    """The benchmark's average; of a part of its tasks the mean over them, weighted as in the average."""
    by_items = any(one.name == "average" and one.weighting == "items" for one in benchmark.aggregates)

    def read(report: Report) -> float:
        scores: dict[str, float] = report["scores"]
        if f"average.{name}" in scores:
            return scores[f"average.{name}"]
        parts: list[tuple[float, int]] = [
            (scores[f"{task}.{name}"], report["completeness"][task]["used"] if by_items else 1)
            for task in benchmark.tasks
            if f"{task}.{name}" in scores
        ]
        whole = sum(weight for _, weight in parts)
        total: float = sum(value * weight for value, weight in parts)
        return total / whole if whole else float("nan")

    return read


def _score(column: str) -> Callable[[Report], float]:
    return lambda report: report["scores"].get(column, float("nan"))


def _complete(report: Report) -> float:
    return 100.0 * float(report["complete"])


def _fault(name: str) -> Callable[[Report], float]:
    return lambda report: 100.0 * mean(task[name] for task in report["faults"].values())


@dataclass(frozen=True, kw_only=True)
class JudgedEvaluator(Evaluator):
    """A benchmark's items, generated and judged by a vision-language model."""

    data: str = ""
    """Folder of the benchmark in its published layout."""
    rounds: int = 3
    """Samplings of every image."""
    scorings: int = 3
    """Judgings of every image."""
    tasks: tuple[str, ...] = ()
    """Only these; empty = all."""
    limit: int = 0
    """Maximum number of items of each task; 0 = all."""
    language: str = ""
    """Only items in this language, such as en."""
    mask: Literal["off", "trained"] = "off"
    """off: sampled without a mask, as the release does. trained: with the bridge that the weights were trained with."""
    bridge: dict[str, Any] = field(default_factory=dict)
    """With `mask: trained`, settings of the bridge that sampling overrides."""
    judge: dict[str, Any] = field(default_factory=dict)
    """Settings of `JudgeConfig`."""
    predict: tuple[str, ...] = ()
    """Arguments for the verb `predict`, such as --trainer.devices 1."""
    min_complete: float = 0.99
    """Least fraction of records with all their scores; below it, the run fails, and asks again when it is repeated."""

    benchmark: ClassVar[Benchmark]
    code: ClassVar[tuple[str, ...]] = ()
    """Further modules that decide its scores."""

    def __post_init__(self) -> None:
        if unknown := self.judge.keys() - {f.name for f in fields(JudgeConfig)}:
            raise UserError(f"judge has no {', '.join(sorted(unknown))}: see JudgeConfig")
        JudgeOptions(**self.judge)
        self.benchmark.check_tasks(self.tasks)
        if self.mask not in ("off", "trained"):
            raise UserError(f"mask is {self.mask!r}; choose from 'off', 'trained'")
        if self.bridge and self.mask == "off":
            raise UserError("bridge changes nothing where mask is off; set mask to trained, or leave it out")
        for name, least in (("rounds", 1), ("scorings", 1), ("limit", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    def check_inputs(self, source: str) -> None:
        if not self.data or not Path(self.data).is_dir():
            name = self.name
            raise UserError(
                f"{source}: data is {self.data!r}, no folder with the published {self.benchmark.title}; give "
                f"--evaluators '{{{name}: {{data: FOLDER}}}}'"
            )
        try:
            self.benchmark.data_file(self.data)
            config = JudgeOptions(**self.judge).resolved(self.benchmark.judge)
            self.benchmark.check_judge(config)
            config.key()
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    @property
    def identity(self) -> dict[str, Any]:
        judge = {name: value for name, value in self.judge.items() if name not in TRANSPORT}
        content = self.benchmark.digest(self.data)
        modules = (*CODE, f"evaluation/benchmarks/{self.benchmark.name}/__init__", *self.code)
        sources = {name: code_digest(PACKAGE / f"{name}.py") for name in modules}
        return {**self.settings, "label": None, "data": content, "judge": judge, "sources": sources}

    def shortened(self: J, per_task: int) -> J:
        short = with_at_most(self, rounds=1, scorings=1)
        return type(self)(**{**vars(short), "limit": min(per_task, self.limit or per_task)})

    def command(self, weights: Path, folder: Path) -> list[str]:
        """The arguments of `python -m scone_pl` that evaluate a checkpoint folder."""
        options: dict[str, Any] = {
            "benchmark": self.benchmark.name,
            "data": self.data,
            "checkpoint": str(weights),
            "output": str(folder),
            "name": " ".join(part.name for part in folder.parents[2:0:-1]),  # arm and seed
            "rounds": self.rounds,
            "scorings": self.scorings,
        }
        options |= {"tasks": list(self.tasks)} if self.tasks else {}
        limits = ("limit", "language", "max_references")
        options |= {name: value for name in limits if (value := getattr(self, name, None))}
        options |= {f"judge.{name}": value for name, value in self.judge.items()}
        typed = [part for name, value in options.items() for part in (f"--{name}", _spelled(value))]
        bridge = self._bridge(weights)
        more = ["--model.init_args.sampling.bridge", json.dumps(bridge)] if bridge else []
        more += self.predict
        return ["evaluate", *typed, *(["--", *more] if more else [])]

    def _bridge(self, weights: Path) -> dict[str, Any] | None:
        if self.mask == "off":
            return None
        file = weights / "training.json"
        trained = read_json(file, dict).get("bridge") if file.is_file() else None
        if trained is None:
            raise UserError(f"{weights}: mask is trained, but these weights were trained without a bridge")
        return {**trained, **self.bridge}

    def evaluate(self, weights: Path, folder: Path) -> dict[str, Any]:
        """See `Evaluator.evaluate`.

        Returns:
            `scores` (means over samplings and scorings), `faults`, `completeness`, `intervals` (over items) and
            `provenance` (judge, prompts, dates, settings of the images).

        Raises:
            UserError: `evaluate` failed; or too few records have all their scores.
        """
        from scone_pl.training.chain import run_in_own_process

        if status := run_in_own_process(self.command(weights, folder)):
            raise UserError(f"{folder}: evaluate ended with status {status}, see above; run the same command to resume")
        records = read_records(EvaluationFolder(folder).scores, self.benchmark, self.language or None)
        summary = Summary.of(records, self.benchmark, weights.parent.name)
        complete = 1 - summary.num_incomplete / len(records)
        if complete < self.min_complete:
            raise UserError(
                f"{folder}: {complete:.1%} of the records have all their scores, fewer than min_complete "
                f"{self.min_complete:.1%}; run the same command to ask again"
            )
        everything = summary.as_dict()
        kept = ("faults", "completeness", "intervals", "provenance")
        return {"scores": dict(summary.mean), "complete": complete, **{name: everything[name] for name in kept}}


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class SconeEvalEvaluator(JudgedEvaluator):
    """SconeEval."""

    name: ClassVar[str] = "sconeeval"
    benchmark: ClassVar[Benchmark] = SCONEEVAL
    metrics: ClassVar[Mapping[str, Callable[[Report], float]]] = {
        **{name: _average(name, SCONEEVAL) for name in ("PF", "SC", "COM", "DIS", "DIS_prec", "DIS_recall")},
        "overall": _score("overall"),
        "redundancy": _fault("redundancy"),
        "omission": _fault("omission"),
        "complete": _complete,
    }
    """Scores from 0 to 10; redundancy and omission in percent of the distinction items, complete of the records."""
    compared: ClassVar[tuple[Column, ...]] = tuple(Column(name, name) for name in ("COM", "DIS", "overall"))
    plotted: ClassVar[tuple[str, ...]] = ("COM", "DIS")

    @classmethod
    def tables(cls, reports: Sequence[Report]) -> list[tuple[str, tuple[Column, ...]]]:
        scores = tuple(Column(name, name) for name in ("PF", "SC", "COM", "DIS", "overall"))
        percentages = ("redundancy", "omission", "complete")
        return [("ours", scores), ("images", tuple(Column(name, name, " %") for name in percentages))]


class OmniContextEvaluator(JudgedEvaluator):
    """OmniContext; its overall is COM."""

    name: ClassVar[str] = "omnicontext"
    benchmark: ClassVar[Benchmark] = OMNICONTEXT
    metrics: ClassVar[Mapping[str, Callable[[Report], float]]] = {
        **{name: _average(name, OMNICONTEXT) for name in ("PF", "SC", "COM")},
        "overall": _average("COM", OMNICONTEXT),
        "complete": _complete,
    }
    """Scores from 0 to 10; complete in percent of the records."""
    compared: ClassVar[tuple[Column, ...]] = tuple(Column(name, name) for name in ("PF", "SC", "overall"))
    plotted: ClassVar[tuple[str, ...]] = ("PF", "SC")

    @classmethod
    def tables(cls, reports: Sequence[Report]) -> list[tuple[str, tuple[Column, ...]]]:
        return [("ours", (*cls.compared, Column("complete", "complete", " %", interval=False)))]


class MiconEvaluator(JudgedEvaluator):
    """MICON-Bench."""

    name: ClassVar[str] = "micon"
    benchmark: ClassVar[Benchmark] = MICON
    code: ClassVar[tuple[str, ...]] = ("evaluation/benchmarks/micon/checkpoints", "vlm/ratings")
    metrics: ClassVar[Mapping[str, Callable[[Report], float]]] = {
        **{name: _average(name, MICON) for name in MICON.average_columns},
        "Score / 10": lambda report: _average("Score", MICON)(report) / 10,
        "complete": _complete,
    }
    """Score and dimensions from 0 to 100, complete in percent of the records."""
    compared: ClassVar[tuple[Column, ...]] = (Column("Score", "Score"),)
    plotted: ClassVar[tuple[str, ...]] = ("Score / 10",)

    @classmethod
    def tables(cls, reports: Sequence[Report]) -> list[tuple[str, tuple[Column, ...]]]:
        scores = (Column(name, name) for name in MICON.average_columns)
        return [("ours", (*scores, Column("complete", "complete", " %", interval=False)))]


@dataclass(frozen=True, kw_only=True)
class MultiBananaEvaluator(JudgedEvaluator):
    """MultiBanana; its columns are means over the tasks that were evaluated."""

    max_references: int = 0
    """Only sets with at most this many references; 0 = all."""

    name: ClassVar[str] = "multibanana"
    benchmark: ClassVar[Benchmark] = MULTIBANANA
    code: ClassVar[tuple[str, ...]] = ("evaluation/benchmarks/multibanana/reader", "vlm/ratings")
    metrics: ClassVar[Mapping[str, Callable[[Report], float]]] = {
        **{name: _average(name, MULTIBANANA) for name in MULTIBANANA.average_columns},
        **{title: _score(column) for column, title in MULTIBANANA.headline.items()},
        "complete": _complete,
    }
    """From 1 to 10 (totals of groups of tasks: `Total`); complete in percent of the records."""
    compared: ClassVar[tuple[Column, ...]] = tuple(Column(name, name) for name in ("Total", "Mean"))
    plotted: ClassVar[tuple[str, ...]] = ("Total", "RC")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_references < 0:
            raise UserError(f"max_references is {self.max_references}; it must be at least 0")

    @classmethod
    def tables(cls, reports: Sequence[Report]) -> list[tuple[str, tuple[Column, ...]]]:
        scores = (Column(name, name) for name in MULTIBANANA.average_columns)
        groups = tuple(Column(title, title) for title in MULTIBANANA.headline.values())
        return [("ours", (*scores, Column("complete", "complete", " %", interval=False))), ("Total", groups)]
