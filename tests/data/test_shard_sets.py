import dataclasses
import json
import pickle

import pytest
import webdataset
from data_helpers import TINY, encode, make_sample

from scone_pl.data.decoding import decode_rgb
from scone_pl.data.sample import BrokenSampleError
from scone_pl.data.shard_writer import write_shards
from scone_pl.data.shards import ShardSet
from scone_pl.errors import UserError


def test_round_trip(shard_folder):
    shards = ShardSet(shard_folder)
    assert len(shards) == 60
    assert [shard.samples for shard in shards.manifest.shards] == [13, 13, 13, 13, 8]
    for i, sample in enumerate(shards):
        assert sample == make_sample(i)


def test_random_access_equals_sequential(shard_folder):
    shards = ShardSet(shard_folder)
    sequential = list(shards)
    copy = pickle.loads(pickle.dumps(shards))  # noqa: S301
    for i in (59, 0, 13, 12, 26):
        assert shards.read(i) == copy.read(i) == sequential[i]


def test_index_tells_what_the_samples_hold(shard_folder):
    shards = ShardSet(shard_folder)
    for entry, sample in zip(shards.index, shards, strict=True):
        assert (entry.key, entry.kind, entry.instruction) == (sample.key, sample.kind, sample.instruction)
        assert entry.references == tuple(decode_rgb(data).size for data in sample.references)
        assert entry.target == decode_rgb(sample.target).size
    assert shards.index[-1].key == "s0059"
    assert [entry.key for entry in shards.index[2:4]] == ["s0002", "s0003"]
    with pytest.raises(IndexError):
        shards.index[60]


def test_same_samples_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_shards((make_sample(i) for i in range(5)), tmp_path / name, samples_per_shard=3, progress=False)
    for file in ("00000.tar", "00001.tar", "index.jsonl", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert len(list((tmp_path / "a").iterdir())) == 4


def test_plain_webdataset_reads_it(shard_folder):
    urls = [str(path) for path in sorted(shard_folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [make_sample(i).key for i in range(60)]
    assert samples[2]["ref1.png"] == make_sample(2).references[1]
    assert json.loads(samples[1]["json"])["metadata"] == {"number": 1}


def test_target_is_optional(tmp_path):
    write_shards([dataclasses.replace(make_sample(1), target=b"")], tmp_path / "s", progress=False)
    shards = ShardSet(tmp_path / "s")
    assert shards.index[0].target is None
    assert shards.read(0).target == b""


def test_image_formats_keep_their_bytes(tmp_path):
    images = tuple(encode(8, 8, format=name) for name in ("JPEG", "WEBP", "PNG"))
    write_shards([dataclasses.replace(make_sample(0), references=images)], tmp_path / "s", progress=False)
    assert ShardSet(tmp_path / "s").read(0).references == images


def test_more_than_ten_references_keep_their_order(tmp_path):
    sample = make_sample(0, references=12)
    write_shards([sample], tmp_path / "s", progress=False)
    assert ShardSet(tmp_path / "s").read(0) == sample


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_committed_tiny_sets(kind):
    shards = ShardSet(TINY / kind)
    assert len(shards) == 8
    assert {entry.kind for entry in shards.index} == {kind}
    for sample in shards:
        assert max(decode_rgb(sample.target).size) <= 128


def test_unusable_samples_are_refused(tmp_path):
    with pytest.raises(UserError, match="unique"):
        write_shards([make_sample(0), make_sample(0)], tmp_path / "a", progress=False)
    with pytest.raises(UserError, match=r"'a\.b'"):
        write_shards([dataclasses.replace(make_sample(0), key="a.b")], tmp_path / "b", progress=False)
    with pytest.raises(UserError, match="no sample"):
        write_shards([], tmp_path / "c", progress=False)
    with pytest.raises(BrokenSampleError):
        write_shards([dataclasses.replace(make_sample(0), target=b"x")], tmp_path / "d", progress=False)
    for name in "abcd":
        assert not list((tmp_path / name).iterdir())
        with pytest.raises(UserError, match=r"manifest\.json is missing"):
            ShardSet(tmp_path / name)


def copy_of(shard_folder, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in shard_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard": 7}, r"line 1 \(s0000\) does not lie in 00000\.tar"),
        ({"shard": 1}, "does not lie in"),
        ({"length": 10**15}, "does not lie in"),
        ({"offset": -1}, "line 1 is damaged"),
        ({"length": 0}, "line 1 is damaged"),
        ({"target": [0, 8]}, "line 1 is damaged"),
        ({"references": ["ab"]}, "line 1 is damaged"),
        ({"instruction": 5}, "line 1 is damaged"),
    ],
)
def test_an_index_that_does_not_fit_is_told_before_training(shard_folder, tmp_path, change, message):
    file = copy_of(shard_folder, tmp_path) / "index.jsonl"
    first, *rest = file.read_text().splitlines(keepends=True)
    file.write_text(json.dumps({**json.loads(first), **change}) + "\n" + "".join(rest))
    with pytest.raises(UserError, match=message):
        list(ShardSet(file.parent).entries())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../00000.tar"}, r"a shard named '\.\./00000\.tar'"),
        ({"file": "/etc/x.tar"}, "a shard named"),
        ({"sha256": "../../x"}, "checksum"),
        ({"samples": 1}, "samples in total"),
        ({"bytes": None}, "not a readable manifest"),
    ],
)
def test_a_manifest_names_no_files_elsewhere(shard_folder, tmp_path, change, message):
    file = copy_of(shard_folder, tmp_path) / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["shards"][0].update(change)
    file.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message):
        ShardSet(file.parent)


