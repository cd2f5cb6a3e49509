"""What a study is: a YAML file such as those in `experiments/studies/` (keys: the fields of `Study`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from scone_pl import files
from scone_pl.errors import UserError
from scone_pl.evaluation.evaluator import Evaluator, digest
from scone_pl.study.evaluators import evaluator_of

FOLDER = Path("experiments/studies")
MINI = "mini"
"""The scale of the keys at the top of a study's file; `scales` holds the others."""
INHERITED = ("title", "question", "paper_table", "baseline", "first_seed")
"""Keys that a scale takes from the top of the file unless it has its own."""
OF_AN_ARM = ("label", "paper")
"""The same of an arm with the same name."""
DEFAULTS = {MINI: {"seeds": 5, "jobs": 2, "threads": 1}}
OTHER_DEFAULTS = {"seeds": 1, "jobs": 1, "threads": 0}


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the command line adds to a study."""

    evaluators: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of an evaluator -> settings for every evaluation that uses it."""
    fit: tuple[str, ...] = ()
    """Arguments for every `fit`, after its recipes; they decide weights like any setting."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train, or finished runs of another arm to evaluate."""

    label: str
    """For tables and plots."""
    recipes: tuple[str, ...] = ()
    """`--config` files laid over the study's."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Laid over the recipes."""
    weights_of: tuple[str, ...] | None = None
    """(study, arm) or (study, arm, step of its chain) whose weights are evaluated; nothing is trained."""
    weights: str = ""
    """Checkpoint folder that is evaluated; nothing is trained, and all seeds are one."""
    untrained: bool = False
    """The weights that the trained arms start from are evaluated."""
    paper: str = ""
    """Row of the paper's table that corresponds to this arm."""

    @property
    def trained(self) -> bool:
        """Whether there is anything to train."""
        return not (self.weights or self.weights_of or self.untrained)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, the arms that are compared to answer it, and what is evaluated."""

    file: Path
    """Where it was read; `[study, arm]` names other studies of the same folder."""
    scale: str = MINI
    """mini, or a key of `scales` in the file."""
    overrides: Overrides = field(default_factory=Overrides)

    title: str
    question: str
    """What is compared and what is expected, written down before the runs."""
    arms: dict[str, Arm]
    """By name."""
    evaluations: dict[str, Evaluator]
    """By name; every arm gets all of them. `evaluator` names the registered class, other keys are its fields."""
    recipes: tuple[str, ...] = ()
    """`--config` files that all arms share."""
    init_from: str = ""
    """Weights that all trained arms start from."""
    init_of: tuple[str, ...] = ()
    """(study, arm) whose weights of the same seed they start from instead, so that intervals include that training."""
    prepare: tuple[str, ...] = ()
    """Recipes that must have been run before (their results are shared by studies); `a b` = a under b."""
    baseline: str = ""
    """Arm that the others are compared with, paired by seed."""
    contrasts: tuple[tuple[str, str], ...] = ()
    """(evaluation, another): what is compared within every arm, paired by seed."""
    frontier: tuple[str, ...] = ()
    """(cost, score): metrics, such as cpu_seconds and overall, of which the page shows one against the other for all
    evaluations that are scored, relative to the first."""
    beside: dict[str, list[str]] = field(default_factory=dict)
    """Label -> [study, its baseline, its other arms ...]: kept results, of this study too, in one table of the page."""
    paper_table: str = ""
    """Key in `docs/evidence/published.yaml`."""
    first_seed: int = 0
    """Number of the first seed; studies that choose settings use seeds that no other one reports."""
    seeds: int = 5
    """Runs of each arm."""
    jobs: int = 2
    """Runs side by side."""
    threads: int = 1
    """Of each run; 0 = as the environment says."""
    quick: dict[str, Any] = field(default_factory=dict)
    """For `--quick`: `steps` (fraction of every chain step's), `per_task` (maximum number of items of a task). The
    studies whose weights it needs are run by theirs."""
    answer: str = ""
    """The result in a sentence, for the head of the page; placeholders as in `findings`."""
    findings: str = ""
    """The result, written after the runs; `{arm.metric}` stands for mean and interval."""

    def __post_init__(self) -> None:
        if not self.arms:
            raise UserError(f"{self.file}: has no arms")
        if self.baseline and self.baseline not in self.arms:
            raise UserError(f"{self.file}: baseline {self.baseline} is none of its arms, {', '.join(self.arms)}")
        if unknown := {name for pair in self.contrasts for name in pair} - self.evaluations.keys():
            raise UserError(f"{self.file}: contrasts name {', '.join(sorted(unknown))}, none of its evaluations")
        if self.init_of and (len(self.init_of) != 2 or self.init_of[0] == self.name):
            raise UserError(f"{self.file}: init_of is {list(self.init_of)}; it must be [another study, its arm]")
        if self.frontier and len(self.frontier) != 2:
            raise UserError(f"{self.file}: frontier is {list(self.frontier)}; it must be [a cost, a score]")
        if self.frontier and not any(one.settings.get("kind", "score") == "score" for one in self.evaluations.values()):
            raise UserError(f"{self.file}: frontier needs an evaluation that is scored; leave it out")
        for name, one in self.evaluations.items():
            if unknown := set(self.frontier) - one.metrics.keys():
                raise UserError(f"{self.file}: frontier names {', '.join(sorted(unknown))}, no metric of {name}")
        for label, row in self.beside.items():
            if not isinstance(row, list) or len(row) < 2 or not all(isinstance(name, str) for name in row):
                raise UserError(
                    f"{self.file}: beside.{label} is {row!r:.80}; it must be [study, its baseline, its arms]"
                )
        for name, arm in self.arms.items():
            if arm.weights_of is not None and len(arm.weights_of) not in (2, 3):
                given = list(arm.weights_of)
                raise UserError(f"{self.file}: {name}.weights_of is {given}; it must be [study, arm] or with a step")
        for name in ("seeds", "jobs"):
            if getattr(self, name) < 1:
                raise UserError(f"{self.file}: {name} is {getattr(self, name)}; it must be at least 1")
        self._check_cycle()

    def _check_cycle(self) -> None:
        names = [self.name]
        origin: Sequence[str] | None = self.init_of
        while origin and origin[0] not in names:
            names.append(origin[0])
            origin = _at_scale(_existing(self._sibling(origin[0])), self.scale).get("init_of")
        if origin:
            cycle = " from ".join([*names, origin[0]])
            raise UserError(f"{self.file}: init_of is a cycle, {cycle}; give one of them init_from instead")

    @property
    def name(self) -> str:
        """Of the file, without .yaml."""
        return self.file.stem

    def _sibling(self, name: str) -> Path:
        return self.file.with_name(f"{name}.yaml")

    def other(self, name: str) -> Study:
        """The study called `name` in the same folder, at the same scale, with the same overrides."""
        return self if name == self.name else Study.read(self._sibling(name), self.scale, self.overrides)

    def arm(self, name: str) -> Arm:
        """The arm called `name`.

        Raises:
            UserError: none.
        """
        if name not in self.arms:
            raise UserError(f"{self.name} has no arm {name}; choose from {', '.join(self.arms)}")
        return self.arms[name]

    @classmethod
    def read(cls, study: str | Path, scale: str = MINI, overrides: Overrides | None = None) -> Study:
        """The study in a file, or of that name in `experiments/studies/`.

        Raises:
            UserError: no such file or scale, an unknown or missing key, or an invalid value.
        """
        file, overrides = _existing(study_file(study)), overrides or Overrides()
        content = _at_scale(file, scale)
        try:
            content["arms"] = {
                key: Arm(**_tupled(arm, "weights_of", "recipes")) for key, arm in content["arms"].items()
            }
            evaluations = content.get("evaluations") or {"main": {}}
            content["evaluations"] = {
                key: _evaluation(file, key, one or {}, overrides) for key, one in evaluations.items()
            }
            content["contrasts"] = tuple(map(tuple, content.get("contrasts", ())))
            content = {
                **DEFAULTS.get(scale, OTHER_DEFAULTS),
                **_tupled(content, "recipes", "prepare", "init_of", "frontier"),
            }
            return cls(file=file, scale=scale, overrides=overrides, **content)
        except (TypeError, KeyError, AttributeError) as error:
            reason = f"no key {error}" if isinstance(error, KeyError) else error
            names = ", ".join(f.name for f in fields(cls) if f.name not in ("file", "scale", "overrides"))
            raise UserError(f"{file}: {reason}; a study has the keys {names}, scales") from None

    def settings_of(self, arm: str, seed: int, *, quick: bool = False) -> dict[str, Any]:
        """What is laid over the recipes for one run; the seed decides data order, noise levels and noise."""
        settings = self.arms[arm].settings
        if quick:
            fraction = self.quick.get("steps", 0.25)
            chain = self.recipe_of(arm).get("chain")
            settings = {**settings, "chain": [_shortened(step, fraction) for step in chain]} if chain else settings
        return merged(settings, {"seed_everything": 1000 + seed, "data": {"seed": 1000 + seed}})

    def recipes_of(self, arm: str) -> tuple[str, ...]:
        """`--config` files of an arm."""
        return (*self.recipes, *self.arms[arm].recipes)

    def recipe_of(self, arm: str) -> dict[str, Any]:
        """Recipes and the arm's settings as one."""
        return merged(merged_files(self.recipes_of(arm)), self.arms[arm].settings)

    def identity(self, arm: str, weights: str, *, quick: bool = False) -> str:
        """Changes with anything that decides the weights of a run, except its seed; names its folder.

        Args:
            arm: its name.
            weights: identity of the weights it starts from.
            quick: see `quick`.
        """
        recipes = [read_yaml(recipe) for recipe in self.recipes_of(arm)]  # comments decide nothing
        arguments = [list(self.overrides.fit)] if self.overrides.fit else []
        return digest([recipes, self.settings_of(arm, 0, quick=quick), weights, *arguments])

    def evaluations_identity(self, *, quick: bool = False) -> str:
        """Changes with anything that decides the evaluations' numbers; names the file of results."""
        return digest([{name: one.identity for name, one in self.evaluations_of(quick=quick).items()}])

    def evaluations_of(self, *, quick: bool = False) -> dict[str, Evaluator]:
        """`evaluations`, shortened if `quick`."""
        if not quick:
            return self.evaluations
        return {name: one.shortened(self.quick.get("per_task", 16)) for name, one in self.evaluations.items()}


def study_names(folder: Path = FOLDER, scale: str = MINI) -> list[str]:
    """All studies in a folder that have a scale."""
    contents = {file.stem: read_yaml(file) for file in sorted(folder.glob("*.yaml"))}
    return [n for n, content in contents.items() if scale == MINI or scale in (content.get("scales") or {})]


def study_file(study: str | Path) -> Path:
    """The file that a path or a bare name stands for."""
    path = Path(study)
    return path if path.suffix == ".yaml" else FOLDER / f"{study}.yaml"


def _existing(file: Path) -> Path:
    if file.is_file():
        return file
    if "ablations/mini" in file.as_posix():
        raise UserError(f"{file}: studies have moved; use {FOLDER / file.name}")
    names = sorted(other.stem for other in file.parent.glob("*.yaml"))
    if not names:
        raise UserError(
            f"{file}: no such file; run from the root of the project, or give the path of a study's YAML file"
        )
    raise UserError(f"no study {file.stem} in {file.parent}: choose from {', '.join(names)}")


def _at_scale(file: Path, scale: str) -> dict[str, Any]:
    """The keys of a file at one scale.

    Raises:
        UserError: it lacks that scale.
    """
    content = read_yaml(file)
    scales = content.pop("scales", None) or {}
    if scale == MINI:
        return content
    if not isinstance(scales, dict) or scale not in scales:
        raise UserError(f"{file}: has no scale {scale}; choose from {', '.join([MINI, *scales])}")
    section = {**{key: content[key] for key in INHERITED if key in content}, **(scales[scale] or {})}
    top = content.get("arms") or {}
    section["arms"] = {
        name: {**{key: top[name][key] for key in OF_AN_ARM if key in top.get(name, {})}, **(arm or {})}
        for name, arm in (section.get("arms") or {}).items()
    }
    return section


def _evaluation(file: Path, name: str, content: dict[str, Any], overrides: Overrides) -> Evaluator:
    try:
        more = overrides.evaluators.get(content.get("evaluator", ""), {})
        return evaluator_of(merged(content, more))
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: evaluations.{name}: {error}") from None


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`one` with the values of `other`, mappings within mappings merged alike."""
    result = dict(one)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def merged_files(recipes: tuple[str, ...]) -> dict[str, Any]:
    """Several recipes as one, later ones over earlier ones."""
    content: dict[str, Any] = {}
    for recipe in recipes:
        content = merged(content, read_yaml(recipe))
    return content


def read_yaml(file: str | Path) -> dict[str, Any]:
    """A file of keys and values; an empty one has none.

    Raises:
        UserError: it is missing, or holds something else.
    """
    return files.read_yaml(Path(file), dict)


def _shortened(step: dict[str, Any], fraction: float) -> dict[str, Any]:
    steps = max(1, round(fraction * step["trainer"]["max_steps"]))
    return merged(step, {"trainer": {"max_steps": steps}})


def _tupled(content: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: tuple(value) if key in names and value else value for key, value in content.items()}
