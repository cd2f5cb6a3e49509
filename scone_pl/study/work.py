"""One run of one arm: `fit` with the arm's settings, then its evaluations; a JSON file says that it is done."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scone_pl.errors import UserError
from scone_pl.files import write_json
from scone_pl.study.spec import GUIDANCE, SAMPLING, Evaluation, Experiment, digest, merged, read_yaml

if TYPE_CHECKING:
    from scone_pl.model.config import BridgeConfig

ROOT = Path("runs/evidence")
STARTS = "trained.json"
"""In a run's folder: commit, versions, recipes, data and seconds of every start of its training."""


def folder_of(experiment: Experiment, arm: str, seed: int, *, quick: bool = False) -> Path:
    """Where a run lives; other settings or other starting weights make another folder."""
    from scone_pl.training.runs import weights_identity

    origin = start_of(experiment, arm, seed, quick=quick)
    if not (origin / "llm_config.json").is_file():
        raise UserError(
            f"{experiment.name} {arm}: no weights in {origin}; `mini evidence` first runs what `prepare`, `init_of` "
            "and `weights_of` name, but `init_from` and `weights` must be there"
        )
    identity = experiment.identity(arm, weights_identity(origin), quick=quick)
    return ROOT / experiment.name / f"{arm}-{identity}" / f"seed{seed}"


def result_file(experiment: Experiment, folder: Path, *, quick: bool = False) -> Path:
    """The file in a run's `folder` that says that it is done; other evaluations make another file."""
    return folder / f"result-{experiment.looks_identity(quick=quick)}.json"


def origin_of(experiment: Experiment, arm: str) -> tuple[str, ...]:
    """(experiment, arm) or (experiment, arm, step) whose run of the same seed made `start_of`; () if none did."""
    chosen = experiment.arm(arm)
    if chosen.weights:
        return ()
    return chosen.weights_of or experiment.init_of


def start_of(experiment: Experiment, arm: str, seed: int, *, quick: bool = False) -> Path:
    """The weights that a run starts from or, where nothing is trained, looks at."""
    if not (origin := origin_of(experiment, arm)):
        return Path(experiment.arms[arm].weights or experiment.init_from)
    other, name, *step = origin
    source, shorter = Experiment.read(other), quick and bool(experiment.arms[arm].weights_of)
    return trained_weights(source, name, folder_of(source, name, seed, quick=shorter), *step, quick=shorter)


def trained_weights(experiment: Experiment, arm: str, folder: Path, step: str = "", *, quick: bool = False) -> Path:
    """The result of a run in `folder`, or of a `step` of its chain."""
    chosen = experiment.arms[arm]
    if not chosen.trained:
        raise UserError(f"{experiment.name} {arm} trains nothing; name the arm that does")
    settings = _whole(experiment, arm, quick=quick)
    chain = settings.get("chain")
    return folder / "fit" / (step or chain[-1]["name"]) / "weights" if chain else folder / "fit" / "weights"


def _whole(experiment: Experiment, arm: str, *, quick: bool = False) -> dict[str, Any]:
    """Recipes and settings as one."""
    return merged(_merged_files(experiment.recipes), experiment.settings_of(arm, 0, quick=quick))


