"""Damage to a set is a counted skip or one line; never a sample that is not what was written."""

import dataclasses
import io
import json
import os
import random
import tarfile
import tracemalloc
from collections import Counter

import pytest
from data_helpers import TINY, make_sample, sign_index, write_raw

from scone_pl.data.convert import ConvertConfig, convert
from scone_pl.data.inputs import open_input
from scone_pl.data.manifest import Manifest
from scone_pl.data.members import checksum, parse_members
from scone_pl.data.sample import BrokenSampleError, sample_or_error
from scone_pl.data.shard_writer import shard_info, write_manifest, write_shards
from scone_pl.data.shards import ShardSet
from scone_pl.data.sources import Mixture, Source
from scone_pl.data.stream import Cursor, PackMaker, PackStream
from scone_pl.data.verify import verify_shards
from scone_pl.errors import UserError

pytestmark = pytest.mark.slow

COUNT = 6
SAMPLES = [make_sample(i, references=2) for i in range(COUNT)]
BAD = SAMPLES[2].key


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "set"
    write_shards(SAMPLES, folder, samples_per_shard=3, progress=False)
    return folder


def copy_of(folder, target):
    target.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def sign(folder):
    """Gives every file its right sum again, as a tool would that does not look into them."""
    manifest = ShardSet(folder, check_files=False).manifest
    write_manifest(folder, manifest.kinds, [shard_info(folder / s.file, s.samples) for s in manifest.shards])


def plain_header(name, size=0, type_=tarfile.REGTYPE, **fields):
    member = tarfile.TarInfo(name)
    member.size, member.type = size, type_
    for field, value in fields.items():
        setattr(member, field, value)
    return member.tobuf(tarfile.USTAR_FORMAT)


def signed(header):
    """A header with its own sum put right."""
    header = bytearray(header)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def with_size_field(header, field):
    return signed(header[:124] + field.ljust(12, b"\0") + header[136:])


def blocks(content):
    return content + bytes(-len(content) % 512)


def pax(name, records, size):
    """A member behind a PAX header with `records`."""
    text = b"".join(b"%d %s\n" % (len(r) + len(str(len(r) + 3)) + 2, r) for r in records)
    return plain_header("pax", len(text), tarfile.XHDTYPE) + blocks(text) + plain_header(name, size)