def test_existing_data_set_is_not_overwritten(shard_folder):
    with pytest.raises(UserError, match="already holds"):
        write_shards([make_sample(0)], shard_folder, progress=False)


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda folder: (folder / "00001.tar").unlink(), "00001.tar is missing"),
        (lambda folder: (folder / "00001.tar").write_bytes(b"short"), "00001.tar has 5 bytes"),
        (lambda folder: (folder / "index.jsonl").unlink(), "index.jsonl is missing"),
        (lambda folder: (folder / "index.jsonl").write_text(""), "index.jsonl has 0 lines"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 9}'), "format 9"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    ],
)
def test_incomplete_folders_are_one_line(shard_folder, tmp_path, break_it, named):
    folder = copy_of(shard_folder, tmp_path)
    break_it(folder)
    with pytest.raises(UserError, match=named) as error:
        ShardSet(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        ShardSet(tmp_path / "nowhere")


def test_damaged_samples_have_a_reason(shard_folder, tmp_path):
    folder = copy_of(shard_folder, tmp_path)
    entry = ShardSet(folder).index[1]
    tar = bytearray((folder / "00000.tar").read_bytes())
    begin = tar.index(b'"instruction"', entry.offset)
    tar[begin] = ord("?")
    (folder / "00000.tar").write_bytes(tar)
    shards = ShardSet(folder)
    with pytest.raises(BrokenSampleError) as error:
        shards.read(1)
    assert error.value.reason == "wrong JSON"
    assert shards.read(2) == make_sample(2)
    tar[entry.offset : entry.offset + 512] = b"\xff" * 512
    (folder / "00000.tar").write_bytes(tar)
    with pytest.raises(BrokenSampleError) as error:
        shards.read(1)
    assert error.value.reason in ("torn shard", "missing member")
    (folder / "00000.tar").write_bytes(tar[: entry.offset + 100])
    with pytest.raises(BrokenSampleError) as error:
        shards.read(1)
    assert error.value.reason == "torn shard"
    (folder / "00000.tar").unlink()
    with pytest.raises(BrokenSampleError) as error:
        shards.read(1)
    assert error.value.reason == "unreadable shard"
