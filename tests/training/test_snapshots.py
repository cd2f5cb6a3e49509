"""Snapshots appear whole or not at all, are kept by policy, and are read strictly."""

from __future__ import annotations

import errno
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from scone_pl.errors import UserError
from scone_pl.training import saving, snapshots
from scone_pl.training.saving import Saving, check_disk
from scone_pl.training.snapshots import SnapshotWriter, prune, read_run, read_tensors, snapshot_name


def state(value: float) -> dict[str, Any]:
    return {"model": {"w": torch.full((4, 3), value), "b": torch.arange(3.0) + value}}


def written(path: Path, value: float) -> Path:
    writer = SnapshotWriter()
    writer.write(state(value), {"global_step": int(value)}, path)
    writer.wait()
    return path


def test_what_is_written_is_what_was_there_when_it_began(tmp_path: Path) -> None:
    writer, tensors = SnapshotWriter(), state(1.0)
    path = tmp_path / snapshot_name(7)
    writer.write(tensors, {"global_step": 7, "nested": {"numbers": [1, 2.5]}}, path)
    tensors["model"]["w"].fill_(9)  # training continues
    writer.wait()
    result = state(0.0)
    read_tensors(path, result, "model")
    assert result["model"]["w"].equal(torch.ones(4, 3))
    assert result["model"]["b"].equal(torch.arange(3.0) + 1)
    assert read_run(path) == {"global_step": 7, "nested": {"numbers": [1, 2.5]}}
    assert [p.name for p in tmp_path.iterdir()] == ["step-000007"]


@pytest.mark.parametrize("failing", ["tensors", "run", "rename"])
def test_a_failed_write_leaves_the_one_before(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = written(tmp_path / snapshot_name(1), 1.0)
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_: Any, **__: Any) -> None:
        raise full

    if failing == "tensors":
        monkeypatch.setattr(FileSystemWriter, "write_data", fail)
    elif failing == "run":
        monkeypatch.setattr(snapshots.os, "fsync", fail)
    else:
        monkeypatch.setattr(snapshots, "replace_folder", fail)
    with pytest.raises(UserError, match=r"step-000002: not written \(.*No space left on device\); earlier"):
        written(tmp_path / snapshot_name(2), 2.0)
    monkeypatch.undo()
    assert snapshots.snapshots(tmp_path) == [first]
    assert not list(tmp_path.glob(".*"))
    result = state(0.0)
    read_tensors(first, result, "model")
    assert result["model"]["w"].equal(torch.ones(4, 3))
    assert written(tmp_path / snapshot_name(2), 2.0).is_dir()


def test_leftovers_of_a_crash_are_no_snapshots(tmp_path: Path) -> None:
    (tmp_path / ".step-000009.partial").mkdir()
    (tmp_path / "step-000009.txt").touch()
    first = written(tmp_path / snapshot_name(3), 3.0)
    assert snapshots.snapshots(tmp_path) == [first]
    assert not (tmp_path / ".step-000009.partial").exists()


def test_the_policy_keeps_the_last_and_every_nth(tmp_path: Path) -> None:
    for step in range(100, 1100, 100):
        (tmp_path / snapshot_name(step)).mkdir()
    prune(tmp_path, keep_last=2, keep_every=400)
    assert [snapshots.step_of(p) for p in snapshots.snapshots(tmp_path)] == [400, 800, 900, 1000]
    prune(tmp_path, keep_last=1, keep_every=0)
    assert [snapshots.step_of(p) for p in snapshots.snapshots(tmp_path)] == [1000]


def test_names_and_shapes_must_fit(tmp_path: Path) -> None:
    path = written(tmp_path / snapshot_name(1), 1.0)
    wrong = {"model": {"w": torch.zeros(4, 2), "c": torch.zeros(1)}}
    with pytest.raises(UserError, match=r"missing c; unexpected b; w has shape \[4, 3\], the model needs \[4, 2\]"):
        read_tensors(path, wrong, "model")


@pytest.mark.parametrize("file", ["run.pt", ".metadata", "__0_0.distcp"])
def test_damage_is_named(file: str, tmp_path: Path) -> None:
    path = written(tmp_path / snapshot_name(1), 1.0)
    (path / file).write_bytes((path / file).read_bytes()[:20])

    def read() -> None:
        read_run(path)
        read_tensors(path, state(0.0), "model")

    with pytest.raises(UserError, match=r"step-000001: not readable \(.*move it aside to resume"):
        read()


def test_senseless_settings_and_full_disks_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="keep_last is 0; it must be a whole number, at least 1"):
        Saving(keep_last=0)
    check_disk(tmp_path / "not/yet/there", 1, keep_last=2)
    with pytest.raises(UserError, match=r"GB free, but the snapshots to come need 3000000000\.0 GB"):
        check_disk(tmp_path / "not/yet/there", 10**18, keep_last=2)


def test_a_run_that_goes_on_needs_room_for_what_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    for step in (1, 2):
        (tmp_path / snapshot_name(step)).mkdir()
    check_disk(tmp_path, 100, keep_last=2)
    with pytest.raises(UserError, match="GB free"):
        check_disk(tmp_path, 101, keep_last=2)


def test_told_while_the_last_snapshot_is_written(tmp_path: Path) -> None:
    """The stage's steps are done, but no stage behind it may start."""
    saves = Saving()
    saves.folder, saves._signal = tmp_path, signal.SIGTERM
    saved: list[Path] = []
    trainer: Any = SimpleNamespace(fast_dev_run=False, global_step=3, is_global_zero=True, strategy=None)
    trainer.save_checkpoint = lambda path, weights_only: saved.append(path)
    with pytest.raises(saving.Stopped) as stop:
        saves.on_train_end(trainer, None)  # type: ignore[arg-type]  # the module is not read
    assert stop.value.code == 143
    assert saved == [tmp_path / snapshot_name(3)]