NAME = f"{BAD}.target.png"
ODD_MEMBERS = {
    "symbolic link": plain_header(NAME, type_=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": plain_header(NAME, type_=tarfile.LNKTYPE, linkname=f"{BAD}.ref0.png"),
    "character device": plain_header(NAME, type_=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "block device": plain_header(NAME, type_=tarfile.BLKTYPE),
    "pipe": plain_header(NAME, type_=tarfile.FIFOTYPE),
    "folder": plain_header(NAME, type_=tarfile.DIRTYPE),
    "contiguous file": plain_header(NAME, 4, tarfile.CONTTYPE) + blocks(b"data"),
    "unknown type": plain_header(NAME, type_=b"Q"),
    "GNU sparse": plain_header(NAME, type_=tarfile.GNUTYPE_SPARSE),
    "GNU long name": plain_header("././@LongLink", 30, tarfile.GNUTYPE_LONGNAME) + blocks(b"x" * 30),
    "PAX sparse 0.0": pax(NAME, [b"GNU.sparse.size=200000000000", b"GNU.sparse.numblocks=0"], 0),
    "PAX sparse 0.1": pax(NAME, [b"GNU.sparse.map=0,0", b"GNU.sparse.size=200000000000"], 0),
    "PAX sparse 1.0": pax(NAME, [b"GNU.sparse.major=1", b"GNU.sparse.realsize=200000000000"], 0),
    "PAX size": pax(NAME, [b"size=200000000000"], 4) + blocks(b"data"),
    "PAX negative size": pax(NAME, [b"size=-512"], 4) + blocks(b"data"),
    "base-256 size": with_size_field(plain_header(NAME), b"\x80" + bytes(6) + b"\xff" * 5),
    "negative base-256 size": with_size_field(plain_header(NAME), b"\xff" * 12),
    "negative octal size": with_size_field(plain_header(NAME), b"-00000000004"),
    "size that is no number": with_size_field(plain_header(NAME), b"12x"),
    "size beyond the end": with_size_field(plain_header(NAME), b"77777777777"),
    "parent folder in the name": plain_header(f"../{NAME}", 4) + blocks(b"data"),
    "absolute name": plain_header(f"/{NAME}", 4) + blocks(b"data"),
    "name with a prefix": signed(plain_header(NAME, 4)[:345] + b"etc" + bytes(164)) + blocks(b"data"),
    "name that is not UTF-8": signed(b"\xff\xfe" + plain_header(NAME, 4)[2:]) + blocks(b"data"),
    "name with a null byte": signed((BAD + "\0.target.png").encode().ljust(100, b"\0") + plain_header(NAME, 4)[100:])
    + blocks(b"data"),
    "no name": signed(bytes(100) + plain_header(NAME, 4)[100:]) + blocks(b"data"),
    "duplicate": plain_header(f"{BAD}.ref0.png", 4) + blocks(b"data"),
    "reference with a leading zero": plain_header(f"{BAD}.ref00.png", 4) + blocks(b"data"),
    "unknown part": plain_header(f"{BAD}.txt", 4) + blocks(b"data"),
    "zero block": bytes(512),
    "half a block": plain_header(NAME, 4) + b"data",
    "text behind its end": plain_header(f"{BAD}.txt", 4) + b"data".ljust(512, b"."),
}


@pytest.mark.parametrize("odd", ODD_MEMBERS)
@pytest.mark.parametrize("instead", [True, False], ids=["instead", "besides"])
def test_odd_members_are_refused(odd, instead, pristine):
    """In the target's place, or in front of everything."""
    with tarfile.open(pristine / "00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar if member.name.startswith(BAD)}
    if instead:
        members.pop(NAME)
    others = b"".join(plain_header(name, len(content)) + blocks(content) for name, content in members.items())
    tracemalloc.start()
    with pytest.raises(BrokenSampleError, match=r"^here: [^\n]*$"):
        parse_members(ODD_MEMBERS[odd] + others, BAD, "here")
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_other_writers_tars_are_read(format_, pristine):
    sample, file = SAMPLES[2], io.BytesIO()
    with tarfile.open(pristine / "00000.tar") as tar, tarfile.open(fileobj=file, mode="w", format=format_) as other:
        members = [(m.name, tar.extractfile(m).read()) for m in tar if m.name.startswith(BAD)]
        for name, content in reversed(members):
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uname = len(content), 1_700_000_000, "somebody"
            other.addfile(member, io.BytesIO(content))
        end = other.offset
    assert parse_members(file.getvalue()[:end], BAD, "here") == (sample, checksum(members))
    assert ShardSet(pristine).index[2].crc32 == checksum(members)


def read_all(folder):
    """How many samples are read, each of which must be the one that was written; why the others are not."""
    shards = ShardSet(folder)
    list(shards.entries())
    found = [sample_or_error(shards.read, i) for i in range(len(shards))]
    errors = [sample for sample in found if isinstance(sample, BrokenSampleError)]
    assert all(s in errors or s == written for s, written in zip(found, SAMPLES, strict=True))
    assert not [error for error in errors if "\n" in str(error)]
    return len(found) - len(errors), [error.reason for error in errors]


def mutate(data, rng):
    """One kind of damage that disks, networks and hasty tools do."""
    data = bytearray(data)
    at, length = rng.randrange(len(data)), rng.choice([1, 2, 16, 512, 2048])
    match rng.randrange(7):
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            data[at : at + length] = bytes(len(data[at : at + length]))
        case 2:
            data[at : at + length] = rng.randbytes(len(data[at : at + length]))
        case 3:
            other = rng.randrange(len(data))
            data[at : at + length] = data[other : other + len(data[at : at + length])]
        case 4:
            del data[at : at + length]
        case 5:
            data[at:at] = data[at : at + length]
        case 6:
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize("resigned", [False, True])
@pytest.mark.parametrize(("file", "inputs"), [("00000.tar", 100), ("index.jsonl", 250), ("manifest.json", 250)])
def test_fuzz(file, inputs, resigned, pristine, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    folder, original = copy_of(pristine, tmp_path / "set"), (pristine / file).read_bytes()
    rng = random.Random(f"{file}{resigned}")
    outcomes, messages = Counter(), []
    tracemalloc.start()
    for _ in range(inputs):
        damaged = mutate(original, rng)
        (folder / file).write_bytes(damaged)
        (folder / "manifest.json").write_bytes((pristine / "manifest.json").read_bytes())
        if file == "manifest.json":
            (folder / file).write_bytes(damaged)
        elif resigned:
            (sign if file.endswith(".tar") else sign_index)(folder)
        try:
            outcomes["skipped" if read_all(folder)[1] else "whole"] += 1
        except UserError as error:
            messages.append(str(error))
    assert not [message for message in messages if str(folder) not in message or "\n" in message]
    outcomes["refused"] = len(messages)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert outcomes["refused" if file != "00000.tar" else "skipped"] > inputs / 8


def test_sets_without_checksums_are_read_and_never_signed_when_damaged(tmp_path):
    """Format 1: a flipped bit within an image cannot be told from the index, but from the tar's sum."""
    folder = copy_of(TINY / "single", tmp_path / "old")
    shards = ShardSet(folder)
    assert shards.manifest.format == 1
    assert [entry.crc32 for entry in shards.index] == [None] * 8
    good, _ = convert(open_input(str(folder)), tmp_path / "new", progress=False)
    assert (good.format, good.samples) == (2, 8)
    new = ShardSet(tmp_path / "new")
    assert list(new) == list(shards)
    assert None not in [entry.crc32 for entry in new.index]
    first = shards.manifest.shards[0]
    tar = bytearray((folder / first.file).read_bytes())
    with tarfile.open(folder / first.file) as members:
        target = next(member for member in members if ".target." in member.name)
    tar[target.offset_data + target.size - 40] ^= 4
    (folder / first.file).write_bytes(tar)
    manifest, faults = convert(open_input(str(folder)), tmp_path / "less", progress=False)
    assert manifest.samples == 8 - first.samples
    assert faults.total == first.samples
    assert set(faults.counts) <= {"wrong checksum", "damaged image", "truncated image"}
    assert list(ShardSet(tmp_path / "less")) == list(shards)[first.samples :]


@pytest.mark.parametrize("bit", [0, 100, 124, 148, 156])
def test_a_flipped_bit_in_a_header_loses_one_sample_in_every_reader(
    bit, pristine, tmp_path, sequence_format, tokenizer, packing
):
    folder = copy_of(pristine, tmp_path / "set")
    with tarfile.open(folder / "00000.tar") as tar:
        second = [member for member in tar if member.name.startswith(BAD)][1]
    data = bytearray((folder / "00000.tar").read_bytes())
    data[second.offset + bit] ^= 1
    (folder / "00000.tar").write_bytes(data)
    for signs in (False, True):
        if signs:
            sign(folder)
        assert read_all(folder) == (COUNT - 1, ["torn shard"])
        assert verify_shards(folder, progress=False).faults.counts["torn shard"] == 1
        manifest, faults = convert(open_input(str(folder)), tmp_path / f"out{signs}", progress=False)
        assert (manifest.samples, faults.counts) == (COUNT - 1, {"torn shard": 1})
        assert BAD in faults.examples[0]
        assert list(ShardSet(tmp_path / f"out{signs}")) == [s for s in SAMPLES if s.key != BAD]


@pytest.mark.parametrize("part", ["ref2.png", "target.jpg", "ref0.jpg", "txt"])
def test_members_that_the_index_does_not_know_are_refused(part, tmp_path):
    """Also where their checksum is right."""

    def spoil(key, members):
        return [*members, (f"{key}.{part}", members[-1][1])] if key == BAD else members

    folder = write_raw(tmp_path / "set", SAMPLES, spoil)
    reasons = {"ref2.png": "index differs", "txt": "unknown member"}
    assert read_all(folder) == (COUNT - 1, [reasons.get(part, "duplicate member")])


LIES = {
    "instruction": {"instruction": "y"},
    "kind": {"kind": "multi"},
    "answer": {"answer": "yes"},
    "smaller target": {"target": [16, 16]},
    "no target": {"target": None},
    "one reference less": {"references": [[16, 16]]},
    "smaller reference": {"references": [[16, 16], [16, 16]]},
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_makes_no_pack_too_long(lie, pristine, tmp_path, sequence_format, tokenizer, packing):
    folder = copy_of(pristine, tmp_path / "set")
    lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    lines[2].update(LIES[lie])
    (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sign_index(folder)
    packing = dataclasses.replace(packing, token_budget=400, instruction_dropout=0.0)
    mixture = Mixture([Source(str(folder))], sequence_format, tokenizer, packing)
    stream = PackStream(PackMaker(mixture, sequence_format, tokenizer, packing, seed=3), Cursor())
    batches = [batch for _, batch in zip(mixture.plan(3, 0), stream, strict=False)]
    assert [reason for batch in batches for reason in batch.skipped] == ["index differs"]
    assert sorted(key for batch in batches for key in batch.sequence.keys) == [s.key for s in SAMPLES if s.key != BAD]
    assert max(len(batch.sequence) for batch in batches) <= 400
    assert verify_shards(folder, progress=False).faults.counts["index differs"] >= 1
    _, faults = convert(open_input(str(folder)), tmp_path / "out", progress=False)
    assert faults.counts == {"index differs": 1}


def test_what_no_index_line_lists_is_found(pristine, tmp_path):
    """A conversion of an older version, cut short by a power cut, left a tar with more samples than index lines."""
    folder = copy_of(pristine, tmp_path / "set")
    lines = (folder / "index.jsonl").read_text().splitlines(keepends=True)
    (folder / "index.jsonl").write_text("".join(lines[:2] + lines[3:]))
    shards = [shard_info(folder / f"0000{number}.tar", samples) for number, samples in ((0, 2), (1, 3))]
    write_manifest(folder, {"single": 2, "multi": 3}, shards)
    faults = verify_shards(folder, progress=False).faults
    assert any("00000.tar: index differs: bytes from" in line for line in faults.examples)


ODD_VALUES = [
    ("key", ["a.b", "", "x" * 81, 5, None, "ä"]),
    ("shard", [0.0, -1, 99, "0", None, True, 10**30]),
    ("offset", [512.0, -512, 10**15, 10**30, "0", None, False]),
    ("length", [2048.5, 0, -1, 10**15, 2**63, "9", None]),
    ("kind", ["triple", 5, None, ["single"], {}]),
    ("instruction", [5, None, ["x"]]),
    ("references", [5, None, [[16]], [[16, 16, 16]], [["16", 16]], [[16.0, 16]], [[float("nan"), 16]], [[0, 16]]]),
    ("target", [5, [], [16], [0, 16], [-1, 16], [2**31, 2**31], [True, 1], {"w": 16}, "16x16"]),
    ("answer", [5, None, ["x"]]),
    ("crc32", [-1, 2**32, 1.0, "5", None]),
    ("extra", [1]),
]


@pytest.mark.parametrize(("name", "values"), ODD_VALUES)
def test_odd_values_in_the_index_are_one_line(name, values, pristine, tmp_path):
    folder = copy_of(pristine, tmp_path / "set")
    lines = (pristine / "index.jsonl").read_text().splitlines()
    without = {key: value for key, value in json.loads(lines[1]).items() if key != name}
    changed = [json.dumps({**without, name: value}) for value in values]
    if name not in ("extra", "answer"):
        changed.append(json.dumps(without))
    for line in changed:
        (folder / "index.jsonl").write_text("\n".join([lines[0], line, *lines[2:], ""]))
        sign_index(folder)
        with pytest.raises(UserError, match=r"index\.jsonl: line 2 .*again") as error:
            list(ShardSet(folder).entries())
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"key": "s0001", "key": "s0002"}', "comes twice"),
        (b'{"instruction": "\\ud800"}', "half a surrogate pair"),
        (b'{"instruction": "\xff"}', "not UTF-8"),
        (b'{"offset": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[1]", "must be a JSON object"),
        (b"", "not JSON"),
    ],
)
def test_index_lines_that_are_no_entries_are_one_line(line, message, pristine, tmp_path):
    folder = copy_of(pristine, tmp_path / "set")
    lines = (pristine / "index.jsonl").read_bytes().split(b"\n")
    (folder / "index.jsonl").write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    sign_index(folder)
    with pytest.raises(UserError, match=rf"index\.jsonl: line 2: .*{message}"):
        list(ShardSet(folder).entries())


def test_a_byte_order_mark_and_a_cut_last_line(pristine, tmp_path):
    folder, file = copy_of(pristine, tmp_path / "set"), tmp_path / "set/index.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    sign_index(folder)
    assert read_all(folder) == (COUNT, [])
    file.write_bytes(file.read_bytes() + b'{"key"')
    sign_index(folder)
    with pytest.raises(UserError, match=r"has 6 lines"):
        ShardSet(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2.0},
        {"format": True},
        {"format": "2"},
        {"samples": 6.0},
        {"samples": float("nan")},
        {"samples": -6},
        {"samples": 10**30},
        {"bytes": 1},
        {"kinds": []},
        {"kinds": {"single": 6.0}},
        {"kinds": {"triple": 6}},
        {"kinds": {"single": 99}},
        {"index_sha256": 5},
        {"index_sha256": "0" * 63},
        {"shards": {}},
        {"shards": [5]},
        {"shards": [{}]},
        {"shards": None},
        {"extra": 1},
    ],
)
def test_odd_values_in_the_manifest_are_one_line(change, pristine, tmp_path):
    content = {**json.loads((pristine / "manifest.json").read_text()), **change}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"manifest\.json: .*(readable manifest|format)") as error:
        Manifest.read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"file": 5},
        {"file": "a\0.tar"},
        {"file": "a/b.tar"},
        {"file": ".."},
        {"file": "00001.tar"},
        {"samples": 3.0},
        {"samples": True},
        {"bytes": "5"},
        {"sha256": None},
        {"extra": 1},
    ],
)
def test_odd_values_of_a_shard_are_one_line(change, pristine, tmp_path):
    content = json.loads((pristine / "manifest.json").read_text())
    content["shards"][0].update(change)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"manifest\.json: not a readable manifest"):
        Manifest.read(tmp_path)


