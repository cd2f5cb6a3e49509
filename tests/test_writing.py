"""Files and folders appear whole or not at all, whenever they are killed; what cannot be written is one line."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from scone_pl import files
from scone_pl.errors import UserError
from scone_pl.files import appearing, clear_leftovers, replace_folder, restore, write_bytes, writing
from scone_pl.outputs import check_output_file, check_output_folder


def killed_at(line: int, act: Callable[[], None]) -> bool:
    """Runs `act` in a child process that ends at the so-manieth line within `files.py`; whether it came that far."""
    child = os.fork()
    if not child:
        left = line

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename != files.__file__:
                return None
            left -= event == "line"
            if not left:
                os._exit(9)
            return trace

        try:
            sys.settrace(trace)
            act()
            os._exit(0)
        finally:
            os._exit(1)  # or the child would go on as pytest
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "a").write_text(content)
    (path / "b").write_text(content)
    return path


def content(path: Path) -> set[str]:
    return {file.read_text() for file in path.iterdir()}


@pytest.mark.parametrize(
    "exchange", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["exchanged at once", "renamed twice"]
)
def test_a_kill_at_any_line_leaves_the_old_folder_or_the_new(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    seen = set()
    for line in range(1, 1000):
        work = tmp_path / str(line)
        work.mkdir()
        path, new = folder(work / "weights", "old"), folder(work / ".weights.1.partial", "new")
        killed = killed_at(line, lambda new=new, path=path: replace_folder(new, path))  # type: ignore[misc]  # the defaults bind the loop's values
        clear_leftovers(work)  # what the next start does
        assert [p.name for p in work.iterdir()] == ["weights"]
        (found,) = content(path)
        assert len(list(path.iterdir())) == 2
        seen.add(found)
        if not killed:
            break
    assert not killed
    assert found == "new"
    assert seen == {"old", "new"}


def test_a_kill_between_two_renames_is_undone_by_the_next_writer(tmp_path: Path) -> None:
    folder(tmp_path / ".weights.123.old", "old")
    restore(tmp_path / "weights")
    assert content(tmp_path / "weights") == {"old"}
    folder(tmp_path / ".weights.124.old", "older")
    with pytest.raises(ZeroDivisionError), appearing(tmp_path / "weights"):
        1 / 0  # noqa: B018
    assert content(tmp_path / "weights") == {"old"}
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize("before", [pytest.param(None, marks=pytest.mark.slow), b"old"])
def test_a_kill_at_any_line_leaves_the_old_file_or_the_new(before: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "made/a.txt"
    if before is not None:
        write_bytes(before, file)
    for line in range(1, 1000):
        killed = killed_at(line, lambda: write_bytes(b"new", file))
        found = file.read_bytes() if file.exists() else None
        assert found in (before, b"new")
        if not killed:
            break
        if found == b"new":
            write_bytes(before, file) if before is not None else file.unlink()
    assert not killed
    assert found == b"new"


def test_files_are_synced_before_they_have_their_name_and_their_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(descriptor: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        did.append("file" if name.endswith(".partial") else name)
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", noted_sync)
    monkeypatch.setattr(files.os, "replace", lambda *paths: (did.append("replace"), replace(*paths)))
    write_bytes(b"a", tmp_path / "run/a.txt")
    assert did == [tmp_path.name, "file", "replace", "run"]


def test_a_folder_with_all_that_is_in_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append(os.path.basename(path)))
    with appearing(tmp_path / "out") as aside:
        (aside / "inner").mkdir()
        (aside / "inner/a").touch()
        (aside / "b").touch()
    assert {"a", "b", "inner"} <= set(synced[:-1])
    assert synced[-1] == tmp_path.name


def test_a_replaced_link_leaves_what_it_led_to(tmp_path: Path) -> None:
    there = folder(tmp_path / "elsewhere", "old")
    (tmp_path / "weights").symlink_to(there)
    with appearing(tmp_path / "weights") as aside:
        (aside / "a").write_text("new")
    assert content(there) == {"old"}
    assert content(tmp_path / "weights") == {"new"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "weights"]


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(b"old", tmp_path / "a")
    for name, make in (("a", writing), ("out", appearing)):
        message = rf"/{name}: cannot be written \(No space left on device\); make room"
        with pytest.raises(UserError, match=message), make(tmp_path / name):
            raise FULL
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_what_goes_wrong_with_another_file_is_not_put_down_to_this_one(tmp_path: Path) -> None:
    for make in (writing, appearing):
        with pytest.raises(FileNotFoundError, match="absent"), make(tmp_path / "a"):
            (tmp_path / "absent").read_bytes()


def impossible(tmp_path: Path) -> dict[str, Path]:
    """Outputs that neither file nor folder can be made at."""
    (tmp_path / "file").touch()
    (tmp_path / "nothing").symlink_to(tmp_path / "absent/target")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return {
        "below a file": tmp_path / "file/run",
        "far below a file": tmp_path / "file/a/b/run",
        "a null byte": tmp_path / "a\0b",
        "a null byte above": tmp_path / "a\0b/run",
        "too long a name": tmp_path / ("a" * 300),
        "too long a name above": tmp_path / ("é" * 200) / "run",
        "below a link to nothing": tmp_path / "nothing/run",
        "below a link to itself": tmp_path / "loop/run",
        "where the kernel makes no files": Path("/proc/run"),
        "a pipe": tmp_path / "pipe",
        "a device": Path("/dev/null"),
    }


def test_outputs_that_cannot_be_are_refused_before_and_while_writing_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, path in impossible(tmp_path).items():
        for act in (
            check_output_file,
            check_output_folder,
            lambda path: write_bytes(b"", path),
            lambda path: appearing(path).__enter__(),
        ):
            with pytest.raises(UserError) as refused:
                act(path)
            assert "\n" not in str(refused.value), name
            assert "\0" not in str(refused.value), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "loop", "nothing", "pipe"]
    check_output_file(tmp_path / "not/yet/there")
    check_output_folder(tmp_path / "not/yet/there")
    assert not (tmp_path / "not").exists()
    for check, wrong in ((check_output_file, tmp_path), (check_output_folder, tmp_path / "file")):
        with pytest.raises(UserError, match="not a"):
            check(wrong)


def test_names_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    file = tmp_path / ("a" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    check_output_file(file)
    write_bytes(b"a", file)
    assert file.read_bytes() == b"a"


@pytest.mark.skipif(os.geteuid() != 0, reason="as another user, which only root can become")
def test_a_folder_without_permission_is_refused_before(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    child = os.fork()
    if not child:
        try:
            os.setuid(65534)
            check_output_folder(tmp_path / "run")
        except UserError as error:
            os._exit(7 if "Permission denied" in str(error) else 8)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_folder_that_takes_no_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", f"{dir}/tmp123")

    monkeypatch.setattr("scone_pl.outputs.tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError) as refused:
        check_output_folder(tmp_path / "a/run")
    line = f"{tmp_path}/a/run: cannot be written ({tmp_path}: Permission denied); choose another"
    assert str(refused.value) == line
