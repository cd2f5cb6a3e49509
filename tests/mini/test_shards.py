import pytest
from PIL import Image

from scone_pl.errors import UserError
from scone_pl.mini.commands import main
from scone_pl.mini.episode import TASKS
from scone_pl.mini.shards import WORLD_SETS, world_samples, write_world

SIZES = ["--base_single", "7", "--refined_single", "4", "--multi_candidate", "8", "--progress", "false"]


def test_three_sets_are_written_once(tmp_path, capsys):
    from scone_pl.data.shards import ShardSet

    assert main(["shards", "--output", str(tmp_path), *SIZES]) == 0
    assert "written" in capsys.readouterr().out
    kinds = {}
    for name in WORLD_SETS:
        shards = ShardSet.open(tmp_path / name)
        samples = list(shards)
        kinds[name] = {s.kind for s in samples}
        assert {s.metadata["task"] for s in samples} == set(WORLD_SETS[name].tasks)
    assert kinds == {"base_single": {"single"}, "refined_single": {"single"}, "multi_candidate": {"multi"}}
    before = (tmp_path / "base_single" / "manifest.json").stat().st_mtime_ns
    assert main(["shards", "--output", str(tmp_path), *SIZES]) == 0
    assert capsys.readouterr().out.count("already there") == 3
    assert (tmp_path / "base_single" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="base_single holds another data set"):
        main(["shards", "--output", str(tmp_path), *SIZES, "--seed", "1"])


def test_an_unfinished_set_is_written_again(tmp_path):
    options = {"samples": 3, "tasks": TASKS[:1], "progress": False}
    assert write_world(tmp_path / "set", **options).samples == 3
    (tmp_path / "set" / "manifest.json").unlink()
    assert write_world(tmp_path / "set", **options).samples == 3
    assert write_world(tmp_path / "set", **options) is None


def test_a_task_named_twice_comes_twice_as_often_without_repeats():
    samples = list(world_samples(9, seed=0, tasks=(TASKS[0], TASKS[1], TASKS[0]), stream="base"))
    assert len({s.key for s in samples}) == 9
    assert sum(s.metadata["task"] == TASKS[0] for s in samples) == 6


def test_contact_sheet(tmp_path):
    file = tmp_path / "sheet.png"
    assert main(["picture", "--output", str(file), "--per_task", "2"]) == 0
    with Image.open(file) as sheet:
        assert sheet.width > 2 * 3 * 16 * 6
