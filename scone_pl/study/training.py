"""Training for studies: a `fit` command whose start is recorded, and refused on other recipes or data.

`trained.json` in a run's folder holds commit, versions, recipes, data and seconds of every start of its training.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import scone_pl
from scone_pl.errors import UserError
from scone_pl.evaluation.evaluator import digest
from scone_pl.files import read_bytes, read_json, write_json
from scone_pl.study.spec import merged

Fit = Callable[[list[str]], int]
"""Runs the verb `fit` with these arguments; its exit status."""
PACKAGE = Path(scone_pl.__file__).parent
STARTS = "trained.json"
UNKNOWN = "unknown"


def last_step(settings: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """The settings of the last step of a chain, or of the one called `name`; the whole where there is no chain."""
    steps = settings.get("chain") or [{}]
    return merged(settings, next((step for step in steps if name and step["name"] == name), steps[-1]))


def train(
    fit: Fit,
    command: list[str],
    settings: Mapping[str, Any],
    folder: Path,
    weights: Path,
    *,
    arguments: Sequence[str] = (),
) -> None:
    """Runs a `fit` command and records the start in `STARTS`; a finished run is left alone.

    Args:
        fit: the verb.
        command: its arguments.
        settings: its recipes as one.
        folder: of the run.
        weights: its result.
        arguments: typed after the recipes.

    Raises:
        UserError: the folder holds a run of other recipes or data; or training stopped before its end.
    """
    from scone_pl.training.runs import RunFolder

    check_start(settings, folder)
    # However it was trained (devices, strategy): `fit` itself would require the same.
    steps = _typed(arguments, "--trainer.max_steps") or last_step(settings)["trainer"].get("max_steps", math.inf)
    if RunFolder(weights.parent).finished_steps >= float(steps):
        return
    data = {path: known for path in _train_sets(settings) if (known := _data_digest(path))}
    start = {"commit": commit(), "versions": versions(), "recipes": digest(settings), "data": data, "seconds": 0.0}
    starts, began = [*read_starts(folder), start], time.perf_counter()
    write_json({"starts": starts}, folder / STARTS)
    try:
        status = fit([*command, *arguments])
    finally:
        start["seconds"] = time.perf_counter() - began
        write_json({"starts": starts}, folder / STARTS)
    if status:
        raise UserError(f"{folder}: fit ended with status {status}, see above; run the same command to resume")


def _typed(arguments: Sequence[str], option: str) -> str:
    """The last value of an option, or nothing."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    values = [value for name, value in itertools.pairwise(words) if name == option]
    return values[-1] if values else ""


def check_start(settings: Mapping[str, Any], folder: Path) -> None:
    """Raises `UserError` if the run in `folder` began with other recipes or other data than there are now."""
    for start in read_starts(folder)[-1:]:
        now = {path: _data_digest(path) for path in start["data"]}
        changed = [path for path, known in start["data"].items() if now[path] not in ("", known)]
        changed += ["the recipe"] if start["recipes"] != digest(settings) else []
        if changed:
            raise UserError(f"{folder}: {' and '.join(changed)} changed since it was trained; move that folder aside")


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Recorded starts of a run, oldest first."""
    file = folder / STARTS
    return read_json(file, dict)["starts"] if file.is_file() else []


def starts_of(weights: Path) -> list[dict[str, Any]]:
    """Recorded starts of the run that wrote a checkpoint folder; none of weights from elsewhere."""
    return next(filter(None, map(read_starts, weights.parents)), [])


def training_commits(run: Mapping[str, Any]) -> list[str]:
    """Commits that trained a run of a result, oldest first; `UNKNOWN` alone where they were not recorded."""
    return list(dict.fromkeys(start["commit"] for start in run.get("trained") or [])) or [UNKNOWN]


def _train_sets(settings: Mapping[str, Any]) -> list[str]:
    parts = [settings, *(settings.get("chain") or [])]
    return sorted({source["path"] for part in parts for source in part.get("data", {}).get("train") or []})


def _data_digest(path: str) -> str:
    """Of a shard set: its manifest holds the sha256 of every shard; empty if it is not there."""
    manifest = Path(path) / "manifest.json"
    return hashlib.sha256(read_bytes(manifest)).hexdigest()[:16] if manifest.is_file() else ""


def commit(folder: Path = PACKAGE) -> str:
    """The commit of the checkout that holds `folder`, by default the code that runs.

    `-dirty` is added if code or recipes differ from it; unknown outside of a checkout.
    """
    try:
        name = _git(folder, "rev-parse", "--short=12", "HEAD")
        # New files too; all else, such as the page that runs write themselves, decides no number.
        changed = _git(folder, "status", "--porcelain", "--untracked-files=normal", "--", ":/scone_pl", ":/experiments")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return name + ("-dirty" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def versions() -> dict[str, str]:
    """Of the libraries that decide numbers."""
    names = ("torch", "lightning", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
