"""Habits from diffusers work on `SconePipeline`, or end in one line; docs/sampling.md has a row for each."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_helpers import BRIDGE, pixels, png_of, write_folder, write_picture
from running import ROOT

from scone_pl import deprecated
from scone_pl.checkpoints.model import from_pretrained
from scone_pl.errors import UserError, UserTypeError
from scone_pl.sampling.arguments import NOT_SUPPORTED
from scone_pl.sampling.pipeline import SconePipeline

FAST = {"num_inference_steps": 2, "height": 16, "width": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def pipe(folder):
    pipeline = SconePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def same(first, second):
    """Whether images are equal; side by side sums are ordered differently, which may change the last bit."""
    first, second = ([i] if isinstance(i, Image.Image) else list(i) for i in (first, second))
    assert len(first) == len(second)
    return all(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1 for a, b in zip(first, second, strict=True))


CAT, ROOM = Image.fromarray(pixels(seed=1)), Image.fromarray(pixels(40, 30, seed=2))


def one(pipe, *args, **call):
    return pipe(*args, **{"seed": 0, **FAST, **call}).images


def torch_dtype(pipe, folder, tmp_path):
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        loaded = SconePipeline.from_pretrained(folder, torch_dtype=kind)
        assert (loaded.dtype, loaded.device.type) == (kind, "cpu")
    assert one(loaded, "x", image=CAT, output_type="latent")[0].isfinite().all()


def device_map(pipe, folder, tmp_path):
    for given in ("cpu", torch.device("cpu"), {"": "cpu"}):
        assert SconePipeline.from_pretrained(folder, device_map=given).device.type == "cpu"


def to(pipe, folder, tmp_path):
    moved = SconePipeline.from_pretrained(folder).to("cpu", torch.bfloat16)
    for name, tensor in from_pretrained(folder, dtype=torch.bfloat16).state_dict().items():
        assert moved.model.state_dict()[name].equal(tensor), name
    assert moved.to(torch.float32).dtype == moved.to(dtype=torch.float32, device="cpu").dtype == torch.float32


def prompt_first(pipe, folder, tmp_path):
    assert same(one(pipe, "a cat", CAT), one(pipe, prompt="a cat", image=CAT))


def image_or_images(pipe, folder, tmp_path):
    assert same(one(pipe, "a cat", image=[CAT, ROOM]), one(pipe, "a cat", images=[CAT, ROOM]))
    assert same(one(pipe, "a cat", image=CAT), one(pipe, "a cat", image=[CAT]))


def image_path(pipe, folder, tmp_path):
    write_picture(tmp_path / "cat.png", seed=1)
    assert same(one(pipe, "a cat", image=tmp_path / "cat.png"), one(pipe, "a cat", image=CAT))


def image_array(pipe, folder, tmp_path):
    array = pixels(seed=1)
    floats = array.astype(np.float32) / 255
    tensor = torch.from_numpy(floats).permute(2, 0, 1)
    expected = one(pipe, "a cat", image=CAT)
    for given in (array, floats, floats[None], tensor, tensor[None]):
        assert same(one(pipe, "a cat", image=given), expected)


def image_url(pipe, folder, tmp_path):
    url = "data:image/png;base64," + base64.b64encode(png_of(pixels(seed=1))).decode()
    assert same(one(pipe, "a cat", image=url), one(pipe, "a cat", image=CAT))


def prompt_list(pipe, folder, tmp_path):
    both = one(pipe, ["a cat", "a room"], image=[CAT, [CAT, ROOM]], generator=[seeded(1), seeded(2)], seed=None)
    assert same(both[:1], one(pipe, "a cat", image=CAT, seed=1))
    assert same(both[1:], one(pipe, "a room", image=[CAT, ROOM], seed=2))
    shared = one(pipe, ["a cat", "a room"], image=CAT, generator=[seeded(1), seeded(2)], seed=None)
    assert same(shared, [*both[:1], *one(pipe, "a room", image=CAT, seed=2)])


def negative_prompt(pipe, folder, tmp_path):
    call = {"image": CAT, "output_type": "latent"}
    plain, negative = one(pipe, "a cat", **call)[0], one(pipe, "a cat", negative_prompt="blurred", **call)[0]
    assert not plain.allclose(negative, atol=1e-2)
    # Away from the prompt itself there is nowhere to go: what is left is the conditional velocity.
    unguided = one(pipe, "a cat", guidance_scale=1.0, **call)[0]
    itself = one(pipe, "a cat", negative_prompt="a cat", image_guidance_scale=1.0, **call)[0]
    assert itself.allclose(unguided, atol=1e-4)
    batch = one(
        pipe, ["a cat", "a cat"], negative_prompt=["blurred", "dark"], generator=[seeded(), seeded()], seed=None, **call
    )
    assert batch[0].allclose(negative, atol=2e-5)


def guidance_scale_one(pipe, folder, tmp_path):
    call = {"image": CAT, "output_type": "latent"}
    explicit = one(pipe, "a cat", guidance_scale=1.0, image_guidance_scale=1.0, **call)
    assert torch.equal(one(pipe, "a cat", guidance_scale=1.0, **call)[0], explicit[0])


def num_images_per_prompt(pipe, folder, tmp_path):
    images = one(pipe, ["a cat", "a room"], num_images_per_prompt=2, generator=[seeded(i) for i in range(4)], seed=None)
    assert same(images[1:2], one(pipe, "a cat", seed=1))
    assert same(images[2:3], one(pipe, "a room", seed=2))
    assert same(one(pipe, "a cat", num_images_per_prompt=2)[:1], one(pipe, "a cat"))


def generator_and_seed(pipe, folder, tmp_path):
    assert same(one(pipe, "a cat", generator=seeded(3), seed=None), one(pipe, "a cat", seed=3))


def output_type_np(pipe, folder, tmp_path):
    images = one(pipe, "a cat", num_images_per_prompt=2, output_type="np")
    assert (images.shape, images.dtype) == ((2, 16, 24, 3), np.float32)
    assert images.min() >= 0
    assert images.max() <= 1
    assert same((images * 255).astype(np.uint8), one(pipe, "a cat", num_images_per_prompt=2))


def output_type_pt(pipe, folder, tmp_path):
    images = one(pipe, "a cat", output_type="pt")
    assert (images.shape, float(images.min()) >= 0, float(images.max()) <= 1) == ((1, 3, 16, 24), True, True)
    assert np.array_equal(images.permute(0, 2, 3, 1), one(pipe, "a cat", output_type="np"))


def return_dict(pipe, folder, tmp_path):
    (images,) = pipe("a cat", seed=0, return_dict=False, **FAST)
    output = pipe("a cat", seed=0, **FAST)
    assert same(images, output.images)
    assert output[0] is output["images"] is output.images


def callback_on_step_end(pipe, folder, tmp_path):
    seen = []

    def remember(pipeline, step, timestep, callback_kwargs):
        seen.append((step, timestep, sorted(callback_kwargs)))
        return callback_kwargs

    call = {"callback_on_step_end": remember, "callback_on_step_end_tensor_inputs": ["latents"]}
    assert same(one(pipe, "a cat", **call), one(pipe, "a cat"))
    assert [(step, names) for step, _, names in seen] == [(0, ["latents"]), (1, ["latents"])]


def callback_changes_latents(pipe, folder, tmp_path):
    def zero(pipeline, step, timestep, callback_kwargs):
        return {"latents": torch.zeros_like(callback_kwargs["latents"])}

    assert not one(pipe, "a cat", callback_on_step_end=zero, output_type="latent")[0].any()


def callback_interrupts(pipe, folder, tmp_path):
    latents = []

    def stop(pipeline, step, timestep, callback_kwargs):
        latents.append(callback_kwargs["latents"])
        pipeline._interrupt = True

    (stopped,) = one(pipe, "a cat", callback_on_step_end=stop, output_type="latent")
    assert len(latents) == 1
    assert torch.equal(stopped, latents[0])


def set_progress_bar_config(pipe, folder, tmp_path, capsys):
    quiet = SconePipeline(pipe.model, pipe.tokenizer)
    one(quiet, "a cat")
    assert "2/2" in capsys.readouterr().err
    quiet.set_progress_bar_config(desc="cats", leave=True)
    one(quiet, "a cat")
    assert "cats: 100%" in capsys.readouterr().err
    quiet.set_progress_bar_config(disable=True)
    one(quiet, "a cat")
    assert capsys.readouterr().err == ""
    with pytest.raises(TypeError, match="did you mean disable"):
        quiet.set_progress_bar_config(disabled=True)


def save_pretrained(pipe, folder, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    again = SconePipeline.from_pretrained(tmp_path / "saved")
    assert same(one(again, "a cat", image=CAT, bridge="trained"), one(pipe, "a cat", image=CAT, bridge="trained"))
    with pytest.raises(UserError, match="come from"):
        pipe.save_pretrained(folder)


def bridge(pipe, folder, tmp_path):
    trained = pipe("a cat", image=CAT, bridge="trained", seed=0, **FAST)
    assert same(trained.images, one(pipe, "a cat", image=CAT, bridge=BRIDGE))
    assert not same(trained.images, one(pipe, "a cat", image=CAT, bridge=None))
    assert len(trained.to_tuple()) == 2


HABITS = [
    *(torch_dtype, device_map, to, prompt_first, image_or_images, image_path, image_array, image_url, prompt_list),
    *(negative_prompt, guidance_scale_one, num_images_per_prompt, generator_and_seed, output_type_np, output_type_pt),
    *(return_dict, callback_on_step_end, callback_changes_latents, callback_interrupts, set_progress_bar_config),
    *(save_pretrained, bridge),
]


@pytest.mark.parametrize("habit", HABITS, ids=lambda habit: habit.__name__)
def test_habit(habit, pipe, folder, tmp_path, request):
    more = {"capsys": request.getfixturevalue("capsys")} if habit is set_progress_bar_config else {}
    habit(pipe, folder, tmp_path, **more)


def test_every_habit_is_documented():
    table = (ROOT / "docs/sampling.md").read_text().partition("## Coming from diffusers")[2].partition("\n## ")[0]
    cells = " ".join(line for line in table.splitlines() if line.startswith("| `"))
    arguments = (
        "torch_dtype",
        "device_map",
        ".to(",
        "image",
        "images",
        "negative_prompt",
        "guidance_scale",
        "generator",
    )
    arguments += ("num_images_per_prompt", "seed", "output_type", "callback_on_step_end", "return_dict", "bridge")
    arguments += ("generator",)
    arguments += ("load_lora_weights", "set_adapters", "fuse_lora", "unfuse_lora", "unload_lora_weights", "push_to_hub")
    arguments += ("push_to_hub", "save_pretrained", "set_progress_bar_config", "interrupt")
    assert [name for name in arguments if name not in cells] == []
    assert [name for name in NOT_SUPPORTED if not re.search(rf"`{name}`", table)] == []


OLD = {"torch_dtype": {"dtype": "bfloat16"}, "device_map": {"device": "cpu"}}


@pytest.mark.parametrize("name", OLD)
def test_former_names_work_and_warn_once(name, folder, caplog, monkeypatch):
    monkeypatch.setattr(deprecated, "_warned", set())
    with caplog.at_level("WARNING", "scone_pl"):
        for _ in range(2):
            loaded = SconePipeline.from_pretrained(folder=folder, **OLD[name])
    assert loaded.dtype == (torch.bfloat16 if name == "torch_dtype" else torch.float32)
    assert caplog.text.count(f"is deprecated; write {name}") == 1
    with pytest.raises(UserError, match="both are given"):
        deprecated.rename_arguments({"dtype": 1, "torch_dtype": 2}, deprecated.LOADING)


REFUSED = {
    "it takes num_inference_steps": {"sharpness": 1},
    "sampling always starts from noise": {"strength": 0.8},
    "has no argument guidance; did you mean guidance_scale": {"guidance": 3},
    "must be one of global": {"guidance_rescale": 0.7},
    "generator and seed are both given": {"generator": seeded(), "seed": 1},
    "for a number use seed": {"generator": 3, "seed": None},
    "image and images are the same": {"image": CAT, "images": CAT},
    "prompt comes first": {"prompt": CAT},
    "a text or a list of texts, not an empty list": {"prompt": []},
    "negative_prompt must be": {"negative_prompt": 3},
    "2 texts of negative_prompt for 1": {"negative_prompt": ["a", "b"]},
    "set guidance_scale above 1": {"negative_prompt": "a", "guidance_scale": 1.0},
    "num_images_per_prompt": {"num_images_per_prompt": 0},
    "callback_on_step_end_tensor_inputs": {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
    "are no tensor of shape": {"callback_on_step_end": lambda *_: {"latents": torch.zeros(1)}},
    'must be "trained"': {"bridge": "on"},
    "last_masked_layer is 9": {"bridge": {"source_layer": 0, "first_masked_layer": 1, "last_masked_layer": 9}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_bad_argument_is_one_line(pipe, message):
    call = {"prompt": "x", "seed": 0, **FAST} | REFUSED[message]
    with pytest.raises((ValueError, TypeError), match=message) as error:
        pipe(**call)
    assert "\n" not in str(error.value)


def test_unknown_arguments_are_type_errors(pipe, folder):
    with pytest.raises(TypeError, match="eta"):
        pipe("x", eta=0.0)
    with pytest.raises(UserTypeError, match="did you mean device_map"):
        SconePipeline.from_pretrained(folder, device_mapp="cpu")
    for given in ("balanced", {"model": "cpu"}):
        with pytest.raises(UserError, match="on one device"):
            SconePipeline.from_pretrained(folder, device_map=given)


def test_a_weight_beyond_float16_is_named(folder, tmp_path):
    pipeline = SconePipeline.from_pretrained(folder)
    pipeline.model.vae2llm.bias[0] = 1e6
    pipeline.save_pretrained(tmp_path / "large")
    with pytest.raises(UserError, match=r"vae2llm\.bias exceeds the range of float16"):
        SconePipeline.from_pretrained(tmp_path / "large", torch_dtype=torch.float16)