def _merged_files(recipes: Sequence[str]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for recipe in recipes:
        content = merged(content, read_yaml(recipe))
    return content


def _last_step(settings: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """The settings of the last step of a chain, or of the one called `name`; the whole where there is no chain."""
    steps = settings.get("chain") or [{}]
    return merged(settings, next((step for step in steps if name and step["name"] == name), steps[-1]))


def check_looks(experiment: Experiment, arms: Sequence[str], *, quick: bool = False) -> None:
    """Raises `UserError` if a look of one of `arms` changes a bridge that the arm does not sample with."""
    for arm in arms:
        chosen = experiment.arm(arm)
        if chosen.weights or chosen.untrained:
            continue  # `look_at` knows when it reads the weights
        origin, name, *step = chosen.weights_of or (experiment.name, arm)
        source = Experiment.read(origin) if chosen.weights_of else experiment
        settings = _last_step(_whole(source, name, quick=quick), *step)["model"].get("init_args", {})
        bridge = settings.get("bridge") if settings.get("mask_sampling") else None
        for look_name, look in experiment.evaluations.items():
            _bridge(bridge, look, f"{experiment.name} {arm}, evaluations.{look_name}")


def command_line(experiment: Experiment, arm: str, seed: int, folder: Path, *, quick: bool = False) -> list[str]:
    """The `fit` command that trains a run."""
    # As text: of a chain every step reads them again, and a file may be edited in the meantime.
    recipes = [part for recipe in experiment.recipes for part in ("--config", Path(recipe).read_text())]
    overlay = json.dumps(experiment.settings_of(arm, seed, quick=quick))
    origin = start_of(experiment, arm, seed, quick=quick)
    tail = ["--model.init_args.init_from", str(origin), "--output_dir", str(folder / "fit")]
    return ["fit", *recipes, "--config", overlay, *tail]


def prepare(experiment: Experiment) -> None:
    """Runs the recipes that the experiment builds on; a finished one is done at once."""
    for recipes in experiment.prepare:
        whole = _merged_files(recipes.split())
        folder = Path(whole["output_dir"])
        command = ["fit", *(part for recipe in recipes.split() for part in ("--config", recipe))]
        train(command, whole, folder, folder / whole["chain"][-1]["name"] / "weights")


def train(command: list[str], settings: Mapping[str, Any], folder: Path, weights: Path) -> None:
    """Runs a `fit` command and notes the start in `STARTS`; what is finished is not looked at again.

    Args:
        command: for `scone_pl.cli.lightning`.
        settings: its recipes as one.
        folder: of the run.
        weights: its result.

    Raises:
        UserError: the folder holds a run of other recipes or data.
    """
    from scone_pl.cli.lightning import main
    from scone_pl.training.runs import RunFolder

    check_start(settings, folder)
    # However it was trained (devices, strategy): `fit` itself would ask for the same.
    if RunFolder(weights.parent).finished_steps >= _last_step(settings)["trainer"].get("max_steps", math.inf):
        return
    data = {path: found for path in _train_sets(settings) if (found := _data_digest(path))}
    start = {"commit": commit(), "versions": versions(), "recipes": digest(settings), "data": data, "seconds": 0.0}
    starts, began = [*_starts(folder), start], time.perf_counter()
    write_json({"starts": starts}, folder / STARTS)
    try:
        main(command)
    finally:
        start["seconds"] = time.perf_counter() - began
        write_json({"starts": starts}, folder / STARTS)


def check_start(settings: Mapping[str, Any], folder: Path) -> None:
    """Raises `UserError` if the run in `folder` began with other recipes or other data than there are now."""
    for start in _starts(folder)[-1:]:
        found = {path: _data_digest(path) for path in start["data"]}
        other = [path for path, known in start["data"].items() if found[path] not in ("", known)]
        other += ["the recipe"] if start["recipes"] != digest(settings) else []
        if other:
            raise UserError(f"{folder}: {' and '.join(other)} changed since it was trained; move that folder aside")


def check_folder(experiment: Experiment, arm: str, folder: Path, *, quick: bool = False) -> None:
    """`check_start` for an arm's `folder`."""
    if experiment.arms[arm].trained:
        check_start(_whole(experiment, arm, quick=quick), folder)


def _starts(folder: Path) -> list[dict[str, Any]]:
    file = folder / STARTS
    return json.loads(file.read_text())["starts"] if file.is_file() else []


def _train_sets(settings: Mapping[str, Any]) -> list[str]:
    parts = [settings, *(settings.get("chain") or [])]
    return sorted({source["path"] for part in parts for source in part.get("data", {}).get("train") or []})


def _data_digest(path: str) -> str:
    """Of a shard set: its manifest holds the sha256 of every shard; empty if it is not there."""
    manifest = Path(path) / "manifest.json"
    return hashlib.sha256(manifest.read_bytes()).hexdigest()[:16] if manifest.is_file() else ""


def run(experiment: Experiment, arm: str, seed: int, *, quick: bool = False, expected: Path | None = None) -> Path:
    """Trains what is to be trained, evaluates, writes the result; returns its file. Goes on where it was killed.

    Args:
        experiment: as read.
        arm: its name.
        seed: of the run.
        quick: see `Experiment.quick`.
        expected: the result's file as the caller knows it.

    Raises:
        UserError: it would be another file than `expected`; or see `train` and `look_at`.
    """
    import torch

    torch.set_num_threads(1)
    folder = folder_of(experiment, arm, seed, quick=quick)
    file = result_file(experiment, folder, quick=quick)
    if expected is not None and file != expected:
        raise UserError(f"{experiment.name} {arm}: recipes, looks or code changed since the start; start it again")
    if file.is_file():
        return file
    weights = start_of(experiment, arm, seed, quick=quick)
    if experiment.arms[arm].trained:
        weights = trained_weights(experiment, arm, folder, quick=quick)
        command = command_line(experiment, arm, seed, folder, quick=quick)
        train(command, _whole(experiment, arm, quick=quick), folder, weights)
    began, now = time.perf_counter(), {"commit": commit(), "versions": versions()}
    looks = {name: look_at(weights, look) for name, look in experiment.looks(quick=quick).items()}
    result = {
        "experiment": experiment.name,
        "arm": arm,
        "seed": seed,
        "quick": quick,
        "settings": experiment.settings_of(arm, seed, quick=quick),
        "recipes": list(experiment.recipes),
        "weights": str(weights),
        "training": _training_of(weights),
        "trained": next(filter(None, map(_starts, weights.parents)), []),
        "evaluations": looks,
        "seconds": {"training": _training_seconds(folder), "evaluation": time.perf_counter() - began},
        **now,
    }
    write_json(result, file)
    return file


def _training_seconds(folder: Path) -> float:
    """Of all starts; of a run from before they were noted, what its first result says."""
    if starts := _starts(folder):
        return sum(start["seconds"] for start in starts)
    results = [json.loads(file.read_text()) for file in folder.glob("result-*.json")]
    return max((result["seconds"]["training"] for result in results), default=0.0)


def look_at(weights: Path, look: Evaluation) -> dict[str, Any]:
    """The numbers of one evaluation.

    Raises:
        UserError: it changes a bridge that the weights are not sampled with.
    """
    from scone_pl.sampling.guidance import GuidanceConfig
    from scone_pl.sampling.sampler import SamplingConfig
    from scone_pl.worlds.shapes.episode import TASKS
    from scone_pl.worlds.shapes.evaluate import bridge_of, evaluate
    from scone_pl.worlds.shapes.world import WorldConfig, fixed_set

    world = WorldConfig(**look.world)
    episodes = fixed_set(look.per_task, stream=look.stream, tasks=look.tasks or TASKS, config=world)
    if look.kind == "layers":
        from scone_pl.worlds.shapes.layers import examples, separation

        return {"layers": separation(weights, episodes), "examples": examples(weights, episodes)}
    trained = bridge_of(weights)
    bridge = _bridge(dataclasses.asdict(trained) if trained else None, look, str(weights))
    config = SamplingConfig(**SAMPLING, guidance=GuidanceConfig(**GUIDANCE), bridge=bridge)
    report, _ = evaluate(weights, episodes, config, progress=False)
    del report["items"], report["checkpoint"]
    return report


def _bridge(trained: Mapping[str, Any] | None, look: Evaluation, where: str) -> BridgeConfig | None:
    """What a look samples with, if the weights are sampled with the bridge `trained`; `where` is for complaints."""
    from scone_pl.model.config import BridgeConfig

    if look.bridge and trained is None:
        raise UserError(f"{where}: bridge {look.bridge} changes a bridge that this does not sample with; leave it out")
    try:
        return BridgeConfig(**{**trained, **look.bridge}) if trained and look.mask == "trained" else None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def _training_of(weights: Path) -> Mapping[str, Any]:
    file = weights / "training.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def commit() -> str:
    """The checkout's commit, with `-dirty` if code or recipes differ from it; unknown outside of a checkout."""
    try:
        found = _git("rev-parse", "--short=12", "HEAD")
        # New files too; all else, such as the page that runs write themselves, decides no number.
        changed = _git("status", "--porcelain", "--untracked-files=normal", "--", ":/scone_pl", ":/experiments")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def versions() -> dict[str, str]:
    """Of what decides numbers."""
    names = ("torch", "lightning", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
