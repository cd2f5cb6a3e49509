"""The verb `layers`, from the command line to its files."""

import json
import re

import numpy as np
import pytest
from layer_helpers import mini_samples, write_jsonl
from PIL import Image

from scone_pl.__main__ import main
from scone_pl.analysis.choice import best_layer
from scone_pl.data.shard_writer import write_shards


def run(capsys, folder, data, *args):
    status = main(["layers", "--checkpoint", str(folder), "--data", str(data), *args])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_a_labelled_set_is_read_to_the_end(mini_base, tmp_path, capsys):
    samples = mini_samples(2)
    write_shards(samples, tmp_path / "set", progress=False)
    status, text, _ = run(capsys, mini_base, tmp_path / "set", "--output", str(tmp_path / "out"))
    assert status == 0
    report = json.loads((tmp_path / "out/layers.json").read_text())
    assert (report["samples"], report["images"]) == (6, sum(len(s.references) for s in samples))
    assert report["images"] > report["labelled_images"] >= 4  # a composition has no distractor
    own = report["experts"]["understanding"]
    for layer in range(6):
        line = next(line for line in text.splitlines() if line.startswith(f"| {layer} "))
        cells = [cell.strip() for cell in line.split("|")[2:-1]]
        assert [float(cell.rstrip("*")) for cell in cells[:3]] == [
            pytest.approx(own[name][layer], abs=5e-4) for name in ("auroc", "effect", "sensitivity")
        ]
        assert cells[0].endswith("*") == (layer == int(np.argmax(own["auroc"][:-1])))
    before = report["experts"]["inputs"]
    line = next(line for line in text.splitlines() if line.startswith("| inputs"))
    assert [cell.strip() for cell in line.split("|")[2:5]] == [
        f"{before[name][0]:.3f}" for name in ("auroc", "effect", "sensitivity")
    ]
    assert f"Before the first layer (-1): AUROC {before['auroc'][0]:.3f}, sensitivity" in text
    suggested = report["suggested"]
    assert f"bridge.source_layer: {suggested['by labels']} by labels" in text
    assert f"{suggested['without labels']} without labels" in text
    assert "choose bridge.threshold again" in text
    low, median, high = own["quantiles"]["target"][suggested["by labels"]]
    assert f"{median:.3f}" in text
    assert low <= median <= high
    with Image.open(tmp_path / "out/maps.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (np.abs(pixels - (0xEF, 0x44, 0x44)).sum(-1) < 30).sum() > 100  # the frames of target boxes
    for name, ways in report["layer_choice"].items():
        for way, words in (("set", "one for all images"), ("image", "each image its own")):
            start = rf"\| {name.replace('_', ' ')} +\| {words}"
            row = next(line for line in text.splitlines() if re.match(start, line))
            assert f"| {ways[way]['auroc']:.3f} |" in row
            assert sum(ways[way]["layers"]) == report["labelled_images"]
    assert best_layer(report["layer_choice"]["sensitivity"]["set"]["layers"]) == suggested["without labels"]
    assert report["histograms"]["layer"] == suggested["by labels"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["histograms.png", "layers.json", "maps.png"]


def test_lines_with_and_without_boxes(mini_base, tmp_path, capsys):
    samples = mini_samples(2)
    known, unknown = (write_jsonl(samples, tmp_path / "lines", boxes=boxes) for boxes in (True, False))
    reports = []
    for file in (known, unknown):
        status, text, _ = run(capsys, mini_base, file, "--samples", "3", "--output", str(tmp_path / "out"))
        assert status == 0
        assert ("by labels" in text) == ("AUROC" in text) == (file == known)
        reports.append(json.loads((tmp_path / "out/layers.json").read_text()))
    labelled, plain = (report["experts"]["generation"] for report in reports)
    assert "auroc" in labelled
    assert "auroc" not in plain
    assert labelled["sensitivity"] == plain["sensitivity"]
    assert reports[1]["samples"] == 3
    status, text, _ = run(capsys, mini_base, unknown, "--samples", "1")
    assert status == 0
    assert "No layer can be suggested" in text


def test_mistakes_are_one_line(mini_base, tmp_path, capsys):
    file = write_jsonl(mini_samples(1), tmp_path / "lines", boxes=False)
    bare, broken, foreign = (tmp_path / f"lines/{name}.jsonl" for name in ("bare", "broken", "foreign"))
    bare.write_text('{"instruction": "draw the ring on red"}\n')
    broken.write_text('{"instruction": "draw the ring on red", "input_images": ["none.png"]}\n')
    line = json.loads(file.read_text().splitlines()[0])
    foreign.write_text(json.dumps({**line, "instruction": "a photograph"}) + "\n")
    for folder, data, args, words in (
        (tmp_path / "none", file, (), "no such checkpoint folder"),
        (mini_base, tmp_path / "none", (), "no such file or folder; give a shard set"),
        (mini_base, bare, (), "no sample with reference images and an instruction"),
        (mini_base, broken, (), "1 are broken, the first:"),
        (mini_base, foreign, (), "the word 'a' in 'a photograph' is not in"),
        (mini_base, file, ("--samples", "0"), "samples is 0; it must be a whole number"),
        (mini_base, file, ("--device", "gpu"), "device gpu can not be used"),
        (mini_base, file, ("--output", str(file)), "not a folder; choose another"),
        (mini_base, file, ("--tokenz", "3"), "did you mean --tokens?"),
        (mini_base, file, ("--packing", "{vae_resize: {max_size: 512, min_size: 16}}"), "packing.vae_resize.max_size"),
    ):
        status, text, error = run(capsys, folder, data, *args)
        assert (status, text) == (2, ""), words
        assert words in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_a_broken_sample_is_left_out_and_named(mini_base, tmp_path, capsys):
    file = write_jsonl(mini_samples(1), tmp_path / "lines", boxes=False)
    first = json.loads(file.read_text().splitlines()[0])
    (tmp_path / "lines" / first["input_images"][0]).write_bytes(b"no image")
    status, text, errors = run(capsys, mini_base, file)
    assert "1 broken samples are skipped, the first:" in errors
    assert status == 0
    assert "2 samples of" in text
