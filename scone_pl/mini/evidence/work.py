"""One run of one arm: `fit` with the arm's settings, then its evaluations; a JSON file says that it is done."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from scone_pl.errors import UserError
from scone_pl.files import write_json
from scone_pl.mini.evidence.spec import Evaluation, Experiment, merged

ROOT = Path("runs/evidence")


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
    content: dict[str, Any] = {}
    for recipe in experiment.recipes:
        content = merged(content, yaml.safe_load(Path(recipe).read_text()))
    return merged(content, experiment.settings_of(arm, 0, quick=quick))


def command_line(experiment: Experiment, arm: str, seed: int, folder: Path, *, quick: bool = False) -> list[str]:
    """The `fit` command that trains a run."""
    recipes = [part for recipe in experiment.recipes for part in ("--config", recipe)]
    overlay = json.dumps(experiment.settings_of(arm, seed, quick=quick))
    origin = start_of(experiment, arm, seed, quick=quick)
    tail = ["--model.init_args.init_from", str(origin), "--output_dir", str(folder / "fit")]
    return ["fit", *recipes, "--config", overlay, *tail]


def prepare(experiment: Experiment) -> None:
    """Runs the recipes that the experiment builds on; a finished one is done at once."""
    from scone_pl.cli import main
    from scone_pl.training.runs import RunFolder

    for recipes in experiment.prepare:
        whole: dict[str, Any] = {}
        for recipe in recipes.split():
            whole = merged(whole, yaml.safe_load(Path(recipe).read_text()))
        last = whole["chain"][-1]
        # However it was trained (devices, strategy), what is finished is not looked at again.
        if RunFolder(Path(whole["output_dir"]) / last["name"]).finished_steps < last["trainer"]["max_steps"]:
            main(["fit", *(part for recipe in recipes.split() for part in ("--config", recipe))])


def run(experiment: Experiment, arm: str, seed: int, *, quick: bool = False) -> Path:
    """Trains what is to be trained, evaluates, writes the result; returns its file. Goes on where it was killed."""
    import torch

    torch.set_num_threads(1)
    folder = folder_of(experiment, arm, seed, quick=quick)
    file = result_file(experiment, folder, quick=quick)
    if file.is_file():
        return file
    began = time.perf_counter()
    chosen = experiment.arms[arm]
    if not chosen.trained:
        weights = start_of(experiment, arm, seed, quick=quick)
    else:
        from scone_pl.cli import main

        main(command_line(experiment, arm, seed, folder, quick=quick))
        weights = trained_weights(experiment, arm, folder, quick=quick)
    trained = time.perf_counter() - began
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
        "evaluations": looks,
        "seconds": {"training": trained, "evaluation": time.perf_counter() - began - trained},
        "commit": commit(),
        "versions": versions(),
    }
    write_json(result, file)
    return file


def look_at(weights: Path, look: Evaluation) -> dict[str, Any]:
    """The numbers of one evaluation."""
    from scone_pl.generation.guidance import GuidanceConfig
    from scone_pl.generation.sampler import SamplingConfig
    from scone_pl.mini.episode import TASKS
    from scone_pl.mini.evaluate import bridge_of, evaluate
    from scone_pl.mini.world import WorldConfig, fixed_set

    world = WorldConfig(**look.world)
    episodes = fixed_set(look.per_task, stream=look.stream, tasks=look.tasks or TASKS, config=world)
    if look.kind == "layers":
        from scone_pl.mini.layers import examples, separation

        return {"layers": separation(weights, episodes), "examples": examples(weights, episodes)}
    bridge = bridge_of(weights) if look.mask == "trained" else None
    if bridge is not None:
        bridge = dataclasses.replace(bridge, **look.bridge)
    config = SamplingConfig(
        num_inference_steps=12,
        timestep_shift=1.0,
        guidance=GuidanceConfig(text_scale=1.0, image_scale=1.0),
        bridge=bridge,
    )
    report, _ = evaluate(weights, episodes, config, progress=False)
    del report["items"], report["checkpoint"]
    return report


def _training_of(weights: Path) -> Mapping[str, Any]:
    file = weights / "training.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def commit() -> str:
    """The checkout's commit, with `-dirty` if code or recipes differ from it; unknown outside of a checkout."""
    try:
        found = _git("rev-parse", "--short=12", "HEAD")
        # What runs write themselves, results and their page, decides no number.
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)docs")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def versions() -> dict[str, str]:
    """Of what decides numbers."""
    names = ("torch", "lightning", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
