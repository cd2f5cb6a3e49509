"""A world as an evaluator of studies: sampled images scored by its judge, or the similarity of layers."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_type_hints

import numpy as np

import scone_pl
from scone_pl.analysis import choice
from scone_pl.errors import UserError
from scone_pl.evaluation.evaluator import Column, E, Evaluator, Report, code_digest, mean, with_at_most
from scone_pl.evaluation.scores import SCONEEVAL_TASKS

if TYPE_CHECKING:
    from scone_pl.analysis.drawing import MapRow
    from scone_pl.model.config import BridgeConfig
    from scone_pl.sampling.settings import SamplingConfig
    from scone_pl.worlds.episode import Episode

PACKAGE = Path(scone_pl.__file__).parent
SAMPLING: dict[str, Any] = {"num_inference_steps": 12, "timestep_shift": 1.0}
GUIDANCE = {"text_scale": 1.0, "image_scale": 1.0}
"""How an evaluation samples unless its `sampling` says otherwise: fields of `SamplingConfig`; guidance under the names
that results are filed by."""
CODE = {
    "score": ("worlds/evaluate", "evaluation/scores"),
    "layers": ("worlds/layers", *choice.CODE),
}
"""Modules that compute a report, by its kind."""


def _score(name: str) -> Callable[[Report], float]:
    return lambda report: mean(task[name] for task in report["tasks"].values() if name in task)


def _overall(report: Report) -> float:
    composition, distinction = _score("COM")(report), _score("DIS")(report)
    return composition if distinction != distinction else (composition + distinction) / 2


def _failed(name: str) -> Callable[[Report], float]:
    """In percent of all images, whatever their task; scores are means over tasks instead."""
    return lambda report: 100.0 * report["failures"].get(name, 0) / report["pictures"]


def _choice(task: str) -> Callable[[Report], float]:
    return lambda report: 100.0 * report["choice"].get(task, float("nan"))


def _kept(name: str) -> Callable[[Report], float]:
    """Over the tasks that have distractors."""
    return lambda report: 100.0 * mean(k[name] for t, k in report["kept"].items() if t.startswith("distinction"))


EPISODE_WEIGHTS: Mapping[str, Mapping[str, float]] = {
    "COM": {"COM": 1.0},
    "DIS": {"DIS": 1.0},
    "overall": {"COM": 0.5, "DIS": 0.5},
    "choice": {"choice": 100.0},
    "choice / 10": {"choice": 10.0},
}
"""Metric -> what it takes of each of an episode's scores."""
CHOICE_OF_TASK = {f"choice_{task.removeprefix('distinction_')}": task for task in SCONEEVAL_TASKS[2:]}
"""Metric -> the only task that it takes choice of."""
FAILURES = ("exact", "redundancy", "omission", "blending", "wrong_subject", "distorted")
COMPOSITION = tuple(Column(name, name) for name in ("PF", "SC", "COM"))
SCORES = tuple(Column(name, name) for name in ("COM", "DIS", "overall"))
PRESENT = (
    Column("presence_recall", "present: recall", " %", interval=False),
    Column("presence_precision", "precision", " %", interval=False),
)
KEPT = (
    Column("precision", "kept: precision", " %", interval=False),
    Column("recall", "recall", " %", interval=False),
    Column("blocked", "blocked", " %", interval=False),
)


