"""Each fault is a counted skip or a one-line error before the first step; none hangs a rank."""

import itertools
import json
import struct
import zlib
from collections import Counter
from pathlib import Path

import pytest
from data_helpers import Server, encode, make_sample, sign_index, write_raw
from running import ROOT, run_python, run_ranks

from scone_pl.data.shard_writer import write_shards
from scone_pl.data.shards import ShardSet
from scone_pl.data.sources import Mixture, Source
from scone_pl.data.stream import Cursor, PackMaker, PackStream
from scone_pl.data.verify import verify_shards
from scone_pl.errors import UserError

BAD = "s0007"


def bomb():
    """A PNG of 60 bytes that says it has 30000 x 30000 pixels."""
    data = bytearray(encode(8, 8))
    data[16:24] = struct.pack(">II", 30000, 30000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def replace(part, content):
    """Puts `content`, or what it returns for the old content, into a member of the bad sample."""

    def spoil(key, members):
        new = [content(old) if callable(content) else content for _, old in members]
        return [
            (name, changed if key == BAD and name.partition(".")[2] == part else old)
            for (name, old), changed in zip(members, new, strict=True)
        ]

    return spoil


def without(part):
    return lambda key, members: [m for m in members if key != BAD or m[0].partition(".")[2] != part]


def edited(**changes):
    return lambda old: json.dumps({**json.loads(old), **changes}).encode() if old[:1] == b"{" else old


def each_its_own(faults):
    """Spoils each sample of `faults` in the way that it names."""
    return lambda key, members: FAULTS[faults[key]][0](BAD, members) if key in faults else members


FAULTS = {
    "truncated image": (replace("ref0.png", lambda old: old[: len(old) // 2]), "truncated image"),
    "corrupt image": (replace("target.png", b"no image"), "unreadable image"),
    "decompression bomb": (replace("ref0.png", bomb()), "image too large"),
    "zero-byte reference": (replace("ref0.png", b""), "empty member"),
    "zero-byte target": (replace("target.png", b""), "empty member"),
    "missing target": (without("target.png"), "missing target"),
    "missing JSON": (without("json"), "missing member"),
    "missing instruction": (replace("json", edited(instruction=None)), "missing instruction"),
    "empty instruction": (replace("json", edited(instruction="  ")), "missing instruction"),
    "wrong JSON": (replace("json", b'{"instruction": '), "wrong JSON"),
    "JSON list": (replace("json", b"[1]"), "wrong JSON"),
    "nested JSON": (replace("json", b"[" * 200_000), "wrong JSON"),
    "unknown kind": (replace("json", edited(kind="triple")), "wrong JSON"),
    "wrong box": (replace("json", edited(candidates=[[{"box": [0, 0, "a", 1], "meant": True}]] * 2)), "wrong JSON"),
    "turned box": (replace("json", edited(candidates=[[{"box": [1, 0, 0, 1], "meant": True}]] * 2)), "wrong JSON"),
    "another sample": (lambda key, members: members if key != BAD else [("x.json", b"{}")], "torn shard"),
}


def epoch_of(folder, sequence_format, tokenizer, packing, storage=None):
    """Keys and skip counts of one epoch."""
    mixture = Mixture([Source(str(folder))], sequence_format, tokenizer, packing, storage)
    stream = PackStream(PackMaker(mixture, sequence_format, tokenizer, packing, seed=3), Cursor())
    keys, skipped, skip_messages = [], Counter(), []
    for _, batch in zip(mixture.plan(3, 0), stream, strict=False):
        keys += batch.sequence.keys
        skipped.update(batch.skipped)
        skip_messages += batch.skip_messages
    return keys, skipped, skip_messages


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_sample_is_one_counted_skip(fault, sequence_format, tokenizer, packing, tmp_path):
    spoil, reason = FAULTS[fault]
    samples = [make_sample(i, references=2) for i in range(12)]
    folder = write_raw(tmp_path / "s", samples, spoil)
    keys, skipped, skip_messages = epoch_of(folder, sequence_format, tokenizer, packing)
    assert skipped == {reason: 1}
    assert sorted(keys) == sorted({s.key for s in samples} - {BAD})
    assert len(skip_messages) == 1
    assert BAD in skip_messages[0]
    assert "00000.tar" in skip_messages[0]
    if fault not in ("missing target",):  # for prediction a set may lack targets, so it is no damage
        assert verify_shards(folder, progress=False).faults.counts[reason] == 1


def test_a_torn_tar_loses_only_what_is_gone(sequence_format, tokenizer, packing, tmp_path):
    samples = [make_sample(i) for i in range(12)]
    write_shards(samples, tmp_path / "s", samples_per_shard=4, progress=False)
    tar = tmp_path / "s" / "00001.tar"
    entries = [entry for entry in ShardSet(tmp_path / "s").index if entry.shard == 1]
    whole = tar.read_bytes()
    tar.write_bytes(whole[: entries[2].offset + 700])
    with pytest.raises(UserError, match=r"00001\.tar has \d+ bytes where"):
        ShardSet(tmp_path / "s")
    tar.write_bytes(whole[: entries[2].offset + 700].ljust(len(whole), b"\0"))  # the right size, the end lost
    keys, skipped, _ = epoch_of(tmp_path / "s", sequence_format, tokenizer, packing)
    assert len(keys) == 10
    assert skipped.total() == 2


def key_twice(folder):
    write_shards([make_sample(i) for i in range(5)], folder, progress=False)
    index = (folder / "index.jsonl").read_text()
    (folder / "index.jsonl").write_text(index.replace("s0004", "s0002"))
    sign_index(folder)


def empty_set(folder):
    """As a tool would write it that left every sample out."""
    write_shards([make_sample(0)], folder, progress=False)
    (folder / "index.jsonl").write_text("")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "samples": 0, "bytes": 0, "kinds": {}, "shards": []}))
    sign_index(folder)


def test_duplicate_keys_and_empty_sources_end_before_the_first_step(sequence_format, tokenizer, packing, tmp_path):
    key_twice(tmp_path / "twice")
    with pytest.raises(UserError, match="two samples have the key 's0002'"):
        Mixture([Source(str(tmp_path / "twice"))], sequence_format, tokenizer, packing)
    empty_set(tmp_path / "empty")
    with pytest.raises(UserError, match="has no samples"):
        Mixture([Source(str(tmp_path / "empty"))], sequence_format, tokenizer, packing)


def launch(runs, ranks=None, timeout=150):
    """Several runs one after the other in the same processes; what each rank says of each.

    Lightning launches the ranks, or they are started as torchrun would start `ranks`.
    """
    words = [str(Path(__file__).with_name("distributed_run.py")), json.dumps(runs)]
    if ranks is None:
        processes = [run_python(*words, cwd=ROOT, timeout=timeout)]
    else:
        processes = run_ranks(*words, ranks=ranks, timeout=timeout)
    results = [[json.loads(file.read_text()) for file in sorted(Path(run["out"]).glob("rank*.json"))] for run in runs]
    return processes, results


@pytest.mark.slow
def test_two_ranks_agree_on_every_fault(tmp_path):
    """One pair of processes, run after run; a rank that waits for the other for ever fails by the time limit."""
    samples = [make_sample(i, references=2) for i in range(40)]
    shards = write_raw(tmp_path / "one_bad", samples, FAULTS["corrupt image"][0], samples_per_shard=8)
    write_raw(tmp_path / "all_bad", samples[:4], lambda _, members: [(members[0][0], b"{")])
    half = {s.key for s in samples[::2]}
    kinds = ["truncated image", "decompression bomb", "zero-byte target", "wrong JSON", "missing instruction"]
    write_raw(tmp_path / "kinds", samples, each_its_own({f"s{3 * i:04d}": kind for i, kind in enumerate(kinds)}))
    write_shards(samples[:3], tmp_path / "few", samples_per_shard=3, progress=False)
    key_twice(tmp_path / "twice")
    write_shards(samples[:8], tmp_path / "torn", samples_per_shard=4, progress=False)
    (tmp_path / "torn/00001.tar").write_bytes((tmp_path / "torn/00001.tar").read_bytes()[:3000])
    empty_set(tmp_path / "empty")
    write_raw(tmp_path / "half_bad", samples, lambda key, m: [(m[0][0], b"{"), *m[1:]] if key in half else m)

    def flaky(path, count):
        return 500 if path.endswith(".tar") and count <= 2 else None

    def one_gone(path, count):
        return 500 if path.endswith("00002.tar") else None

    with Server(tmp_path, flaky) as recovers, Server(tmp_path, one_gone) as fails:
        folders = {
            "one_bad": (shards, {}),
            "worker_dies": (shards, {"workers": 1, "kill_worker_at": 2}),
            "kinds": (tmp_path / "kinds", {"share": 0.5, "workers": 1}),
            "few": (tmp_path / "few", {"workers": 2}),
            "twice": (tmp_path / "twice", {}),
            "torn": (tmp_path / "torn", {}),
            "empty": (tmp_path / "empty", {}),
            "half_bad": (tmp_path / "half_bad", {"workers": 1}),
            "all_bad": (tmp_path / "all_bad", {}),
            "recovers": (f"{recovers.url}/one_bad", {}),
            "fails": (f"{fails.url}/one_bad", {"share": 0.5}),
        }
        runs = [
            {"folder": str(folder), "out": str(tmp_path / f"out_{name}"), "ranks": 2, "steps": 16, **options}
            for name, (folder, options) in folders.items()
        ]
        processes, results = launch(runs, ranks=2)
    for process in processes:
        assert process.returncode == 0, process.stderr
    found = dict(zip(folders, results, strict=True))
    for name, (one, two) in found.items():
        assert (one["seen"], one["skipped"], one.get("error")) == (two["seen"], two["skipped"], two.get("error")), name
        assert len(one["steps"]) == len(two["steps"])
        assert "\n" not in one.get("error", "")
    one_bad = found["one_bad"][0]
    kept = sum(len(step) - 2 for rank in found["one_bad"] for step in rank["steps"])
    assert one_bad["skipped"] == {"unreadable image": one_bad["seen"] - kept}
    assert one_bad["logged"]["data/skipped/unreadable image"] == one_bad["skipped"]["unreadable image"] > 0
    assert f"{BAD}: unreadable image" in "".join(process.stderr for process in processes)
    assert "data worker process ended" in found["worker_dies"][0]["error"]
    reasons = {FAULTS[kind][1] for kind in kinds}
    assert set(found["kinds"][0]["skipped"]) == reasons
    assert [len(rank["steps"]) for rank in found["few"]] == [16, 16]  # one shard, two packs, four consumers
    assert {key for rank in found["few"] for step in rank["steps"] for key in step[2:]} == {"s0000", "s0001", "s0002"}
    for name, said in (("twice", "key 's0002'"), ("torn", "00001.tar has 3000 bytes"), ("empty", "has no samples")):
        assert said in found[name][0]["error"]
        assert not found[name][0]["steps"]
    assert "more than data.max_skipped_fraction 0.01 of 1000" in found["half_bad"][0]["error"]
    assert "no readable sample" in found["all_bad"][0]["error"]
    assert "error" not in found["recovers"][0]
    assert found["recovers"][0]["skipped"] == one_bad["skipped"]
    assert found["fails"][0]["skipped"]["unreadable shard"] > 0


@pytest.mark.slow
def test_resume_on_other_ranks_and_workers_after_two_kills(sequence_format, tokenizer, packing, tmp_path):
    """Real processes, SIGKILL in mid-step, over an epoch boundary."""
    write_shards([make_sample(i) for i in range(60)], tmp_path / "s", samples_per_shard=13, progress=False)
    common = {"folder": str(tmp_path / "s"), "out": str(tmp_path / "out"), "save_every": 2}
    phases = [
        {"ranks": 2, "workers": 0, "steps": 99, "die_at": 5, "die_rank": 1},
        {"ranks": 1, "workers": 2, "steps": 99, "die_at": 15, "die_rank": 0},
        {"ranks": 2, "workers": 1, "steps": 24},
    ]
    log, checkpoint = [], tmp_path / "out/checkpoints/last.ckpt"
    for phase in phases:
        (process,), _ = launch([{**common, **phase}])
        last = phase is phases[-1]
        assert (process.returncode == 0) == last, process.stderr
        rows = []
        for file in sorted((tmp_path / "out").glob("log*.jsonl")):
            rows += [json.loads(line)[1:] for line in file.read_text().splitlines()]
            file.unlink()
        consumed = consumed_of(checkpoint)
        log += sorted(row for row in rows if row[0] < consumed)
    mixture = Mixture([Source(str(tmp_path / "s"))], sequence_format, tokenizer, packing)
    stream = PackStream(PackMaker(mixture, sequence_format, tokenizer, packing, seed=5), Cursor())
    batches = itertools.islice(stream, len(log))
    straight = [[batch.position.number, batch.position.epoch, *batch.sequence.keys] for batch in batches]
    assert {epoch for _, epoch, *_ in log} >= {0, 1}, "no epoch boundary"
    keys = Counter((epoch, key) for _, epoch, *keys in log for key in keys)
    expected = Counter((epoch, key) for _, epoch, *keys in straight for key in keys)
    assert not expected - keys, "missing samples"
    assert not keys - expected, "doubled samples"
    assert log == straight, "another order"


def consumed_of(checkpoint):
    import torch

    return torch.load(checkpoint, weights_only=True)["PackedDataModule"]["consumed"]
