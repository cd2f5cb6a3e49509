"""A full disk costs a run its curves at once, and the run itself when a second snapshot in a row cannot be written."""

from __future__ import annotations

import errno
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from running import start_scone
from tensorboard.summary.writer.record_writer import RecordWriter

from scone_pl.errors import UserError
from scone_pl.training import curves, saving
from scone_pl.training.curves import Curves, keep_training
from scone_pl.training.saving import Saving
from scone_pl.training.sharding import FullySharded
from scone_pl.training.snapshots import snapshot_name


def refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    warnings: list[str] = []
    monkeypatch.setattr(curves, "warn", warnings.append)
    monkeypatch.setattr(saving, "warn", warnings.append)
    return warnings


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("first", ["log_metrics", "log_hyperparams", "save", "finalize", "add_image"])
def test_a_disk_that_gets_full_costs_the_curves_and_is_told_once(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    logger = Curves(tmp_path, name="", version="tensorboard")
    calls = {
        "log_metrics": lambda: logger.log_metrics({"train/loss": 1.0}, step=1),
        "log_hyperparams": lambda: logger.log_hyperparams({"lr": 1.0}),
        "save": logger.save,
        "add_image": lambda: logger.add_image("a", np.zeros((2, 2, 3), np.uint8), 1, dataformats="HWC"),
        "finalize": lambda: logger.finalize("success"),
    }
    calls["log_metrics"]()
    assert logger.experiment is logger.experiment
    monkeypatch.setattr(RecordWriter, "write", refuse)
    monkeypatch.setattr(RecordWriter, "flush", refuse)
    for name in (first, *calls, *calls):
        calls[name]()
        time.sleep(0.01)  # the writer's thread
    assert warnings == [
        f"{tmp_path}/tensorboard: no more curves (No space left on device); training continues without them"
    ]


def test_a_folder_that_takes_no_curves_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    (tmp_path / "tensorboard").touch()
    logger = Curves(tmp_path, name="", version="tensorboard")
    assert logger.experiment is not None
    logger.log_metrics({"train/loss": 1.0}, step=1)
    assert len(warnings) == 1


def test_mistakes_are_no_full_disk(tmp_path: Path, warnings: list[str]) -> None:
    logger = Curves(tmp_path, name="", version="tensorboard")
    with pytest.raises(ValueError, match="you tried to log"):
        logger.log_metrics({"train/loss": object()}, step=1)  # type: ignore[dict-item]  # no number, on purpose
    assert not warnings


def test_a_logger_that_a_recipe_names_is_like_the_default_and_others_are_as_they_are(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path), CSVLogger(tmp_path)]
    keep_training(loggers)
    assert [type(logger) for logger in loggers] == [Curves, CSVLogger]


class Disk(FullySharded):
    """A strategy that only says whether the snapshot begun last could be written."""

    def __init__(self, written: list[bool]) -> None:
        self.written, self.under_way = written, False

    def wait_for_snapshot(self) -> bool:
        begun, self.under_way = self.under_way, False
        if begun and not self.written.pop(0):
            raise UserError("not written (No space left on device)")
        return begun


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(
    ("written", "ends_behind"),
    [([False, True, False, True], None), ([True, False, False, True], 3), ([False, False, True, True], 2)],
)
def test_a_second_snapshot_in_a_row_that_fails_ends_the_run(
    written: list[bool], ends_behind: int | None, background: bool, tmp_path: Path, warnings: list[str]
) -> None:
    saves = Saving(background=background)
    saves.folder = tmp_path
    disk = Disk(list(written))
    trainer: Any = SimpleNamespace(strategy=disk, fast_dev_run=False, is_global_zero=True, global_step=0)
    trainer.save_checkpoint = lambda path, weights_only: setattr(disk, "under_way", True)
    ended = None
    for step in range(1, len(written) + 1):
        trainer.global_step = step
        try:
            saves.save(trainer)
            saves._wait(trainer)
        except UserError:
            ended = step
            break
    assert ended == ends_behind
    assert len(warnings) == written[:ended].count(False) - (ended is not None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(1 << 16))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_disk_that_gets_full_under_a_run(devices: int, small_disk: Path, mini_world: Path, tmp_path: Path) -> None:
    run = small_disk / "run"
    args = ["fit", "--config", "experiments/mini/stage1.yaml", "--chain", "null", "--model.init_args.init_from"]
    args += ["runs/mini/base", "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"]
    args += ["--data.packing.token_budget", "600", "--trainer.limit_val_batches", "0", "--data.num_workers", "0"]
    args += ["--checkpoint.every_n_steps", "2", "--trainer.max_steps", "1000", "--output_dir", str(run)]
    args += ["--trainer.devices", str(devices)]
    log = tmp_path / "log"
    process = start_scone(*args, cwd=mini_world, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints" / snapshot_name(2)).exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with pytest.raises(OSError, match="No space left"):
            fill(small_disk / "filler")
        assert process.wait(120) == 2, log.read_text()
    finally:
        process.kill()
    text = log.read_text()
    assert "Traceback" not in text
    assert "No space left on device" in text.strip().splitlines()[-1]
    assert (run / "checkpoints" / snapshot_name(2)).is_dir()
