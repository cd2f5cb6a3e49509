"""DINO, CLIP-I and CLIP-T with encoders whose cosines are known by hand: the mean colour is the feature."""

import json
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from test_odd_input import mutated, one_line

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.evaluation.similarity.encoders import Clip, Dino, Encoders, centre_crop
from scone_pl.evaluation.similarity.lists import read_list
from scone_pl.evaluation.similarity.scores import similarity
from scone_pl.evaluation.similarity.tables import markdown

HALF = math.sqrt(0.5)
"""Cosine of red and yellow."""
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


class Colour:
    """Features are mean colours; a text is a colour by its first word."""

    def images(self, images):
        return torch.tensor(np.stack([np.asarray(image).mean(axis=(0, 1)) for image in images]), dtype=torch.float32)

    def texts(self, texts):
        words = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "unred": (-1.0, 0, 0)}
        return torch.tensor([words[text.split()[0]] for text in texts])


ENCODERS = Encoders(Colour(), Colour(), Colour())


def save(file, colour, size=(30, 20)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


@pytest.fixture
def data(tmp_path):
    """Cat: a red and a yellow view; dog: green ones, one of them a transparent PNG whose hidden colour is red."""
    save(tmp_path / "dreambooth/dataset/cat/00.jpg", RED)
    save(tmp_path / "dreambooth/dataset/cat/01.png", YELLOW, (20, 50))
    save(tmp_path / "dreambooth/dataset/dog/00.png", GREEN)
    Image.new("RGBA", (20, 20), (0, 255, 0, 255)).save(tmp_path / "dreambooth/dataset/dog/01.png")
    (tmp_path / "dreambooth/dataset/dog/notes.txt").write_text("no view")
    prompts = {"cat": ["red cat", "green cat"], "dog": ["unred dog", "green dog"]}
    single = [
        {"prompt": prompt, "image_paths": [f"dreambooth/dataset/{name}/00.{'jpg' if name == 'cat' else 'png'}"]}
        for name, texts in prompts.items()
        for prompt in texts
    ]
    both = ["dreambooth/dataset/cat/00.jpg", "dreambooth/dataset/dog/00.png"]
    (tmp_path / "single.json").write_text(json.dumps(single))
    (tmp_path / "multi.json").write_text(json.dumps([{"prompt": "red and green", "image_paths": both}]))
    return tmp_path


def near(expected):
    return pytest.approx(expected, abs=0.01)  # JPEG


def test_single(data):
    """Images of prompts 0 and 1 are red and yellow, of 2 and 3 green; prompt 2 asks for the opposite of red."""
    for index, colour in enumerate((RED, YELLOW, GREEN, GREEN)):
        save(data / f"images/{index}_0.png", colour)
    result = similarity(read_list(data / "single.json"), data / "images", 1, ENCODERS, progress=False)
    # Red against red and yellow, yellow against both; green against two greens.
    assert result.groups["cat"]["DINO"] == near(((1 + HALF) / 2 + (HALF + 1) / 2) / 2)
    assert result.groups["dog"]["DINO"] == near(1)
    assert result.columns["DINO"] == near(((1 + HALF) / 2 + 1) / 2)
    assert result.columns["CLIP-I"] == result.columns["DINO"]
    # Red-red 1, yellow-green 0.707; green against minus red 0, green-green 1.
    assert result.columns["CLIP-T"] == near(((1 + HALF) / 2 + 0.5) / 2)
    given = similarity(read_list(data / "single.json", "given"), data / "images", 1, ENCODERS, progress=False)
    assert given.groups["cat"]["DINO"] == near((1 + HALF) / 2)
    assert given.groups["cat"]["DINO min"] == given.groups["cat"]["DINO"], "one reference"
    assert result.columns["SCR 0.6"] == 0
    assert result.intervals["DINO"] == (near(result.groups["cat"]["DINO"]), near(1))


def test_a_negative_cosine_with_the_prompt_counts_as_0(data):
    save(data / "images/2_0.png", RED)
    result = similarity(read_list(data / "single.json"), data / "images", 1, ENCODERS, progress=False)
    assert result.columns["CLIP-T"] == 0


def test_two_subjects(data):
    """Red has the cat and not the dog, yellow a bit of both."""
    for number, colour in enumerate((RED, YELLOW)):
        save(data / f"images/0_{number}.png", colour)
    result = similarity(read_list(data / "multi.json"), data / "images", 2, ENCODERS, progress=False)
    cat, dog = [(1 + HALF) / 2, (HALF + 1) / 2], [0, HALF]
    assert result.columns["DINO"] == near(np.mean([cat, dog]))
    assert result.columns["DINO min"] == near(np.mean(dog)), "the mean hides the dropped dog"
    # Given views: red-red 1, red-green 0; yellow-red and yellow-green 0.707.
    assert [result.columns[f"SCR {limit}"] for limit in (0.4, 0.5, 0.6)] == [0.25, 0.25, 0.25]
    assert list(result.groups) == ["cat + dog"]


def test_missing_and_damaged_images_are_counted(data):
    for number in (0, 1, 3, 5):
        save(data / f"images/0_{number}.png", RED)
    (data / "images/0_3.png").write_bytes(b"no image")
    result = similarity(read_list(data / "multi.json"), data / "images", 6, ENCODERS, progress=False)
    assert (result.images, result.missing) == (3, ["0_2.png", "0_3.png", "0_4.png"])
    text = markdown(result, 2, "ours", "all")
    assert "Missing images: 3 (0_2.png, 0_3.png, 0_4.png)." in text
    assert "| UNO" in text
    assert "| UNO" not in markdown(result, 2, "ours", "given"), "not comparable"
    with pytest.raises(UserError, match="has no image INDEX_NUMBER"):
        similarity(read_list(data / "multi.json"), data, 6, ENCODERS, progress=False)


@pytest.mark.parametrize(("size", "short", "left"), [((400, 300), 256, 58), ((300, 400), 224, 0), ((10, 10), 256, 16)])
def test_the_crop_is_the_centre(size, short, left):
    width = int(short * size[0] / size[1]) if size[0] > size[1] else short
    ramp = np.tile(np.linspace(0, 255, size[0], dtype=np.uint8)[None, :, None], (size[1], 1, 3))
    crop = centre_crop(Image.fromarray(ramp), short)
    assert crop.size == (224, 224)
    expected = Image.fromarray(ramp).resize(
        (width, short if size[0] >= size[1] else int(short * size[1] / size[0])), Image.Resampling.BICUBIC
    )
    assert np.array_equal(np.asarray(crop)[0], np.asarray(expected)[0, left : left + 224])


def test_the_command(data, monkeypatch, capsys):
    save(data / "images/0_0.png", RED)
    command = ["similarity", "--data", str(data / "multi.json"), "--num_images_per_prompt", "2"]
    monkeypatch.setattr("scone_pl.evaluation.similarity.encoders.load_encoders", lambda *_: ENCODERS)
    assert main([*command, "--images", str(data / "images"), "--output", str(data / "out"), "--name", "o|s"]) == 0
    text = capsys.readouterr().out
    assert "| **o/s**" in text
    assert text.strip() == (data / "out/similarity.md").read_text().strip()
    stored = json.loads((data / "out/similarity.json").read_text())
    assert stored["encoders"]["dino"] == "facebook/dino-vits16"
    assert main([*command, "--prompts", str(data / "prompts.jsonl")]) == 0
    lines = [json.loads(line) for line in (data / "prompts.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["0_0", "0_1"]
    assert all(len(line["input_images"]) == 2 for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --images"),
        (["--images", "a", "--prompts", "b"], "give either --images"),
        (["--prompts", "b", "--name", "x"], "--name has no effect with --prompts"),
        (["--images", "nowhere"], "--images nowhere: no such folder"),
        (["--images", ".", "--num_images_per_prompt", "0"], "--num_images_per_prompt is 0"),
    ],
)
def test_bad_options(data, options, message, capsys):
    assert main(["similarity", "--data", str(data / "multi.json"), *options]) == 2
    assert message in capsys.readouterr().err


def test_odd_lists(data):
    draw, file = random.Random(1), data / "single.json"
    whole = json.loads(file.read_text())
    for _ in range(100):
        file.write_text(json.dumps(mutated(whole, draw)))
        one_line(lambda: read_list(file), file)


@pytest.mark.slow
def test_the_encoders_run(tmp_path):
    """Random tiny weights: DINO's feature is the CLS token, CLIP's are those of its own methods."""
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=224, patch_size=32), add_pooling_layer=False).save_pretrained(tmp_path)
    images = [Image.new("RGB", (40, 60), colour) for colour in (RED, BLUE)]
    features = Dino(str(tmp_path), "cpu").images(images)
    assert features.shape == (2, 16)
    assert not torch.equal(features[0], features[1])
    vision = {**sizes, "image_size": 224, "patch_size": 32}
    model = CLIPModel(CLIPConfig(text_config={**sizes, "vocab_size": 99}, vision_config=vision, projection_dim=8))
    clip = Clip.__new__(Clip)
    clip.device, clip.model = "cpu", model.eval()
    assert clip.images(images).shape == (2, 8)
    with pytest.raises(UserError, match="cannot be loaded"):
        Dino(str(tmp_path / "nothing"), "cpu")
