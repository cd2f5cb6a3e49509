"""`predict` over a JSONL: the same pictures whatever the ranks and interruptions, and one line for what is wrong."""

import dataclasses
import io
import json
import re
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_helpers import pixels, write_folder, write_jsonl, write_picture
from running import ROOT, run_scone, start_scone

from scone_pl.cli.lightning import SconeCLI
from scone_pl.cli.stages import main
from scone_pl.data.jsonl import JsonlPrompts
from scone_pl.data.prompts import read_requests
from scone_pl.data.sample import Sample
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.sampling.images import load_all
from scone_pl.sampling.pipeline import SconePipeline
from scone_pl.sampling.settings import SamplingConfig
from scone_pl.sampling.visualize import save_image
from scone_pl.training.outcome import LEFT_OUT_STATUS
from scone_pl.training.predictions import PredictionFolder, image_seed

RECORDS = [
    {"key": "a", "task_type": "single", "instruction": "one", "input_images": ["i/0.png"], "more": 1},
    {"key": "b", "task_type": "single", "instruction": "another", "input_image": "i/1.png"},
    {"key": "a", "task_type": "multi", "instruction": "both", "input_images": ["i/1.png", "i/0.png"]},
    {"key": "no image", "instruction": "nothing", "input_images": []},
    {"key": 5, "task_type": "multi", "instruction": "both", "input_image": ["i/0.png", "i/1.png"], "input_images": []},
]
PICTURES = ["multi/5.png", "multi/a.png", "no image.png", "single/a.png", "single/b.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    place = tmp_path_factory.mktemp("prompts")
    (place / "i").mkdir()
    for seed in (0, 1):
        write_picture(place / f"i/{seed}.png", seed=seed, height=20 + 10 * seed)
    return write_jsonl(place / "prompts.jsonl", RECORDS)


def arguments(folder, prompts, output, *more):
    return [
        *("predict", "--config", str(ROOT / "experiments/predict.yaml"), "--output_dir", str(output)),
        *("--model.init_args.init_from", str(folder), "--data.predict", f"[{{path: '{prompts}'}}]"),
        *("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--data.num_workers", "0"),
        *("--trainer.devices", "1", "--model.init_args.sampling.num_inference_steps", "2"),
        *("--trainer.enable_progress_bar", "false", *more),
    ]


def run(monkeypatch, *args):
    """In this process; a mistake raises."""
    monkeypatch.setattr("sys.argv", ["scone_pl"])
    SconeCLI(arguments(*args))


def pictures(output):
    folder = output / "predictions"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


@pytest.fixture(scope="module")
def straight(folder, prompts, tmp_path_factory):
    output = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        run(patch, folder, prompts, output)
    return pictures(output)


def test_equals_the_pipeline_with_the_seed_of_the_key(straight, folder, prompts):
    assert sorted(straight) == PICTURES
    pipeline = SconePipeline.from_pretrained(folder)
    for record in RECORDS:
        names = record.get("input_images") or record.get("input_image") or []
        names = [names] if isinstance(names, str) else names
        seed = image_seed(1234, 0, str(record["key"]), record.get("task_type", ""))
        expected = pipeline(
            images=load_all([prompts.parent / name for name in names]),
            prompt=record["instruction"],
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        file = f"{record['task_type']}/{record['key']}.png" if "task_type" in record else f"{record['key']}.png"
        with Image.open(io.BytesIO(straight[file])) as image:
            assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).max() <= 1


def test_seed_and_round_change_all_pictures(straight, folder, prompts, tmp_path, monkeypatch):
    run(monkeypatch, folder, prompts, tmp_path, "--model.init_args.sampling_round", "1")
    other = pictures(tmp_path)
    assert sorted(other) == PICTURES
    assert all(other[name] != straight[name] for name in PICTURES)
    seeds = {image_seed(s, r, k, t) for s in (0, 1) for r in (0, 1) for k in "ab" for t in ("", "a", "b")}
    assert len(seeds) == 24


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_all_prompts_in_equally_many_steps(folder, prompts, world_size):
    tokenizer = Tokenizer.from_folder(folder)
    sequence_format = SconePipeline.from_pretrained(folder).sequence_format
    ranks = [
        JsonlPrompts(read_requests([prompts]), sequence_format, tokenizer, r, world_size) for r in range(world_size)
    ]
    seen = [[(b.samples[0].metadata["task_type"], b.samples[0].key) for b in rank] for rank in ranks]
    assert {len(s) for s in seen} == {len(ranks[0])}
    assert {place for s in seen for place in s} == {(r.get("task_type", ""), str(r["key"])) for r in RECORDS}


def test_finished_pictures_are_kept_and_broken_ones_made_again(straight, folder, prompts, tmp_path, monkeypatch):
    run(monkeypatch, folder, prompts, tmp_path)
    place = tmp_path / "predictions"
    kept = write_picture(place / "single/a.png", seed=9).read_bytes()
    (place / "single/b.png").write_bytes(straight["single/b.png"][:200])
    (place / "multi/a.png").write_bytes(b"")
    (place / "multi/5.png").unlink()
    run(monkeypatch, folder, prompts, tmp_path)
    assert pictures(tmp_path) == {**straight, "single/a.png": kept}


def test_other_settings_do_not_mix_into_a_folder(folder, prompts, tmp_path, monkeypatch):
    run(monkeypatch, folder, prompts, tmp_path)
    with pytest.raises(UserError, match=r"round was 0, now 1.*--output_dir"):
        run(monkeypatch, folder, prompts, tmp_path, "--model.init_args.sampling_round", "1")


def test_folders_from_before_the_rule_were_made_without_turning(tmp_path):
    folder = PredictionFolder(tmp_path)
    folder.begin({"seed": 1}, write=True)
    folder.begin({"seed": 1, "exif_orientation": "ignore"}, write=True)
    with pytest.raises(UserError, match="exif_orientation was ignore, now apply"):
        folder.begin({"seed": 1, "exif_orientation": "apply"}, write=True)


def test_folders_from_before_settings_were_one_object_go_on(tmp_path):
    folder = PredictionFolder(tmp_path)
    guidance = {"text_scale": 4.0, "image_scale": 2.0, "interval": [0, 1], "rescale": "global", "rescale_min": 0.0}
    old = {"seed": 1, "round": 0, "sampling": {"num_inference_steps": 2, "guidance": guidance, "bridge": None}}
    folder.begin({**old, "exif_orientation": "apply"}, write=True)
    now = dataclasses.asdict(SamplingConfig(num_inference_steps=2, seed=1, guidance_rescale="global"))
    now = {name: now[name] for name in now if name not in ("height", "width", "step_cache", "timestep_shift")}
    folder.begin({"round": 0, "sampling": now, "exif_orientation": "apply"}, write=True)
    with pytest.raises(UserError, match="sampling was"):
        folder.begin({"round": 0, "sampling": {**now, "seed": 2}, "exif_orientation": "apply"}, write=True)


def test_killed_in_the_middle_then_started_again(straight, folder, prompts, tmp_path):
    process = start_scone(*arguments(folder, prompts, tmp_path), cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "predictions").rglob("*.png")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = pictures(tmp_path)
    assert all(straight[name] == data for name, data in before.items()), "no half picture under a final name"
    done = run_scone(*arguments(folder, prompts, tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert pictures(tmp_path) == straight


def test_a_half_written_picture_never_has_the_final_name(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_image(pixels(), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_is_finished(tmp_path):
    folder, sample = PredictionFolder(tmp_path), Sample(key="x", references=(), instruction="y", target=b"")
    assert not folder.is_finished(sample)
    whole = write_picture(tmp_path / "x.png").read_bytes()
    assert folder.is_finished(sample)
    for stop in (0, 8, 60, len(whole) // 2, len(whole) - 20):
        (tmp_path / "x.png").write_bytes(whole[:stop])
        assert not folder.is_finished(sample)


GOOD = {"key": "k", "instruction": "x", "input_images": []}
BAD_LINES = {
    "not JSON": "{",
    "must be a JSON object": "[]",
    "no instruction": {"key": "k", "input_images": []},
    "no such image file": {**GOOD, "input_images": ["no.png"]},
    "must hold paths of images": {**GOOD, "input_images": [3]},
    "is not a valid file name": {**GOOD, "key": "../k"},
    "`key` None": {"instruction": "x"},
    "`key` '.'": {**GOOD, "key": "."},
    "`task_type` 'a/b'": {**GOOD, "task_type": "a/b"},
}


@pytest.mark.parametrize("message", BAD_LINES)
def test_bad_lines_are_named(message, tmp_path):
    line = BAD_LINES[message]
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(GOOD | {"key": "fine"}) + "\n" + (line if isinstance(line, str) else json.dumps(line)))
    with pytest.raises(UserError) as error:
        read_requests([file])
    assert f"{file}:2: " in str(error.value)
    assert message in str(error.value)


def test_duplicates_empty_and_unreadable_files(tmp_path):
    same = write_jsonl(tmp_path / "same.jsonl", [GOOD, GOOD | {"task_type": "t"}, GOOD])
    with pytest.raises(UserError, match=r"same\.jsonl:3: the key 'k' is already used at .*same\.jsonl:1"):
        read_requests([same])
    for content in ("", "\n\n"):
        (tmp_path / "empty.jsonl").write_text(content)
        with pytest.raises(UserError, match="has no prompts"):
            read_requests([tmp_path / "empty.jsonl"])
    with pytest.raises(UserError, match=r"no\.jsonl: no such file"):
        read_requests([tmp_path / "no.jsonl"])


def damaged_png(folder):
    data = write_picture(folder / "x.png", height=60, width=60).read_bytes()
    (folder / "x.png").write_bytes(data[: len(data) // 2])
    return "x.png"


def test_prompts_that_can_not_be_used_cost_no_other(folder, tmp_path, monkeypatch, caplog):
    damaged = {"input_images": [damaged_png(tmp_path)]}
    rows = [GOOD | damaged, GOOD | {"key": "l"}, GOOD | damaged | {"key": "m"}, GOOD | {"key": "n"}]
    file = write_jsonl(tmp_path / "p.jsonl", rows)
    monkeypatch.setattr("sys.argv", ["scone_pl"])
    assert main(arguments(folder, file, tmp_path / "out")) == LEFT_OUT_STATUS
    assert sorted(pictures(tmp_path / "out")) == ["l.png", "n.png"]
    said = caplog.text
    for line in (1, 3):
        assert re.search(rf"left out: .*p\.jsonl:{line}: (truncated|damaged) image among .*x\.png", said)
    assert "2 prompts were left out" in said


def test_if_no_prompt_can_be_used_the_first_reason_is_the_error(folder, tmp_path, monkeypatch):
    file = write_jsonl(tmp_path / "p.jsonl", [GOOD | {"input_images": [damaged_png(tmp_path)]}])
    with pytest.raises(UserError, match=r"none of 1 prompts .*p\.jsonl:1: (truncated|damaged) image among .*x\.png"):
        run(monkeypatch, folder, file, tmp_path / "out")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_make_equally_many_passes_whatever_can_not_be_used(folder, tmp_path, world_size):
    damaged = {"input_images": [damaged_png(tmp_path)]}
    rows = [GOOD | {"key": str(n)} | (damaged if n in (1, 2, 4) else {}) for n in range(5)]
    requests = read_requests([write_jsonl(tmp_path / "p.jsonl", rows)])
    sequence_format, tokenizer = SconePipeline.from_pretrained(folder).sequence_format, Tokenizer.from_folder(folder)
    ranks = [list(JsonlPrompts(requests, sequence_format, tokenizer, rank, world_size)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {-(-5 // world_size)}
    batches = [batch for rank in ranks for batch in rank]
    assert {batch.samples[0].key for batch in batches} == {"0", "3"}
    reported = {line.split(": ")[0].rpartition(":")[2] for batch in batches for line in batch.skip_messages}
    assert reported == {"2", "3", "5"}


def test_files_and_shards_do_not_mix(folder, prompts, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="not both"):
        run(monkeypatch, folder, f"{prompts}'}}, {{path: '{tmp_path}", tmp_path / "out")


def test_a_wrong_size_shows_before_anything_runs(folder, prompts, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="use at most 32"):
        run(monkeypatch, folder, prompts, tmp_path, "--model.init_args.sampling.height", "64")
