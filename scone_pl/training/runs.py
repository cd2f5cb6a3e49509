"""What a training run leaves in its folder, and what it does when it is started again.

```text
<output_dir>/
  config.yaml        the resolved configuration of the last start
  start.json         which weights it started from, and the snapshot of another run if it began at one
  outcome.json       how it ended, see `outcome.py`
  checkpoints/       for resuming, see `snapshots.py`
  weights/           the result, a checkpoint folder in the published layout, with training.json
  tensorboard/       event files
```
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from scone_pl.checkpoints.training_record import FILE, steps_of
from scone_pl.errors import UserError
from scone_pl.files import clear_leftovers, read_bytes, read_json, readable, write_json
from scone_pl.messages import warn
from scone_pl.outputs import check_output_folder
from scone_pl.training.outcome import read_outcome
from scone_pl.training.snapshots import RUN_FILE, snapshots, step_of

SAMPLED_BLOCKS = 64
SAMPLED_BYTES = 16384
"""The identity of a weights file is a hash of this many evenly spaced blocks of this many bytes."""


def weights_identity(folder: str | os.PathLike[str]) -> str:
    """Tells two states of a checkpoint folder apart by a sample of its bytes, so that a copy counts as the same."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("*.safetensors")):
        _add_sample(digest, file)
    training = Path(folder) / FILE
    if training.is_file():
        digest.update(read_bytes(training))
    return digest.hexdigest()[:16]


def snapshot_identity(path: Path) -> str:
    """Tells two snapshots apart, by a sample of the file with their step and settings."""
    digest = hashlib.sha256()
    _add_sample(digest, path if path.is_file() else path / RUN_FILE)
    return digest.hexdigest()[:16]


def _add_sample(digest: Any, file: Path) -> None:
    with readable(file) as size, file.open("rb") as stream:
        digest.update(f"{file.name} {size}".encode())
        for part in range(SAMPLED_BLOCKS):
            stream.seek(size * part // SAMPLED_BLOCKS)
            digest.update(stream.read(SAMPLED_BYTES))


@dataclass(frozen=True)
class RunFolder:
    """One stage's folder."""

    path: Path

    @property
    def weights(self) -> Path:
        return self.path / "weights"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_snapshot(self) -> Path | None:
        """The newest whole one, to resume from."""
        written = snapshots(self.checkpoints)
        return written[-1] if written else None

    @property
    def last_steps(self) -> int:
        """Optimizer steps of `last_snapshot`; 0 if there is none."""
        last = self.last_snapshot
        return 0 if last is None else step_of(last)

    @property
    def outcome_file(self) -> Path:
        return self.path / "outcome.json"

    @property
    def finished_steps(self) -> int:
        """Optimizer steps of the exported weights; 0 if there are none."""
        return steps_of(self.weights)

    def check_outputs(self) -> None:
        """Raises a `UserError` if anything of what a run writes cannot be written."""
        folders = [self.weights.name, self.checkpoints.name, "tensorboard", "previews", "predictions"]
        files = ["config.yaml", "start.json", self.outcome_file.name, "predictions/settings.json"]
        check_output_folder(self.path, files=files, folders=folders)

    def is_finished(self, max_steps: int, early_stopping: str = "[]") -> bool:
        """Whether there is nothing left to train.

        Args:
            max_steps: `trainer.max_steps` now.
            early_stopping: settings of EarlyStopping now; a run that they ended is finished until they, or
                `max_steps`, change.
        """
        steps = self.finished_steps
        if 0 < max_steps <= steps:
            return True
        outcome = read_outcome(self.outcome_file)
        return (
            outcome is not None
            and outcome.reason == "early_stopping"
            and outcome.steps == steps
            and self.weights.is_dir()
            and (outcome.max_steps, outcome.early_stopping) == (max_steps, early_stopping)
        )

    def occupy(self) -> TextIO:
        """Keeps a second run out of the folder for as long as the file returned is open, and clears what a killed one
        left half-written.

        Raises:
            UserError: another run is using it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / ".lock").open("w")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process; its children do not inherit it
        except (BlockingIOError, PermissionError) as error:
            where = f"{self.path}: another run is using it"
            raise UserError(f"{where}; wait for it, or choose another --output_dir") from error
        except OSError:
            warn(f"{self.path}: its file system knows no locks; start no second run there")
        clear_leftovers(self.path)
        return file

    def begin(self, init_from: str, given: str | None = None, *, write: bool = True) -> str | None:
        """Records the weights that this run starts from, and returns where to resume.

        Args:
            init_from: the weights' folder.
            given: another run's snapshot to begin at. Once this run has its own, it resumes from the newest of those,
                if it began at `given`.
            write: whether this rank writes the record.

        Returns:
            The snapshot to resume from, or None for a fresh start.

        Raises:
            UserError: the folder holds a run that started from other weights, or whose newest snapshot is another than
                `given` and which did not begin there either.
        """
        start = self.path / "start.json"
        identity = {"init_from": str(init_from), "identity": weights_identity(init_from)}
        last = self.last_snapshot
        began_at = str(Path(given).resolve()) if given else None
        if last is None:
            if write:
                write_json({**identity, "ckpt_path": began_at}, start)
            return given
        before = read_json(start, dict) if start.is_file() else {}
        if before.get("identity") != identity["identity"]:
            raise UserError(
                f"{self.path}: holds a run that started from other weights ({before.get('init_from', 'unknown')} has "
                "changed since, or is another folder); choose another --output_dir, or move that folder aside"
            )
        if began_at not in (None, str(last.resolve()), before.get("ckpt_path")):
            raise UserError(
                f"--ckpt_path {given}: {self.path} has its own {last.name} to resume from; leave --ckpt_path out to do "
                "so, or choose another --output_dir to begin there"
            )
        return str(last)
