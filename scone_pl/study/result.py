"""The result of a study: all its runs as one JSON object, and the numbers read off it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scone_pl.errors import UserError
from scone_pl.evaluation.evaluator import Evaluator, Report, mean
from scone_pl.files import read_json
from scone_pl.study.evaluators import DEFAULT, evaluator_class
from scone_pl.study.intervals import NONE, Estimate, Variance, difference, estimate, variance_of_episodes
from scone_pl.study.spec import MINI, Study

_OF_A_RUN = ("seed", "evaluations", "seconds", "commit", "versions", "trained", "fit")
_OF_A_STUDY = ("title", "question", "findings", "answer", "baseline", "contrasts", "frontier", "paper_table")


class Row(NamedTuple):
    """An arm under one evaluation: a row of tables and plots."""

    label: str
    arm: str
    evaluation: str


class Result:
    """A result as stored; also those of older versions, which lack some keys."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        """`content`: see `collect` and `docs/evidence/*.json`."""
        self.content = content
        self.study: str = content.get("study") or content["experiment"]
        self.scale: str = content.get("scale", MINI)
        self.quick: bool = content["quick"]
        self.partial: bool = content.get("partial", False)
        """Whether only some of the study's arms have been run."""
        self.has_findings = not (self.quick or self.partial)
        """Whether the study's findings, written for all arms in full, apply."""
        self.arms: Mapping[str, Any] = content["arms"]
        self.evaluations: Mapping[str, Any] = content["evaluations"]

    @classmethod
    def read(cls, file: Path) -> Result:
        """From a JSON file.

        Raises:
            UserError: it holds no result.
        """
        content = read_json(file, dict)
        if missing := {"arms", "evaluations", "quick"} - content.keys():
            raise UserError(f"{file}: no result of a study; it lacks {', '.join(sorted(missing))}")
        return cls(content)

    def text(self, key: str) -> str:
        """A text of the study, such as its question; empty where there is none."""
        return (self.content.get(key) or "").strip()

    @property
    def runs(self) -> list[Mapping[str, Any]]:
        """All runs of all arms."""
        return [run for arm in self.arms.values() for run in arm["runs"]]

    @property
    def seeds(self) -> int:
        """Runs of the arm that has most."""
        return max(len(arm["runs"]) for arm in self.arms.values())

    def evaluator(self, evaluation: str) -> type[Evaluator]:
        """The class that made an evaluation's reports."""
        return evaluator_class(self.evaluations[evaluation].get("evaluator", DEFAULT))

    def of_kind(self, kind: str, *streams: str) -> list[str]:
        """Names of the evaluations of one kind, on some streams only if any are given."""
        return [
            name
            for name, settings in self.evaluations.items()
            if settings.get("kind", "score") == kind and (not streams or settings.get("stream", "test") in streams)
        ]

    def rows(self, evaluations: Sequence[str]) -> list[Row]:
        """Every arm under each of `evaluations`."""
        return [
            Row(" · ".join(p for p in (arm["label"], self.evaluations[name]["label"]) if p), key, name)
            for key, arm in self.arms.items()
            for name in evaluations
        ]

    def reports(self, arm: str, evaluation: str) -> list[Report]:
        """One for each seed."""
        return [run["evaluations"][evaluation] for run in self.arms[arm]["runs"]]

    def values(self, arm: str, evaluation: str, metric: str) -> list[float]:
        """One for each seed."""
        read = self._reader(evaluation, metric)
        return [read(report) for report in self.reports(arm, evaluation)]

    def estimate(self, arm: str, evaluation: str, metric: str) -> Estimate:
        """Mean and interval over seeds, and over episodes where their scores are stored."""
        parts = [self._by_episode(evaluation, metric, report) for report in self.reports(arm, evaluation)]
        return estimate(self.values(arm, evaluation, metric), _of_episodes(parts))

    def difference(
        self, one: str, other: str, evaluation: str, metric: str, other_evaluation: str = ""
    ) -> Estimate | None:
        """Arm `one` minus arm `other`, paired by seed; None if they share no two seeds.

        Args:
            one: an arm.
            other: another, or the same under `other_evaluation`.
            evaluation: its name.
            metric: of its evaluator.
            other_evaluation: of `other`; by default `evaluation`.
        """
        ours, theirs = (
            {run["seed"]: run["evaluations"][name] for run in self.arms[arm]["runs"]}
            for arm, name in ((one, evaluation), (other, other_evaluation or evaluation))
        )
        pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
        if len(pairs) < 2:
            return None
        read, read_other = (self._reader(name, metric) for name in (evaluation, other_evaluation or evaluation))
        parts = []
        for first, second in pairs:
            own = self._by_episode(evaluation, metric, first)
            others = self._by_episode(other_evaluation or evaluation, metric, second)
            parts.append(_minus(own, others))
        return difference([read(a) for a, _ in pairs], [read_other(b) for _, b in pairs], _of_episodes(parts))

    def layers(self, arm: str, evaluation: str) -> list[Mapping[str, Any]]:
        """Per seed: expert -> task -> measure -> a value for each layer."""
        return [report["layers"] for report in self.reports(arm, evaluation)]

    def _reader(self, evaluation: str, metric: str) -> Callable[[Report], float]:
        return self.evaluator(evaluation).metrics[metric]

    def _by_episode(self, evaluation: str, metric: str, report: Report) -> Mapping[str, Sequence[float]] | None:
        return self.evaluator(evaluation).by_episode(report, metric)

    @property
    def counts_episodes(self) -> bool:
        """Whether intervals include the draw of episodes."""
        scored = self.of_kind("score")
        return bool(scored) and all("episodes" in run["evaluations"][name] for run in self.runs for name in scored)

    @property
    def is_complete(self) -> bool:
        """Whether the reports have every number that this version shows."""
        try:
            for name in self.of_kind("score"):
                for metric in self.evaluator(name).metrics:
                    _ = [self.values(arm, name, metric) for arm in self.arms]
        except KeyError:
            return False
        return True


