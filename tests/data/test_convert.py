import io

import pyarrow
import pyarrow.parquet
import pytest
from data_helpers import TINY, encode
from PIL import Image

from scone_pl.cli.verbs import run
from scone_pl.data.convert import ConvertConfig, convert
from scone_pl.data.inputs import open_input
from scone_pl.data.sample import Sample
from scone_pl.data.shard_writer import write_shards
from scone_pl.data.shards import ShardSet
from scone_pl.data.statistics import contact_sheet, shard_statistics
from scone_pl.data.verify import verify_shards
from scone_pl.errors import UserError


def main(args: list[str]) -> int:
    """Runs a command of `shards`; an error raises."""
    return run(["shards", *args])


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pyarrow.schema([("image", pyarrow.list_(pyarrow.binary())), ("instruction", pyarrow.string())])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path, row_group_size=2)


def convert_parquet(source, output, subset=None, **config):
    return convert(open_input(str(source), "parquet", subset=subset), output, ConvertConfig(**config), progress=False)


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    good = {"image": [encode(16, 8), encode(8, 16)], "instruction": "good"}
    data = root / "parquet_data"
    write_parquet(data / "x_single" / "00000.parquet", [good] * 3)
    write_parquet(
        data / "x_multi" / "00000.parquet",
        [
            good,
            {"image": [encode(16, 8), encode(64, 64)[:-3000]], "instruction": "truncated"},
            {"image": [b"nothing", encode(8, 8)], "instruction": "no image"},
            {"image": [], "instruction": "empty"},
            {"image": None, "instruction": "null"},
            {"image": [encode(8, 8), b""], "instruction": "zero bytes"},
            {"image": [encode(8, 8), encode(8, 8)], "instruction": " "},
            {"image": [encode(8, 8), encode(8, 8)], "instruction": None},
            good,
        ],
    )
    return root


def test_rows_become_samples_and_faults_are_counted(source, tmp_path):
    manifest, faults = convert_parquet(source, tmp_path / "out", samples_per_shard=2)
    assert manifest.kinds == {"multi": 2, "single": 3}
    assert faults.counts == {
        "missing image": 3,
        "missing instruction": 2,
        "truncated image": 1,
        "unreadable image": 1,
    }
    assert any("x_multi-00000-000002" in line for line in faults.examples)
    shards = ShardSet(tmp_path / "out")
    assert [e.key for e in shards.index][:2] == ["x_multi-00000-000000", "x_multi-00000-000008"]
    sample = shards.read(0)
    assert (sample.references, sample.target) == ((encode(16, 8),), encode(8, 16))
    assert sample.metadata["source"] == {"file": "00000.parquet", "subset": "x_multi", "row": 0}