@dataclass(frozen=True, kw_only=True)
class WorldEvaluator(Evaluator):
    """Fixed episodes of a world."""

    kind: Literal["score", "layers"] = "score"
    """score: sampled and judged. layers: how well the similarity of every layer separates target tokens from others."""
    mask: Literal["trained", "off", "given"] = "trained"
    """trained: the bridge as the arm's last step has it, if it samples with it. off: none. given: `bridge` alone,
    whatever the weights were trained with."""
    bridge: dict[str, Any] = field(default_factory=dict)
    """Settings of the bridge that sampling overrides; with `mask: given`, all settings that are not the defaults."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Settings of `SamplingConfig` but for the bridge; those left out are `SAMPLING` and no guidance."""
    world: dict[str, Any] = field(default_factory=dict)
    """Settings of the world's config."""
    stream: Literal["test", "validation"] = "test"
    """Episodes to report by, or to choose by."""
    tasks: tuple[str, ...] = ()
    """Of SconeEval's; empty = all."""
    per_task: int = 32
    """Episodes of each task."""

    world_config: ClassVar[type]
    """The class of `world`."""
    code: ClassVar[tuple[str, ...]]
    """Modules that draw episodes and judge images."""
    metrics: ClassVar[Mapping[str, Callable[[Report], float]]] = {
        "COM": _score("COM"),
        "DIS": _score("DIS"),
        "overall": _overall,
        "COM_alone": lambda r: mean(t["COM"] for n, t in r["tasks"].items() if n.startswith("composition")),
        "PF": _score("PF"),
        "SC": _score("SC"),
        "presence_recall": lambda r: 10.0 * mean(t["DIS_recall"] for t in r["tasks"].values() if "DIS_recall" in t),
        "presence_precision": lambda r: 10.0 * mean(t["DIS_prec"] for t in r["tasks"].values() if "DIS_prec" in t),
        "choice": lambda report: 100.0 * mean(report["choice"].values()),
        **{metric: _choice(task) for metric, task in CHOICE_OF_TASK.items()},
        "exact": _failed("none"),
        "redundancy": _failed("redundancy"),
        "omission": _failed("omission"),
        "blending": _failed("blending"),
        "wrong_subject": _failed("wrong_subject"),
        "distorted": _failed("distorted"),
        "precision": _kept("precision"),
        "recall": _kept("recall"),
        "blocked": lambda report: 100.0 * report["blocked_share"] if report["mask"] else float("nan"),
        "cpu_seconds": lambda report: report.get("cpu_seconds", float("nan")),
        **choice.METRICS,
    }
    """Scores from 0 to 10 (COM_alone: of references with one subject each); the others are percentages: of references
    with several candidates (choice, of all tasks or one, see `judge.py`), of target subjects (presence_recall), of
    subjects that are present (presence_precision), of images (failures), of tokens (precision, recall, blocked).
    cpu_seconds: CPU time of sampling and decoding all images. Of kind layers: `analysis.choice.METRICS`."""
    compared: ClassVar[tuple[Column, ...]] = (*SCORES, Column("choice", "chosen, %"))
    plotted: ClassVar[tuple[str, ...]] = ("COM", "DIS")

    def __post_init__(self) -> None:
        from scone_pl.model.config import BridgeConfig

        hints = get_type_hints(type(self))
        for name in ("kind", "mask", "stream"):
            if (given := getattr(self, name)) not in (known := get_args(hints[name])):
                raise UserError(f"{name} is {given!r}; choose from {', '.join(map(repr, known))}")
        for name, one in (("world", self.world_config), ("bridge", BridgeConfig)):
            if unknown := getattr(self, name).keys() - {f.name for f in fields(one)}:
                raise UserError(f"{name} has no {', '.join(sorted(unknown))}: see {one.__name__}")
        if unknown := set(self.tasks) - set(SCONEEVAL_TASKS):
            raise UserError(f"tasks has no {', '.join(sorted(unknown))}: choose from {', '.join(SCONEEVAL_TASKS)}")
        if self.bridge and (self.kind == "layers" or self.mask == "off"):
            raise UserError("bridge changes nothing where kind is layers or mask is off; leave it out")
        if self.mask == "given" and not self.bridge:
            raise UserError("mask is given, but bridge is not; say its layers and threshold")
        if self.per_task < 1:
            raise UserError(f"per_task is {self.per_task}; it must be at least 1")
        self._sampling()
        if self.sampling and self.kind == "layers":
            raise UserError("sampling changes nothing where kind is layers; leave it out")
        self.world_config(**self.world)

    @classmethod
    @abstractmethod
    def episodes(
        cls, per_task: int, *, stream: str, tasks: Sequence[str], world: Mapping[str, Any]
    ) -> Sequence[Episode]:
        """The fixed episodes of a stream, `per_task` of each task; `world` as in the settings."""

    @property
    def identity(self) -> dict[str, Any]:
        # A list where nothing is given, as it was before there was a choice.
        sampling: Any = asdict(self._sampling()) if self.sampling else [SAMPLING, GUIDANCE]
        made = {"world": asdict(self.world_config(**self.world)), "sampling": sampling}
        sources = {name: code_digest(PACKAGE / f"{name}.py") for name in (*CODE[self.kind], *self.code)}
        return {**vars(self), **made, "label": None, "sources": sources}

    def shortened(self: E, per_task: int) -> E:
        return with_at_most(self, per_task=per_task)

    def check(self, bridge: Mapping[str, Any] | None, source: str) -> None:
        self._config(bridge, source)

    def _bridge(self, trained: Mapping[str, Any] | None, source: str) -> BridgeConfig | None:
        """What to sample with, if the weights are sampled with the bridge `trained`."""
        from scone_pl.model.config import BridgeConfig

        if self.mask == "given":
            trained = {}
        elif self.bridge and trained is None:
            raise UserError(
                f"{source}: bridge {self.bridge} overrides settings of a bridge that this does not sample with; "
                "leave it out"
            )
        try:
            return None if trained is None or self.mask == "off" else BridgeConfig(**{**trained, **self.bridge})
        except (TypeError, ValueError) as error:
            raise UserError(f"{source}: {error}") from None

    def _config(self, trained: Mapping[str, Any] | None, source: str) -> SamplingConfig:
        """How weights are sampled that are sampled with the bridge `trained`."""
        bridge = self._bridge(trained, source)
        try:
            return dataclasses.replace(self._sampling(), bridge=bridge)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    def _sampling(self) -> SamplingConfig:
        """Without the bridge.

        Raises:
            UserError: an unknown setting, or a value out of its range.
        """
        from scone_pl.sampling.settings import SamplingConfig

        given = dict(self.sampling)
        known = {f.name for f in fields(SamplingConfig)} - {"bridge", "height", "width", "seed"}
        if unknown := given.keys() - known:
            raise UserError(f"sampling has no {', '.join(sorted(unknown))}: choose from {', '.join(sorted(known))}")
        guidance = {"guidance_scale": GUIDANCE["text_scale"], "image_guidance_scale": GUIDANCE["image_scale"]}
        return SamplingConfig(**{**SAMPLING, **guidance, **given})

    def evaluate(self, weights: Path, folder: Path) -> dict[str, Any]:
        """See `evaluate.evaluate` and `layers.layers_report`; items are left out.

        Raises:
            UserError: it overrides settings of a bridge that the weights are not sampled with.
        """
        from scone_pl.worlds.evaluate import bridge_of, evaluate

        tasks = self.tasks or SCONEEVAL_TASKS
        episodes = self.episodes(self.per_task, stream=self.stream, tasks=tasks, world=self.world)
        if self.kind == "layers":
            from scone_pl.worlds.layers import examples, layers_report

            return {**layers_report(weights, episodes), "examples": examples(weights, episodes)}
        trained = bridge_of(weights)
        config = self._config(dataclasses.asdict(trained) if trained else None, str(weights))
        report, _ = evaluate(weights, episodes, config, progress=False)
        del report["items"], report["checkpoint"]
        return report

    @classmethod
    def by_episode(cls, report: Report, metric: str) -> Mapping[str, Sequence[float]] | None:
        scores, weights = report.get("episodes"), EPISODE_WEIGHTS.get(metric)
        if scores and metric == "overall" and "DIS" not in scores:
            weights = EPISODE_WEIGHTS["COM"]  # as `_overall`
        if scores and (task := CHOICE_OF_TASK.get(metric, "")) in scores.get("choice", ()):
            return {task: [100.0 * value for value in scores["choice"][task]]}
        if not scores or not weights or weights.keys() - scores.keys():
            return None
        parts: dict[str, np.ndarray] = {}
        for score, weight in weights.items():
            for task, values in scores[score].items():
                parts[task] = parts.get(task, 0.0) + weight / len(scores[score]) * np.array(values)
        return {task: values.tolist() for task, values in parts.items()}

    @classmethod
    def tables(cls, reports: Sequence[Report]) -> list[tuple[str, tuple[Column, ...]]]:
        scores = (*SCORES, Column("choice", "chosen", " %"), *PRESENT, *KEPT)
        names = ("target only", *(name.replace("_", " ") for name in FAILURES[1:]))
        return [
            ("ours", scores if any(report["choice"] for report in reports) else COMPOSITION),
            ("images", tuple(Column(f, n, " %", interval=False) for f, n in zip(FAILURES, names, strict=True))),
        ]

    @classmethod
    def maps(cls, settings: Mapping[str, Any], label: str, report: Report) -> list[MapRow]:
        from scone_pl.worlds.maps import map_row

        single = [example for example in report["examples"] if "single" in example["task"]]
        return [map_row(label, example, cls.episode_of(example["key"], settings["world"])) for example in single]

    @classmethod
    @abstractmethod
    def episode_of(cls, key: str, world: Mapping[str, Any]) -> Episode:
        """The episode with this key; `world` as in the settings."""

    @classmethod
    def summary(cls, report: Report) -> str:
        return "layers" if "layers" in report else super().summary(report)