def _minus(
    one: Mapping[str, Sequence[float]] | None, other: Mapping[str, Sequence[float]] | None
) -> Mapping[str, Sequence[float]] | None:
    """Episode by episode; None where they are not as many."""
    if one is None or other is None or any(len(other.get(task, ())) != len(values) for task, values in one.items()):
        return None
    return {task: [a - b for a, b in zip(values, other[task], strict=True)] for task, values in one.items()}


def _of_episodes(seeds: Sequence[Mapping[str, Sequence[float]] | None]) -> Variance:
    """`variance_of_episodes`, 0 where a seed's episodes are not known."""
    known = [one for one in seeds if one is not None]
    return variance_of_episodes(known) if known and len(known) == len(seeds) else NONE


def layer_means(layers: Mapping[str, Any], expert: str, measure: str, tasks: Sequence[str]) -> list[float]:
    """For each layer the mean over `tasks` of one measure, of one seed's `Result.layers`."""
    return [mean(values) for values in zip(*(layers[expert][task][measure] for task in tasks), strict=True)]


def layer_estimates(
    layers: Sequence[Mapping[str, Any]], expert: str, measure: str, tasks: Sequence[str]
) -> list[Estimate]:
    """`layer_means` over seeds."""
    return [estimate(v) for v in zip(*(layer_means(one, expert, measure, tasks) for one in layers), strict=True)]


def collect(study: Study, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All runs of a study as one JSON object, see `docs/evidence/*.json`."""
    quick = runs[0]["quick"]
    arms: dict[str, Any] = {}
    for name, arm in study.arms.items():
        own = [run for run in runs if run["arm"] == name]
        if not own:
            continue
        shared = {key: own[0][key] for key in ("settings", "recipes", "training")}
        shared["settings"] = {k: v for k, v in shared["settings"].items() if k != "seed_everything"}
        kept = [{key: run[key] for key in _OF_A_RUN if key in run} for run in own]
        arms[name] = {"label": arm.label, "paper": arm.paper, **shared, "runs": kept}
    return {
        "study": study.name,
        "scale": study.scale,
        **{key: getattr(study, key) for key in _OF_A_STUDY},
        "quick": quick,
        "partial": len(arms) < len(study.arms),
        "evaluations": {name: one.settings for name, one in study.evaluations_of(quick=quick).items()},
        "arms": arms,
    }