def test_subset_kind_limit_and_shrink(source, tmp_path):
    manifest, _ = convert_parquet(source, tmp_path / "out", subset="x_single", kind="multi", limit=2, shrink=4)
    assert manifest.kinds == {"multi": 2}
    entry = ShardSet(tmp_path / "out").index[0]
    assert (entry.references, entry.target) == (((4, 2),), (2, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: {"subset": "y"}, "no subset named 'y'; there are: x_multi, x_single"),
        (lambda root: {"source": root / "none"}, "no such file"),
        (lambda root: {"source": root.parent / "empty"}, r"no \*\.parquet"),
        (lambda root: {"source": root.parent / "broken.parquet"}, "not a readable parquet file"),
        (lambda root: {"source": root.parent / "other.parquet"}, "no column image"),
        (lambda root: {"samples_per_shard": 0}, "samples_per_shard is 0"),
        (
            lambda root: {"min_side": 999},
            r"the source has no valid sample \(.*first x_multi-00000-0{6}: small image: an image has",
        ),
    ],
)
def test_wrong_sources_are_one_line(source, tmp_path, change, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    pyarrow.parquet.write_table(pyarrow.table({"instruction": ["a"]}), tmp_path / "other.parquet")
    arguments = {"source": source, "output": tmp_path / "out", **change(source)}
    with pytest.raises(UserError, match=message) as error:
        convert_parquet(**arguments)
    assert "\n" not in str(error.value)


def test_verify_finds_each_problem(shard_folder, tmp_path):
    assert verify_shards(shard_folder, progress=False).faults.total == 0
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in shard_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    shards = ShardSet(folder)
    entry = shards.index[1]
    tar = bytearray((folder / "00000.tar").read_bytes())
    image = tar.index(b"IDAT", entry.offset)
    tar[image + 4 : image + 60] = bytes(56)
    (folder / "00000.tar").write_bytes(tar)
    index = (folder / "index.jsonl").read_text().replace('"s0020"', '"s0021"')
    (folder / "index.jsonl").write_text(index)
    verdict = verify_shards(folder, progress=False)
    faults = verdict.faults
    assert verdict.samples == 60
    assert faults.counts["wrong checksum"] == 3  # the tar, the index, and the sample
    assert faults.counts["torn shard"] == 1
    assert faults.counts["duplicate key"] == 1
    assert faults.total == 5


def test_statistics(shard_folder, sequence_format, tokenizer, packing):
    statistics = shard_statistics(shard_folder, sequence_format, tokenizer, packing)
    assert statistics.samples == 60
    assert statistics.references == {0: 20, 1: 20, 2: 20}
    assert 0.5 < statistics.efficiency <= 1
    assert statistics.packs * packing.token_budget * statistics.efficiency == pytest.approx(statistics.lengths.sum())
    assert "steps per epoch" in statistics.report(ranks=2)


def test_contact_sheet_keeps_references_and_targets_apart(tmp_path):
    red = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(red, "PNG")
    common = {"references": (red.getvalue(),), "instruction": "which colour?"}
    samples = [
        Sample(key="asks", target=b"", answer="red", **common),
        Sample(key="draws", target=encode(64, 64), **common),
    ]
    write_shards(samples, tmp_path / "set", progress=False)
    sheet = contact_sheet(tmp_path / "set", side=100)
    assert sheet.size == (500, 200)
    assert sheet.getpixel((50, 50)) == sheet.getpixel((50, 150)) == (255, 0, 0)
    assert sheet.getpixel((150, 50)) == (255, 255, 255)  # no target
    assert sheet.getpixel((150, 150)) not in ((255, 0, 0), (255, 255, 255))


def test_command_line(source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    assert main(["convert", str(source), str(out), "--limit", "4"]) == 0
    text = capsys.readouterr().out
    assert "4 samples" in text
    assert "3 missing image" in text
    assert "x_multi-00000-000007: missing instruction" in text
    assert main(["convert", str(out), str(tmp_path / "multi"), "--only", "multi"]) == 0
    text = capsys.readouterr().out
    assert "skipped: 2 other kind\n" in text  # as asked for: counted, not listed
    assert "x_single" not in text
    assert main(["verify", str(out)]) == 0
    assert main(["stats", str(TINY / "multi"), "--packing.token_budget", "8000", "--ranks", "1"]) == 0
    text = capsys.readouterr().out
    assert "8 (multi: 8)" in text
    assert "next fit" in text
    with Image.open(tmp_path / "runs/contact_sheets/multi.png") as sheet:
        assert sheet.height == 8 * 160
    tar = out / "00000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"IDAT", b"IDAX"))
    assert main(["verify", str(out)]) == 1
    for arguments, message in (
        (["convert", "a"], "required: output"),
        (["frob"], "no command frob; one of convert, verify, stats"),
        (["verify", str(out), "--wrkers", "1"], "did you mean --workers?"),
        (["convert", str(out), str(tmp_path / "q"), "--quality", "101"], "quality is 101"),
    ):
        with pytest.raises(UserError) as error:
            main(arguments)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    assert main(["verify", "--help"]) == 0
    assert "URL of the shard set" in capsys.readouterr().out
