"""Conversion from JSONL + images and from another shard set; parallel, killed and gone on with."""

import json
import os
import re
import time

import pytest
from data_helpers import encode, make_sample
from running import start_scone

from scone_pl.data.convert import ConvertConfig, convert
from scone_pl.data.fields import FieldNames
from scone_pl.data.inputs import open_input
from scone_pl.data.sample import Candidate
from scone_pl.data.shard_writer import write_shards
from scone_pl.data.shards import ShardSet
from scone_pl.errors import UserError


@pytest.fixture
def lists(tmp_path):
    """UNO's, X2I's and our own names, and every mistake."""
    folder = tmp_path / "lists"
    (folder / "images").mkdir(parents=True)
    for name, size in (("a", 16), ("b", 24), ("t", 32)):
        (folder / f"images/{name}.png").write_bytes(encode(size, size))
    (folder / "images/broken.png").write_bytes(b"no image")
    good = [
        {"prompt": "uno", "image_paths": ["images/a.png", "images/b.png"], "image_tgt_path": "images/t.png"},
        {"instruction": "x2i", "input_images": ["images/a.png"], "output_image": "images/t.png", "task_type": "edit"},
        {
            "instruction": "own",
            "references": "images/b.png",
            "target": "images/t.png",
            "kind": "multi",
            "candidates": [[{"box": [0, 0, 0.5, 1], "meant": True, "name": "cat"}]],
            "licence": "CC0",
        },
    ]
    bad = [
        {**good[0], "prompt": ""},
        {**good[0], "image_tgt_path": "images/none.png"},
        {**good[0], "image_paths": ["images/broken.png"]},
        {**good[0], "image_paths": [3]},
        {"prompt": "no target", "image_paths": []},
        {**good[2], "kind": "triple"},
        {**good[2], "candidates": [[{"box": 3}]]},
    ]
    lines = [json.dumps(line) for line in [*good, *bad]] + ['{"prompt": ', "[]"]
    (folder / "list.jsonl").write_text("\n".join(lines))
    return folder / "list.jsonl"


def test_json_lines_of_several_styles(lists, tmp_path):
    manifest, faults = convert(open_input(str(lists)), tmp_path / "out", progress=False)
    assert manifest.kinds == {"multi": 1, "single": 2}
    assert faults.counts == {
        "wrong JSON": 2,
        "wrong field": 2,
        "wrong candidates": 1,
        "missing image": 1,
        "missing instruction": 1,
        "missing target": 1,
        "unreadable image": 1,
    }
    assert any("list.jsonl:12: must be a JSON object" in line for line in faults.examples)
    uno, x2i, own = ShardSet(tmp_path / "out")
    assert (uno.key, uno.instruction, uno.target) == ("list-000000000", "uno", encode(32, 32))
    assert uno.references == (encode(16, 16), encode(24, 24))
    assert x2i.metadata == {"task_type": "edit", "source": {"file": "list.jsonl"}}
    assert own.candidates == ((Candidate(box=(0, 0, 0.5, 1), is_target=True, name="cat"),),)
    assert own.metadata["licence"] == "CC0"


def test_fields_keys_and_root_can_be_named(lists, tmp_path):
    moved = tmp_path / "elsewhere.jsonl"
    line = {"id": "x/1", "says": "hello", "from": ["a.png"], "to": "t.png"}
    moved.write_text(json.dumps(line) + "\n" + json.dumps({**line, "says": "again"}) + "\n")
    fields = FieldNames(references="from", target="to", instruction="says", key="id")
    source = open_input(str(moved), fields=fields, image_root=str(lists.parent / "images"))
    manifest, faults = convert(source, tmp_path / "out", progress=False)
    assert manifest.samples == 1
    assert faults.counts == {"duplicate key": 1}
    assert ShardSet(tmp_path / "out").index[0].key.startswith("x_1-")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a", "image_paths": []}\n')
    source = open_input(str(prompts), require_target=False)
    convert(source, tmp_path / "prompts", progress=False)
    assert ShardSet(tmp_path / "prompts").read(0).target == b""


def test_two_conversions_into_one_folder_are_refused(lists, tmp_path, monkeypatch):
    import scone_pl.data.convert as module

    refused, begin = [], module._start_or_resume

    def meanwhile(*arguments):
        with pytest.raises(UserError, match="another process is converting into it") as error:
            convert(open_input(str(lists)), tmp_path / "out", progress=False)
        refused.append(error)
        begin(*arguments)

    monkeypatch.setattr(module, "_start_or_resume", meanwhile)
    manifest, _ = convert(open_input(str(lists)), tmp_path / "out", progress=False)
    assert (manifest.samples, len(refused)) == (3, 1)


