"""What `--ckpt_path` names: a snapshot of a run, or for other verbs than `fit` also a folder of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from scone_pl.checkpoints.folder import check_folder, is_checkpoint_folder
from scone_pl.errors import UserError
from scone_pl.training.provenance import provenance_in
from scone_pl.training.runs import RunFolder, weights_identity
from scone_pl.training.snapshots import read_run, snapshots
from scone_pl.training.start import check_start

LAST = "last"
OPTIONS = {
    "ckpt_path": "Snapshot: `last` (the newest of output_dir), or the path of one (RUN/checkpoints/step-000500), or of "
    "a run's folder (its newest). fit: begins a new output_dir there; left out, fit resumes from its own newest. "
    "validate, test, predict: evaluates it, or a folder of weights; left out, the newest state of output_dir.",
    "weights_only": "Snapshots are always read as data: null or true.",
    "return_predictions": "Predictions are files in output_dir/predictions: null or false.",
}
"""Help for options that Lightning's verbs have."""


@dataclass(frozen=True)
class Step:
    """A stage of a run, alone or of a chain."""

    command: list[str]
    settings: Any
    """Parsed."""

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.settings.output_dir))

    @property
    def init_from(self) -> str:
        return str(self.settings.model.init_args.init_from)


def find(given: str) -> Path:
    """The snapshot or folder of weights at a path; of a run's folder or its `checkpoints`, the newest snapshot.

    Raises:
        UserError: there is none; the message says what may be given.
    """
    path = Path(given)
    if not path.exists():
        raise UserError(
            f"--ckpt_path {given}: no such snapshot; give `last`, or the path of a snapshot, such as "
            "RUN/checkpoints/step-000500"
        )
    if is_checkpoint_folder(path):
        return path
    for folder in (path / "checkpoints", path):
        if folder.is_dir() and (written := snapshots(folder)):
            path = written[-1]
            break
    steps_of(path)
    return path


def steps_of(snapshot: Path) -> int:
    """Optimizer steps of a snapshot, whatever its name.

    Raises:
        UserError: it is not a snapshot.
    """
    steps = read_run(snapshot).get("global_step")
    if not isinstance(steps, int):
        raise UserError(f"--ckpt_path {snapshot}: not a snapshot of a run")
    return steps


def for_fit(step: Step) -> Path | None:
    """The snapshot that `--ckpt_path` of a single stage names; None = the run resumes from its own newest.

    Raises:
        UserError: there is none, it is a folder of weights, or `trainer.max_steps` is smaller than its steps.
    """
    given = step.settings.ckpt_path
    own = step.folder.last_snapshot
    if given is None:
        return None
    if str(given) == LAST:
        if own is None:
            raise UserError(f"--ckpt_path last: {step.folder.path} has no snapshot yet; leave it out to start afresh")
        return None
    path = find(str(given))
    if is_checkpoint_folder(path):
        raise UserError(
            f"--ckpt_path {given}: holds weights, but no optimizer state; start from them with "
            "--model.init_args.init_from"
        )
    _check_end(path, steps_of(path), step.settings.trainer.max_steps)
    return path


def check_chain(given: str, steps: Sequence[Step]) -> None:
    """`--ckpt_path` of a chain that trains may only name the snapshot that it resumes from anyway.

    Raises:
        UserError: it names anything but the snapshot from which the chain would resume.
    """
    started = [step for step in steps if step.folder.last_snapshot]
    newest = started[-1].folder.last_snapshot if started else None
    if given == LAST and newest is None:
        raise UserError(
            f"--ckpt_path last: no step of the chain has a snapshot yet ({steps[0].folder.path} and so on); leave it "
            "out to start afresh"
        )
    if given != LAST and (newest is None or find(given).resolve() != newest.resolve()):
        raise UserError(
            f"--ckpt_path {given}: which step of the chain begins there? A chain resumes by itself where it stopped; "
            "to train a step alone add --chain null with its --model and --output_dir"
        )


def check_ends(steps: Sequence[Step]) -> None:
    """Refuses a `trainer.max_steps` before what was trained already: going on would not undo it.

    Raises:
        UserError: naming the newest state, and what to do.
    """
    for step in steps:
        last = step.folder.last_snapshot
        if last is not None:
            _check_end(last, step.folder.last_steps, step.settings.trainer.max_steps)
        elif step.folder.finished_steps:
            _check_end(step.folder.weights, step.folder.finished_steps, step.settings.trainer.max_steps)


def _check_end(path: Path, steps: int, max_steps: int) -> None:
    if 0 <= max_steps < steps:
        raise UserError(
            f"{path}: is of step {steps}, beyond trainer.max_steps {max_steps}; raise that, or choose another "
            "--output_dir to train afresh"
        )


def evaluated(steps: Sequence[Step]) -> list[str]:
    """The command line by which `validate`, `test` or `predict` runs on the weights that `--ckpt_path` names.

    Left out, it is the newest state: the result of the last stage that has begun or, where that one is not finished,
    its newest snapshot; before any training, the weights to start from.

    Raises:
        UserError: there is no such snapshot, or nothing of a chain has been trained.
    """
    given = steps[-1].settings.ckpt_path
    if given is not None and str(given) != LAST:
        return _at_path(steps, str(given))
    step = next((s for s in reversed(steps) if s.folder.weights.is_dir() or s.folder.last_snapshot), None)
    if step is None:
        step = steps[-1]
        if given is not None:
            raise UserError(f"--ckpt_path last: {step.folder.path} has no snapshot yet; run fit, or leave it out")
        if len(steps) > 1:
            check_start(str(step.folder.weights))
        rank_zero_info(f"weights: {step.init_from}, as {step.folder.path} has no result yet")
        check_start(step.init_from)
        return step.command
    last, result = step.folder.last_snapshot, step.folder.weights
    if given is not None and last is None:
        raise UserError(f"--ckpt_path last: {step.folder.path} has no snapshot; leave it out to use {result}")
    if given is None and result.is_dir() and (last is None or step.folder.last_steps <= step.folder.finished_steps):
        rank_zero_info(f"weights: {result}, the result of {step.folder.path}")
        check_folder(result)
        return [*step.command, "--model.init_args.init_from", str(result)]
    unfinished = "" if given else ", which is not finished"
    rank_zero_info(f"weights: {last}, the newest snapshot of {step.folder.path}{unfinished}")
    return _at_snapshot(step, Path(str(last)))


def _at_path(steps: Sequence[Step], given: str) -> list[str]:
    path = find(given)
    if is_checkpoint_folder(path):
        rank_zero_info(f"weights: {path}")
        return [*steps[-1].command, "--ckpt_path", "null", "--model.init_args.init_from", str(check_folder(path))]
    rank_zero_info(f"weights: {path}, a snapshot")
    return _at_snapshot(_step_of(steps, path), path)


def _at_snapshot(step: Step, path: Path) -> list[str]:
    check_start(step.init_from)
    return [*step.command, "--ckpt_path", str(path)]


def _step_of(steps: Sequence[Step], snapshot: Path) -> Step:
    """The stage that a snapshot belongs to: by its folder, else by the weights that it started from."""
    folder = snapshot.resolve().parent
    for step in steps:
        if step.folder.checkpoints.resolve() == folder:
            return step
    start = provenance_in(read_run(snapshot), snapshot).get("start")
    for step in reversed(steps):
        if Path(step.init_from).is_dir() and weights_identity(step.init_from) == start:
            return step
    return steps[-1]