def test_a_pipe_in_the_place_of_a_file_does_not_hang(pristine, tmp_path):
    import os

    folder = copy_of(pristine, tmp_path / "set")
    for name in ("00000.tar", "index.jsonl", "manifest.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            ShardSet(folder)
        if name == "00000.tar":
            assert verify_shards(folder, progress=False).faults.counts["unreadable shard"] == 4
        (folder / name).unlink()
        (folder / name).write_bytes((pristine / name).read_bytes())


def test_a_huge_sample_is_not_read(tmp_path):
    """A tar with a hole of 4 GB in it, and an index and manifest that agree."""
    folder = write_raw(tmp_path / "set", SAMPLES[:2], lambda key, members: members)
    with (folder / "00000.tar").open("r+b") as file:
        file.truncate(4 << 30)
    lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    lines[1]["length"] = (4 << 30) - lines[1]["offset"]
    (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["bytes"] = manifest["shards"][0]["bytes"] = 4 << 30
    (folder / "manifest.json").write_text(json.dumps(manifest))
    sign_index(folder)
    with pytest.raises(BrokenSampleError, match="bytes") as error:
        ShardSet(folder).read(1)
    assert error.value.reason == "sample too large"


def test_conversions_keep_what_is_good(pristine, tmp_path):
    """A damaged image of a set with checksums costs that sample alone."""
    folder = copy_of(pristine, tmp_path / "set")
    tar = (folder / "00000.tar").read_bytes()
    at = tar.index(b"IEND", ShardSet(folder).index[2].offset) - 20
    (folder / "00000.tar").write_bytes(tar[:at] + bytes([tar[at] ^ 1]) + tar[at + 1 :])
    manifest, faults = convert(open_input(str(folder)), tmp_path / "out", ConvertConfig(decode=False), progress=False)
    assert (manifest.samples, faults.counts) == (COUNT - 1, {"wrong checksum": 1})
