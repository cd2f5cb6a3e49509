"""Whatever a record holds: it becomes a sample, a counted reason, or one line that names the file."""

import os
import warnings

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from data_helpers import encode
from odd_rows import generator, odd_file, odd_line, odd_row

from scone_pl.data.convert import convert
from scone_pl.data.inputs import open_input
from scone_pl.data.members import sample_json
from scone_pl.data.prompts import read_requests
from scone_pl.data.sample import BrokenSampleError
from scone_pl.data.shards import ShardSet
from scone_pl.errors import UserError
from scone_pl.evaluation.benchmarks.sconeeval import SCONEEVAL
from scone_pl.evaluation.items import read_items


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "rows"
    (folder / "dir").mkdir(parents=True)
    (folder / "a.png").write_bytes(encode(16, 16))
    (folder / "bad.png").write_bytes(b"no image")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    return folder


def one_line(error, file):
    text = str(error)
    assert text.startswith(str(file.parent)), text
    assert text.isprintable(), text
    assert len(text) < 2000


def outcomes_of(file):
    """What `convert` would make of a file: a set of reasons, `sample` among them, or `refused`."""
    try:
        source = open_input(str(file))
        found = list(source.read(0, len(source)))
        assert [key for key, _ in found] == list(source.keys())
    except UserError as error:
        one_line(error, file)
        return {"refused"}
    outcomes = set()
    for _, sample in found:
        if isinstance(sample, BrokenSampleError):
            one_line(sample, file)
            outcomes.add(sample.reason)
        else:
            sample_json(sample).decode()
            outcomes.add("sample")
    return outcomes


def test_odd_rows_for_convert(folder):
    outcomes = set()
    for seed in range(300):
        rng = generator(seed)
        (folder / "x.jsonl").write_bytes(odd_file(rng, [odd_line(rng, odd_row(rng)) for _ in range(4)]))
        outcomes |= outcomes_of(folder / "x.jsonl")
    expected = {"sample", "refused", "wrong JSON", "wrong field", "wrong candidates"}
    expected |= {f"missing {part}" for part in ("image", "references", "target", "instruction")}
    assert outcomes == expected


def test_what_is_converted_is_read_again(folder, tmp_path):
    rng = generator(1000)
    (folder / "x.jsonl").write_bytes(b"\n".join(odd_line(rng, odd_row(rng)) for _ in range(400)))
    source = open_input(str(folder / "x.jsonl"))
    manifest, faults = convert(source, tmp_path / "out", progress=False)
    assert manifest.samples + faults.total == len(source)
    assert manifest.samples > 30
    assert len(list(ShardSet(tmp_path / "out"))) == manifest.samples


def test_odd_prompts(folder):
    good = 0
    for seed in range(400):
        rng = generator(seed)
        lines = [odd_line(rng, odd_row(rng)) for _ in range(rng.integers(1, 3))]
        (folder / "x.jsonl").write_bytes(odd_file(rng, lines))
        try:
            requests = read_requests([folder / "x.jsonl"])
        except UserError as error:
            one_line(error, folder / "x.jsonl")
            continue
        good += 1
        names = {str(folder / request.task_type / f"{request.key}.png").casefold() for request in requests}
        assert len(names) == len(requests)
        for request in requests:
            assert (folder / request.task_type / f"{request.key}.png").resolve().is_relative_to(folder)
            assert all(image == encode(16, 16) or image == b"no image" for image in request.read().references)
    assert 30 < good < 350