def test_names_that_no_key_can_have_stay_apart(lists, tmp_path):
    names = ["a/b", "a_b", "\u732b", "\u72ac", "x" * 90 + "1", "x" * 90 + "2", "plain-1"]
    good = {"instruction": "x", "references": [], "target": "images/t.png"}
    for stem in ("\u732b", "\u72ac"):
        (lists.parent / f"{stem}.jsonl").write_text("".join(json.dumps({**good, "id": n}) + "\n" for n in names))
    lists.unlink()
    (lists.parent / "\u72ac.jsonl").rename(tmp_path / "other.jsonl")
    source = open_input(str(lists.parent), fields=FieldNames(key="id"))
    manifest, _ = convert(source, tmp_path / "named", progress=False)
    assert manifest.samples == len(names)
    keys = [entry.key for entry in ShardSet(tmp_path / "named").index]
    assert {"a_b", "plain-1"} < set(keys)
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,80}", key) for key in keys)
    (tmp_path / "other.jsonl").rename(lists.parent / "\u72ac.jsonl")
    manifest, _ = convert(open_input(str(lists.parent)), tmp_path / "numbered", progress=False)
    assert manifest.samples == 2 * len(names)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "has no rows"),
        ("[{}]", {}, "the source has no valid sample"),
        ("[{}", {}, "the JSON list is not terminated"),
        (None, {}, "x.jsonl: no such file"),
        ("{}", {"image_root": "/nowhere"}, "/nowhere: no such folder"),
        ("{}", {"subset": "x"}, "--subset is for parquet sources"),
        ("{}\n{}", {}, "the source has no valid sample"),
    ],
)
def test_wrong_lists_are_one_line(tmp_path, content, options, message):
    file = tmp_path / "x.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        convert(open_input(str(file), **options), tmp_path / "out", progress=False)
    assert "\n" not in str(error.value)


def test_from_another_shard_set(shard_folder, tmp_path):
    source = open_input(str(shard_folder))
    convert(source, tmp_path / "same", ConvertConfig(samples_per_shard=25), progress=False)
    assert list(ShardSet(tmp_path / "same")) == list(ShardSet(shard_folder))
    assert [shard.samples for shard in ShardSet(tmp_path / "same").manifest.shards] == [25, 25, 10]
    config = ConvertConfig(only="multi", limit=7, shrink=20, reencode="webp")
    manifest, faults = convert(source, tmp_path / "some", config, progress=False)
    assert manifest.kinds == {"multi": 7}
    assert set(faults.counts) == {"other kind"}
    assert max(side for sample in ShardSet(tmp_path / "some").index for side in sample.target) <= 20
    assert b"webp" in (tmp_path / "some/00000.tar").read_bytes()
    with pytest.raises(UserError, match=r"the source has no valid sample \(60 small image, first s0000"):
        convert(source, tmp_path / "none", ConvertConfig(min_side=17), progress=False)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_in_the_middle_and_started_again_is_the_same(tmp_path):
    """With worker processes; nothing is left behind, finished shards are kept."""
    write_shards((make_sample(i) for i in range(600)), tmp_path / "source", progress=False)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    convert(open_input(str(tmp_path / "source")), straight, ConvertConfig(samples_per_shard=10), progress=False)
    command = ["shards", "convert", str(tmp_path / "source"), str(killed), "--samples_per_shard", "10"]
    process = start_scone(*command, "--workers", "2", cwd=tmp_path, start_new_session=True)
    deadline = time.monotonic() + 240  # generous: on a busy machine the start alone may take a minute
    while len(list((killed / ".convert").glob("*.json"))) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()  # the parent alone: its workers must end by themselves
    process.wait()
    while _alive(process.pid):
        assert time.monotonic() < deadline, "workers left behind"
        time.sleep(0.05)
    with pytest.raises(UserError, match="unfinished conversion"):
        convert(open_input(str(tmp_path / "source")), killed, ConvertConfig(samples_per_shard=11), progress=False)
    finished = {path: path.stat().st_mtime_ns for path in killed.glob("*.tar")}
    assert 3 <= len(finished) < 60
    convert(open_input(str(tmp_path / "source")), killed, ConvertConfig(samples_per_shard=10), progress=False)
    kept = sum(path.stat().st_mtime_ns == before for path, before in finished.items())
    assert kept >= len(finished) - 2  # at most the two that were not noted yet
    assert contents(killed) == contents(straight)


def _alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
