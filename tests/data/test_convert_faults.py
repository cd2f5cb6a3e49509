"""Conversions that are cut short, blocked, or started twice."""

import errno
import json
import multiprocessing
import os
import shutil

import pyarrow
import pyarrow.parquet
import pytest
from data_helpers import encode, make_sample

import scone_pl.data.convert as module
from scone_pl.cli.verbs import run
from scone_pl.data.convert import ConvertConfig, convert
from scone_pl.data.inputs import open_input
from scone_pl.data.manifest import MANIFEST
from scone_pl.data.shard_writer import write_shards
from scone_pl.data.shards import ShardSet
from scone_pl.errors import UserError


def main(args: list[str]) -> int:
    """Runs a command of `shards`; an error raises."""
    return run(["shards", *args])


CONFIG = ConvertConfig(samples_per_shard=4)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "set"
    write_shards((make_sample(i) for i in range(12)), folder, progress=False)
    return folder


def make(source, output, config=CONFIG, **options):
    return convert(open_input(str(source)), output, config, progress=False, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def stopped(source, tmp_path, monkeypatch):
    """A conversion that was stopped when all ranges were done."""

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            make(source, tmp_path / "out")
    return tmp_path / "out"


def empty(file):
    file.write_bytes(b"")


def zeroed(file):
    file.write_bytes(bytes(file.stat().st_size))


def halved(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)


def without_last_line(file):
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize("damage", [empty, zeroed, halved, flipped, without_last_line, os.unlink])
@pytest.mark.parametrize("name", ["00001.tar", ".convert/00001.jsonl", ".convert/00001.json"])
def test_work_files_that_a_power_cut_spoilt_are_made_again(name, damage, source, stopped, tmp_path):
    make(source, tmp_path / "straight")
    damage(stopped / name)
    make(source, stopped)
    assert contents(stopped) == contents(tmp_path / "straight")
    assert len(ShardSet(stopped)) == 12


@pytest.mark.parametrize("damage", [empty, zeroed, halved])
def test_without_a_plan_all_is_made_again(damage, source, stopped, tmp_path):
    make(source, tmp_path / "straight")
    damage(stopped / ".convert/plan.json")
    make(source, stopped)
    assert contents(stopped) == contents(tmp_path / "straight")


def test_records_of_an_older_version_are_made_again(source, stopped, tmp_path):
    make(source, tmp_path / "straight")
    for file in (stopped / ".convert").glob("0*.json"):
        record = json.loads(file.read_text())
        del record["index_sha256"]
        file.write_text(json.dumps(record))
    make(source, stopped)
    assert contents(stopped) == contents(tmp_path / "straight")


def test_a_finished_conversion_is_said_and_left_alone(source, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["convert", str(source), str(out), "--workers", "1", "--only", "multi"]
    assert main(command) == 0
    first, before = capsys.readouterr().out, contents(out)
    (out / ".convert").mkdir()  # killed just before it was removed
    assert main(command) == 0
    again = capsys.readouterr().out
    assert "already converted" in again
    assert again.replace("already converted: ", "") == first
    assert "skipped: 6 other kind" in first
    assert contents(out) == before
    with pytest.raises(UserError, match="already holds a data set, of another source or with other settings"):
        main([*command, "--reencode", "webp"])
    (out / "00000.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"00000\.tar has 0 bytes"):
        main(command)


def test_a_folder_of_something_else_is_not_written_to(source, tmp_path):
    (tmp_path / "00000.tar").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds 00000\.tar, which no conversion has written"):
        make(source, tmp_path)
    assert (tmp_path / "00000.tar").read_bytes() == b"mine"


def test_source_and_output_may_not_be_one(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "set")
    (tmp_path / "link").symlink_to(copy)
    before = contents(copy)
    for output in (copy, copy / "inside", tmp_path / "link", tmp_path / "link/inside/deeper"):
        with pytest.raises(UserError, match="the source"):
            main(["convert", str(copy), str(output), "--workers", "1"])
    assert contents(copy) == before


def test_outputs_that_cannot_be_written_are_one_line(source, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    outputs = [tmp_path / "file", tmp_path / "file/below", tmp_path / "nothing", tmp_path / ("x" * 300), "/proc/out"]
    for output in outputs:
        with pytest.raises(UserError, match=str(output)[:40]) as error:
            make(source, output)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(workers, source, tmp_path, monkeypatch):
    before = set(multiprocessing.active_children())
    if workers == 1:

        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(UserError, match="No space left") as error:
                make(source, tmp_path / "out")
    else:
        (tmp_path / "out/.convert").mkdir(parents=True)
        (tmp_path / "out/.convert/00001.jsonl").mkdir()  # what a worker cannot replace
        with pytest.raises(UserError, match=r"00001\.jsonl") as error:
            make(source, tmp_path / "out", workers=2)
        (tmp_path / "out/.convert/00001.jsonl").rmdir()
    assert "\n" not in str(error.value)
    assert set(multiprocessing.active_children()) <= before
    make(source, tmp_path / "out")
    make(source, tmp_path / "straight")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


@pytest.mark.parametrize("workers", [0, -1, 10**6])
def test_absurd_numbers_of_workers(workers, source, tmp_path):
    with pytest.raises(UserError, match=f"--workers is {workers}"):
        make(source, tmp_path / "out", workers=workers)
    with pytest.raises(UserError, match=f"--workers is {workers}"):
        main(["verify", str(source), "--workers", str(workers)])
    assert not (tmp_path / "out").exists()


def test_a_conversion_that_another_has_just_finished(source, tmp_path, monkeypatch):
    """Between the look for a manifest and the lock."""
    claimed, raced = module._lock, []

    def meanwhile(output):
        if not raced:
            raced.append(True)
            make(source, output)
        return claimed(output)

    monkeypatch.setattr(module, "_lock", meanwhile)
    with pytest.raises(UserError, match="already holds a data set"):
        make(source, tmp_path / "out")
    monkeypatch.undo()
    assert (tmp_path / "out" / MANIFEST).exists()
    assert make(source, tmp_path / "out")[0].samples == 12


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_source_that_changes_while_it_is_converted(suffix, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encode(16, 16))
    source = tmp_path / f"rows{suffix}"

    def write(instruction):
        rows = [{"references": ["a.png"], "target": "a.png", "instruction": instruction} for _ in range(3)]
        if suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), source)
        else:
            lines = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
            source.write_text(lines)

    write("before")
    finish = module._finish

    def changed_just_before(*arguments):
        write("longer than before")
        return finish(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", changed_just_before)
        with pytest.raises(UserError, match=r"out: the source has changed while .* another folder") as error:
            make(source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / MANIFEST).exists()
    shutil.rmtree(tmp_path / "out")
    make(source, tmp_path / "out")
    assert {entry.instruction for entry in ShardSet(tmp_path / "out").index} == {"longer than before"}


def test_a_second_process_that_tidies_up_a_finished_conversion(source, tmp_path, monkeypatch):
    """Between the manifest and the removal of the work files, another process may see the set as finished."""
    write_manifest = module.write_manifest

    def then_finished_elsewhere(*arguments):
        manifest = write_manifest(*arguments)
        assert module.finished(open_input(str(source)), tmp_path / "out", CONFIG) is not None
        return manifest

    monkeypatch.setattr(module, "write_manifest", then_finished_elsewhere)
    assert make(source, tmp_path / "out")[0].samples == 12
    assert not (tmp_path / "out/.convert").exists()