def test_odd_items(folder):
    good = 0
    for seed in range(400):
        rng = generator(seed)
        (folder / "data.jsonl").write_bytes(odd_file(rng, [odd_line(rng, odd_row(rng))]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of case types
            try:
                items = read_items(SCONEEVAL, folder)
            except UserError as error:
                one_line(error, folder / "data.jsonl")
                continue
        good += 1
        assert all(len(item.subjects) == len(item.labels) <= len(item.images) for item in items)
    assert 30 < good < 350


PNG = encode(16, 16)
IMAGES = [PNG, {"bytes": PNG, "path": "x.png"}, {"bytes": None, "path": "a.png"}, "a.png", 5, 1.5, b"", "", None, [PNG]]
IMAGES += [
    [PNG, PNG],
    [{"bytes": PNG, "path": None}] * 2,
    ["a.png"] * 2,
    [[PNG]],
    [5],
    [],
    [None],
    {"path": 5},
    {"x": PNG},
]
IMAGES += [
    {"bytes": None, "path": None},
    {"bytes": "text", "path": "a.png"},
    "pipe",
    "loop",
    "x" * 300,
    "a\0.png",
    True,
]


def odd_table(rng):
    """A table whose columns have one type each, and nulls."""
    count, columns = int(rng.integers(1, 5)), {}
    for name in ("image", "input_images", "target", "other")[: rng.integers(1, 5)]:
        value = IMAGES[rng.integers(len(IMAGES))]
        columns[name] = pyarrow.array([value if rng.random() < 0.9 else None for _ in range(count)])
        if rng.random() < 0.2 and pyarrow.types.is_string(columns[name].type):
            columns[name] = columns[name].dictionary_encode()
    if rng.random() < 0.9:
        texts = [["x", "y", "", None][rng.integers(4)] for _ in range(count)]
        columns["instruction"] = pyarrow.array([5] * count if rng.random() < 0.1 else texts)
    if rng.random() < 0.2:
        columns["kind"] = pyarrow.array(["multi", "single", "odd"][rng.integers(3) :][:1] * count)
    return pyarrow.table(columns)


def test_odd_tables(folder):
    outcomes = set()
    for seed in range(400):
        pyarrow.parquet.write_table(odd_table(generator(seed)), folder / "a.parquet")
        outcomes |= outcomes_of(folder / "a.parquet")
    expected = {"sample", "refused", "wrong field"}
    assert outcomes == expected | {f"missing {part}" for part in ("image", "references", "target", "instruction")}


def test_damaged_tables(folder):
    table = pyarrow.table({"image": [[PNG, PNG]] * 20, "instruction": ["text"] * 20})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=3)
    whole, outcomes = (folder / "a.parquet").read_bytes(), set()
    for seed in range(300):
        rng = generator(seed)
        spoiled = bytearray(whole)
        for position in rng.integers([0, len(whole) - 1500][seed % 2], len(whole), 3):
            spoiled[position] = rng.integers(256)
        (folder / "a.parquet").write_bytes(bytes(spoiled[: rng.integers(len(whole))] if seed % 10 == 0 else spoiled))
        outcomes |= outcomes_of(folder / "a.parquet")
    assert {"sample", "refused"} <= outcomes


def test_texts_of_a_table_that_are_no_text(folder):
    bad = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(np.array([0, 1, 2], np.int32)), pyarrow.py_buffer(b"a\xff")]
    )
    table = pyarrow.table({"image": [[PNG]] * 2, "instruction": bad})
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    assert outcomes_of(folder / "a.parquet") == {"sample", "wrong text"}


@pytest.mark.parametrize("kind", ["pipe", "dir", "loop", "none", "/dev/zero", "x" * 300])
def test_what_is_no_file_of_rows(folder, kind):
    for read in (lambda path: open_input(path, "jsonl"), lambda path: open_input(path, "parquet"), open_input):
        with pytest.raises((UserError, OSError)) as error:
            read(str(folder / kind))
        assert isinstance(error.value, UserError) or len(kind) > 200
    with pytest.raises(UserError):
        read_requests([folder / kind])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}".encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        (b"PAR1", "a parquet file"),
        (b"PK\x03\x04", "a zip archive"),
        (b'{\n "instruction": "x"\n}', "an object over several lines"),
        (b'{"data": [\n{"instruction": "x"}]}', "an object over several lines"),
        (b'[{"a": 1}] trailing', "data after the JSON list"),
        (b'[{"a": "open', "is not terminated after item 0"),
        (b'[{"a": 1}, {"a": 2}', "is not terminated after item 1"),
        (b"[", "is not terminated"),
        (b"[]", "has no (rows|prompts)"),
        (b"\xef\xbb\xbf", "has no (rows|prompts)"),
    ],
)
def test_files_of_another_form_are_refused_when_opened(folder, content, words):
    (folder / "x.jsonl").write_bytes(content)
    for read in (lambda file: open_input(str(file)), lambda file: read_requests([file])):
        with pytest.raises(UserError, match=words) as error:
            read(folder / "x.jsonl")
        one_line(error.value, folder / "x.jsonl")
