"""What an experiment is: a YAML file under `experiments/ablations/mini/` (keys: the fields of `Experiment`)."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml

import scone_pl
from scone_pl.errors import UserError
from scone_pl.worlds.shapes.episode import TASKS
from scone_pl.worlds.shapes.world import WorldConfig

FOLDER = Path("experiments/ablations/mini")
PACKAGE = Path(scone_pl.__file__).parent
SAMPLING = {"num_inference_steps": 12, "timestep_shift": 1.0}
GUIDANCE = {"text_scale": 1.0, "image_scale": 1.0}
"""How every evaluation samples: fields of `SamplingConfig` and of its `GuidanceConfig`."""
LOOKING = {
    "score": ("worlds/shapes/evaluate", "worlds/shapes/judge", "evaluation/scores"),
    "layers": ("worlds/shapes/layers", "analysis/measures", "analysis/similarity"),
}
"""Modules that make an evaluation's numbers, by its kind; `WORLD` makes the episodes of both."""
WORLD = tuple(f"worlds/shapes/{name}" for name in ("world", "episode", "shapes", "questions"))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One look at the weights of an arm."""

    kind: Literal["score", "layers"] = "score"
    """score: sampled and judged. layers: how well the similarity of every layer tells meant tokens from others."""
    mask: Literal["trained", "off"] = "trained"
    """trained: the bridge as the arm's last step has it, if it samples with it. off: none."""
    bridge: dict[str, Any] = field(default_factory=dict)
    """Settings that sampling changes in the bridge."""
    world: dict[str, Any] = field(default_factory=dict)
    """Settings of `WorldConfig`."""
    stream: Literal["test", "validation"] = "test"
    """Episodes to report by, or to choose by."""
    tasks: tuple[str, ...] = ()
    """Of `episode.TASKS`; empty = all."""
    per_task: int = 32
    """Episodes of each task."""
    label: str = ""
    """For tables and plots, where an experiment has several."""

    def __post_init__(self) -> None:
        from scone_pl.model.config import BridgeConfig

        hints = get_type_hints(type(self))
        for name in ("kind", "mask", "stream"):
            if (given := getattr(self, name)) not in (known := get_args(hints[name])):
                raise UserError(f"{name} is {given!r}; choose from {', '.join(map(repr, known))}")
        for name, one in (("world", WorldConfig), ("bridge", BridgeConfig)):
            if unknown := getattr(self, name).keys() - {f.name for f in fields(one)}:
                raise UserError(f"{name} has no {', '.join(sorted(unknown))}: see {one.__name__}")
        if unknown := set(self.tasks) - set(TASKS):
            raise UserError(f"tasks has no {', '.join(sorted(unknown))}: choose from {', '.join(TASKS)}")
        if self.bridge and (self.kind == "layers" or self.mask == "off"):
            raise UserError("bridge changes nothing where kind is layers or mask is off; leave it out")
        WorldConfig(**self.world)

    @property
    def facts(self) -> dict[str, Any]:
        """What decides its numbers, besides the weights."""
        made = {"world": asdict(WorldConfig(**self.world)), "sampling": [SAMPLING, GUIDANCE]}
        sources = {name: _code(PACKAGE / f"{name}.py") for name in (*LOOKING[self.kind], *WORLD)}
        return {**vars(self), **made, "label": None, "sources": sources}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train, or the finished runs of another experiment's arm to look at again."""

    label: str
    """For tables and plots."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Laid over the experiment's recipe."""
    weights_of: tuple[str, ...] | None = None
    """(experiment, arm) whose weights are looked at, or (experiment, arm, step of its chain); nothing is trained."""
    weights: str = ""
    """Folder whose weights are looked at; nothing is trained, and all seeds are one."""
    untrained: bool = False
    """The weights that the trained arms start from are looked at."""
    paper: str = ""
    """Row of the paper's table that this is the twin of."""

    @property
    def trained(self) -> bool:
        """Whether there is anything to train."""
        return not (self.weights or self.weights_of or self.untrained)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A pre-stated comparison."""

    name: str
    """Of the file, too."""
    title: str
    question: str
    """What is compared and what we expect, written down before the runs."""
    arms: dict[str, Arm]
    """By name."""
    evaluations: dict[str, Evaluation]
    """By name; every arm gets all of them."""
    recipes: tuple[str, ...] = ()
    """`--config` files that all arms share."""
    init_from: str = ""
    """Weights that all trained arms start from."""
    init_of: tuple[str, ...] = ()
    """(experiment, arm) whose weights of the same seed they start from instead, so that intervals cover that training
    too."""
    prepare: tuple[str, ...] = ()
    """Recipes that must have been run before (their results are shared by experiments); `a b` = a under b."""
    baseline: str = ""
    """Arm that the others are compared with, paired by seed."""
    contrasts: tuple[tuple[str, str], ...] = ()
    """(evaluation, another): what is compared within every arm, paired by seed."""
    paper_table: str = ""
    """Key in `docs/evidence/published.yaml`."""
    first_seed: int = 0
    """Number of the first seed; experiments that choose settings use seeds that no other one reports."""
    quick: dict[str, Any] = field(default_factory=dict)
    """For a first look: `steps` (share of every chain step's), `per_task` (in place of that of evaluations)."""
    answer: str = ""
    """What came out, in a sentence for the page's head; placeholders as in `findings`."""
    findings: str = ""
    """What came out, written after the runs; `{arm.metric}` stands for mean and interval."""

    def __post_init__(self) -> None:
        file = FOLDER / f"{self.name}.yaml"
        if not self.arms:
            raise UserError(f"{file}: has no arms")
        if self.baseline and self.baseline not in self.arms:
            raise UserError(f"{file}: baseline {self.baseline} is none of its arms, {', '.join(self.arms)}")
        if unknown := {look for pair in self.contrasts for look in pair} - self.evaluations.keys():
            raise UserError(f"{file}: contrasts name {', '.join(sorted(unknown))}, none of its evaluations")
        if self.init_of and (len(self.init_of) != 2 or self.init_of[0] == self.name):
            raise UserError(f"{file}: init_of is {list(self.init_of)}; it must be [another experiment, its arm]")
        for name, arm in self.arms.items():
            if arm.weights_of is not None and len(arm.weights_of) not in (2, 3):
                given = list(arm.weights_of)
                raise UserError(f"{file}: {name}.weights_of is {given}; it must be [experiment, arm] or with a step")
        before, behind = self.init_of, [self.name]
        while before and before[0] not in behind:
            behind.append(before[0])
            before = read_yaml(_file_of(before[0])).get("init_of")
        if before:
            raise UserError(f"{file}: init_of goes round, {' from '.join([*behind, before[0]])}; end it in init_from")

    def arm(self, name: str) -> Arm:
        """The arm called `name`.

        Raises:
            UserError: there is none.
        """
        if name not in self.arms:
            raise UserError(f"{self.name} has no arm {name}: choose from {', '.join(self.arms)}")
        return self.arms[name]

    @classmethod
    def read(cls, name: str) -> Experiment:
        """The experiment called `name`.

        Raises:
            UserError: no such file, an unknown or missing key, or one whose value makes no sense.
        """
        file = _file_of(name)
        content = read_yaml(file)
        try:
            content["arms"] = {key: Arm(**_tupled(arm, "weights_of")) for key, arm in content["arms"].items()}
            looks = content.get("evaluations") or {"main": {}}
            content["evaluations"] = {key: _look(file, key, look or {}) for key, look in looks.items()}
            content["contrasts"] = tuple(map(tuple, content.get("contrasts", ())))
            return cls(name=name, **_tupled(content, "recipes", "prepare", "init_of"))
        except (TypeError, KeyError, AttributeError) as error:
            error = f"no key {error}" if isinstance(error, KeyError) else error
            names = ", ".join(f.name for f in fields(cls))
            raise UserError(f"{file}: {error}; an experiment has the keys {names}") from None

    @staticmethod
    def names() -> list[str]:
        """All experiments; other files in the folder are recipes."""
        return sorted(f.stem for f in FOLDER.glob("*.yaml") if "arms" in read_yaml(f))

    def settings_of(self, arm: str, seed: int, *, quick: bool = False) -> dict[str, Any]:
        """What is laid over the recipes for one run; the seed decides data order, noise levels and noise."""
        settings = self.arms[arm].settings
        if quick and "chain" in settings:
            share = self.quick.get("steps", 0.25)
            settings = {**settings, "chain": [_shortened(step, share) for step in settings["chain"]]}
        return merged(settings, {"seed_everything": 1000 + seed, "data": {"seed": 1000 + seed}})

    def identity(self, arm: str, weights: str, *, quick: bool = False) -> str:
        """Changes when anything changes that decides the weights of a run (but its seed); names its folder.

        Args:
            arm: its name.
            weights: identity of the weights it starts from.
            quick: see `quick`.
        """
        recipes = [Path(recipe).read_text() for recipe in self.recipes]
        return digest([recipes, self.settings_of(arm, 0, quick=quick), weights])

    def looks_identity(self, *, quick: bool = False) -> str:
        """Changes when anything changes that decides the evaluations' numbers; names the file of results."""
        return digest([{name: look.facts for name, look in self.looks(quick=quick).items()}])

    def looks(self, *, quick: bool = False) -> dict[str, Evaluation]:
        """`evaluations`, smaller in a first look."""
        if not quick:
            return self.evaluations
        most = self.quick.get("per_task", 16)
        return {name: replace(look, per_task=min(most, look.per_task)) for name, look in self.evaluations.items()}


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`one` with the values of `other`, mappings within mappings merged alike."""
    result = dict(one)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def read_yaml(file: str | Path) -> dict[str, Any]:
    """A file of keys and values; an empty one has none.

    Raises:
        UserError: it is not there, or is something else.
    """
    try:
        content = yaml.safe_load(Path(file).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict | None):
        raise UserError(f"{file}: must hold `key: value` lines")
    return content or {}


def digest(facts: Any) -> str:
    """Of anything that JSON can say."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]


def _shortened(step: dict[str, Any], share: float) -> dict[str, Any]:
    steps = max(1, round(share * step["trainer"]["max_steps"]))
    return merged(step, {"trainer": {"max_steps": steps}})


def _file_of(name: str) -> Path:
    file = FOLDER / f"{name}.yaml"
    if not file.is_file():
        raise UserError(f"no experiment {name} in {FOLDER}: choose from {', '.join(Experiment.names())}")
    return file


def _look(file: Path, name: str, content: dict[str, Any]) -> Evaluation:
    try:
        return Evaluation(**_tupled(content, "tasks"))
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: evaluations.{name}: {error}") from None


@cache
def _code(file: Path) -> str:
    """Of a module; comments and layout do not count."""
    return digest(ast.dump(ast.parse(file.read_text())))


def _tupled(content: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: tuple(value) if key in names and value else value for key, value in content.items()}
