"""The verb `generate`."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_helpers import BRIDGE, pixels, write_folder, write_picture
from running import run_scone

from scone_pl.__main__ import main
from scone_pl.sampling.pipeline import SconePipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_picture(tmp_path / "a.png", seed=1)
    write_picture(tmp_path / "b.png", seed=2, height=40)
    return tmp_path


FAST = ["--num_inference_steps", "2", "--dtype", "float32", "--device", "cpu", "--height", "16", "--width", "24"]
IMAGES = ["--image", "a.png", "--image=b.png"]


def test_in_a_process_of_its_own(folder, here):
    args = ["--checkpoint", str(folder), *IMAGES, "--instruction", "two", "--output", "o/x.png", "--seed", "7", *FAST]
    done = run_scone("generate", *args, cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "o/x.png"
    assert "denoising: 2 of 2 steps" in done.stderr
    pipeline = SconePipeline.from_pretrained(folder)
    (expected,) = pipeline(
        images=[pixels(seed=1), pixels(40, seed=2)],
        prompt="two",
        height=16,
        width=24,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(7),
    ).images
    assert np.array_equal(np.asarray(Image.open(here / "o/x.png")), np.asarray(expected))
    assert [p.name for p in (here / "o").iterdir()] == ["x.png"]


def test_the_bridge_as_trained_or_as_given(folder, here):
    common = ["generate", "--checkpoint", str(folder), *IMAGES, "--instruction", "two", *FAST]
    given = json.dumps({name: getattr(BRIDGE, name) for name in BRIDGE.__dataclass_fields__})
    assert main([*common, "--output", "trained.png", "--bridge", "trained", "--bridge_image", "maps.png"]) == 0
    assert main([*common, "--output", "given.png", "--bridge", given]) == 0
    assert main([*common, "--output", "off.png"]) == 0
    trained, given_, off = (np.asarray(Image.open(here / f"{n}.png")) for n in ("trained", "given", "off"))
    assert np.array_equal(trained, given_)
    assert not np.array_equal(trained, off)
    assert Image.open(here / "maps.png").size[0] > 2 * 256


def test_all_other_options(folder, here, capsys):
    options = {
        "seed": "3",
        "guidance_scale": "3.0",
        "image_guidance_scale": "1.5",
        "guidance_interval": "[0.4, 1.0]",
        "guidance_rescale": "global",
        "guidance_rescale_min": "0.1",
        "timestep_shift": "1.0",
        "step_cache": '{"interval": 2, "order": 0}',
        "attention_rebalancing": '{"strength": 0.3}',
        "attention": "dense",
        "compile": "false",
    }
    args = [f"--{name}={value}" for name, value in options.items()]
    assert main(["generate", "--checkpoint", str(folder), *IMAGES, "--instruction", "x", *FAST, *args]) == 0
    assert capsys.readouterr().out == "image.png\n"


def test_dry_run_counts_without_weights(folder, here, capsys):
    copy = here / "no_values"
    shutil.copytree(folder, copy)
    weights = copy / "model.safetensors"
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    size = weights.stat().st_size
    with weights.open("r+b") as file:
        file.truncate(header)
        file.truncate(size)
    args = ["generate", "--checkpoint", str(copy), *IMAGES, "--instruction", "two", "--dry_run", "--dtype", "bfloat16"]
    assert main(args) == 0
    printed = capsys.readouterr().out
    assert "image: 32 x 32 pixels, 66 tokens" in printed
    assert "5 text" in printed
    assert "memory in bfloat16" in printed
    assert printed.splitlines()[-1].startswith("peak")
    assert not (here / "image.png").exists()


BAD = {
    "no such file": ["--image", "no.png"],
    "use float32 or bfloat16 or float16": ["--dtype", "int8"],
    "not a positive multiple of 4": ["--height", "18"],
    "position table": ["--width", "64"],
    "last decoder layer is 3": ["--bridge", '{"last_masked_layer": 15}'],
    "give off, trained, or JSON": ["--bridge", "on"],
    "there is no setting 'treshold'": ["--bridge", '{"treshold": 1}'],
    "bridge.oracle needs samples with `candidates`": ["--bridge", '{"oracle": true}'],
    "bridge.pooling names needs samples": ["--bridge", '{"pooling": "names"}'],
    "turn it on": ["--bridge_image", "x.png"],
    "--bridge hides parts of reference images, but there is none": [
        f"--bridge={json.dumps(dataclasses.asdict(BRIDGE))}"
    ],
    "attention_rebalancing acts on reference images, but there is none": ["--attention_rebalancing={}"],
    "must end in .png": ["--output", "."],
    "interval is 0; it must be": ["--step_cache", '{"interval": 0}'],
    "no such checkpoint folder": ["--checkpoint", "nowhere"],
    "can not be used": ["--device", "cuda:99"],
    "num_inference_steps: Expected": ["--num_inference_steps", "many"],
    "unrecognized arguments: --heigth": ["--heigth", "3"],
}


@pytest.mark.parametrize("message", BAD)
def test_mistakes_end_in_one_line(folder, here, capsys, message):
    assert main(["generate", "--checkpoint", str(folder), "--instruction", "x", *FAST, *BAD[message]]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (here / "image.png").exists()


def test_missing_weights_are_named(folder, here, capsys):
    copy = here / "broken"
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").unlink()
    assert main(["generate", "--checkpoint", str(copy), "--instruction", "x", *FAST]) == 2
    assert "no weights" in capsys.readouterr().err
