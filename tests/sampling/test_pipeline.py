"""`SconePipeline`: the sampler behind it, what it accepts, what it refuses."""

import dataclasses
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_helpers import BRIDGE, pixels, png_of, tiny_model, write_folder, write_picture
from running import ROOT

from scone_pl.data.packing import PackingConfig
from scone_pl.data.tokenizer import byte_tokenizer
from scone_pl.errors import UserError
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.sequence import SpecialTokens
from scone_pl.parity import ParityCase
from scone_pl.sampling.pipeline import SconePipeline
from scone_pl.sampling.prompts import prompts_of
from scone_pl.sampling.sampler import decode_latents, initial_noise, sample, to_uint8
from scone_pl.sampling.settings import SamplingConfig, StepCacheConfig

GOLDEN = ROOT / "tests/golden/parity"
FAST = {"num_inference_steps": 2, "height": 16, "width": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def pipeline(folder):
    return SconePipeline.from_pretrained(folder)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_equals_the_sampler_called_by_hand(pipeline):
    images = [pixels(seed=1), pixels(40, 30, seed=2)]
    found = pipeline(images=images, prompt="two of them", generator=seeded(), bridge=BRIDGE, **FAST)
    model, sequence_format = pipeline.model, pipeline.sequence_format
    (prompt,) = pipeline.prompts([images], ["two of them"], 16, 24)
    config = SamplingConfig(num_inference_steps=2, bridge=BRIDGE)
    (latents,) = sample(
        model, sequence_format, [prompt], config, [initial_noise(prompt, model, sequence_format, seeded())]
    )
    assert np.array_equal(np.asarray(found.images[0]), to_uint8(decode_latents(model, latents)).numpy())
    for maps, similarity, blocked in zip(found.bridge[0], latents.similarity, latents.blocked, strict=True):
        assert np.array_equal(maps.similarity, similarity.numpy())
        assert np.array_equal(maps.blocked, blocked.numpy())
        assert maps.reference.shape[:2] == (4 * maps.blocked.shape[0], 4 * maps.blocked.shape[1])


class _GivenIds:
    special = SpecialTokens(1, 2, 3, 4)

    def __init__(self, ids):
        self.ids = ids

    def encode(self, text):
        return self.ids


def test_reaches_the_published_implementations_images():
    case = ParityCase(GOLDEN, attention="split", device="cpu")
    infer = case.expected["infer"]
    described = case.expected["samples"][infer["sample"]]
    packing = PackingConfig(
        vae_resize=case._limits("vae_transform"), vit_resize=case._limits("vit_transform"), vit_source="vae_resized"
    )
    pipeline = SconePipeline(case.model, _GivenIds(described["text_ids"]), packing)
    images = [case.tensors[f"sample{infer['sample']}.image{i}"].numpy() for i in range(described["num_refs"])]
    height, width = infer["image_shape"]
    for name, run in infer["runs"].items():
        found = pipeline(
            images=images,
            prompt="given",
            height=height,
            width=width,
            num_inference_steps=run["num_timesteps"] - 1,
            guidance_scale=run["cfg_text_scale"],
            image_guidance_scale=run["cfg_img_scale"],
            guidance_interval=tuple(run.get("cfg_interval", (0.0, 1.0))),
            guidance_rescale=run.get("cfg_renorm_type", "global"),
            guidance_rescale_min=run.get("cfg_renorm_min", 0.0),
            timestep_shift=run["timestep_shift"],
            latents=case.tensors["infer.initial_noise"],
            output_type="latent",
        )
        assert torch.allclose(found.images[0], case.tensors[f"infer.{name}.final_latent"], atol=1e-4)


def test_published_settings_are_the_defaults():
    defaults = dataclasses.asdict(SamplingConfig())
    assert defaults == {
        "num_inference_steps": 49,
        "guidance_scale": 4.0,
        "image_guidance_scale": 2.0,
        "guidance_interval": (0.0, 1.0),
        "guidance_rescale": "text_channel",
        "guidance_rescale_min": 0.0,
        "timestep_shift": 3.0,
        "height": None,
        "width": None,
        "seed": 1234,
        "bridge": None,
        "preset": "published",
        "unconditional_batch_skip_range": None,
        "step_cache": None,
        "attention_rebalancing": None,
    }
    assert SamplingConfig().passes == (1, StepCacheConfig(interval=1))


def test_rebalancing_needs_reference_images(pipeline):
    call = {"num_inference_steps": 1, "height": 16, "width": 16, "output_type": "latent", "seed": 3}
    with pytest.raises(UserError, match="attention_rebalancing acts on reference images, but there is none"):
        pipeline("x", attention_rebalancing={}, **call)
    image = Image.fromarray(pixels())
    plain, rebalanced = (
        pipeline("x", image=image, attention_rebalancing=given, **call).images[0] for given in (None, {"strength": 1})
    )
    assert not torch.equal(plain, rebalanced)


def test_settings_and_overrides_mean_the_same(pipeline, caplog):
    settings = SamplingConfig(num_inference_steps=2, height=16, width=24, guidance_scale=3.0, seed=7)
    call = {"prompt": "x", "output_type": "latent"}
    whole = pipeline(settings=settings, **call).images[0]
    partly = pipeline(settings=dataclasses.replace(settings, guidance_scale=4.0), guidance_scale=3.0, **call).images[0]
    by_generator = pipeline(settings=dataclasses.replace(settings, seed=1), generator=seeded(7), **call).images[0]
    assert torch.equal(whole, partly)
    assert torch.equal(whole, by_generator)
    with caplog.at_level("WARNING", "scone_pl"):
        old = pipeline(settings=settings, text_guidance_scale=3.0, **call).images[0]
    assert torch.equal(whole, old)
    assert "text_guidance_scale is deprecated; write guidance_scale" in caplog.text


def test_without_settings_noise_is_of_torchs_generator(pipeline):
    torch.manual_seed(3)
    first = pipeline(prompt="x", output_type="latent", **FAST).images[0]
    second = pipeline(prompt="x", output_type="latent", **FAST).images[0]
    torch.manual_seed(3)
    assert torch.equal(pipeline(prompt="x", output_type="latent", **FAST).images[0], first)
    assert not torch.equal(first, second)


def test_images_do_not_depend_on_their_neighbours(pipeline):
    prompts = ["one", "another one", "one"]
    images = [[pixels(seed=1)], [], [pixels(seed=3), pixels(30, 40, seed=4)]]
    together = pipeline(
        images=images, prompt=prompts, generator=[seeded(i) for i in range(3)], output_type="latent", **FAST
    )
    for i, prompt in enumerate(prompts):
        alone = pipeline(images=images[i], prompt=prompt, generator=seeded(i), output_type="latent", **FAST)
        assert torch.allclose(together.images[i], alone.images[0], atol=2e-5)


def test_output_types_and_default_size(pipeline):
    one = {"prompt": "x", "num_inference_steps": 1}
    assert pipeline(**one).images[0].size == (32, 32), "the position table holds 8 tokens of 4 pixels a side"
    noise = torch.randn(64, 48, generator=seeded())
    array, tensor, image = (pipeline(output_type=t, latents=noise, **one).images for t in ("np", "pt", "pil"))
    assert (array.shape, array.dtype, tensor.shape) == ((1, 32, 32, 3), np.float32, (1, 3, 32, 32))
    assert np.array_equal(array[0], tensor[0].permute(1, 2, 0).numpy())
    assert np.array_equal((array[0] * 255).astype(np.uint8), np.asarray(image[0]))
    assert pipeline(output_type="latent", **one).images[0].shape == (64, 48)
    assert pipeline(**one).bridge is None


def test_callback_sees_every_step(pipeline):
    seen = []
    pipeline(prompt="x", callback_on_step_end=lambda p, i, t, more: seen.append((p, i, t, more["latents"])), **FAST)
    assert [s[1] for s in seen] == [0, 1]
    assert seen[0][0] is pipeline
    assert seen[0][2] == 1.0
    assert seen[0][3].shape == (24, 48)


def test_image_of_the_bridge(pipeline):
    found = pipeline(images=[pixels(), pixels(seed=1)], prompt="x", bridge=BRIDGE, **FAST)
    assert found.bridge_image(cell=64).size[1] > 2 * 64
    with pytest.raises(UserError, match="no reference image"):
        pipeline(prompt="x", bridge=BRIDGE, **FAST).bridge_image()


def test_bfloat16(folder):
    pipeline = SconePipeline.from_pretrained(folder, dtype=torch.bfloat16)
    found = pipeline(images=[pixels()], prompt="x", generator=seeded(), output_type="latent", **FAST).images[0]
    assert found.dtype == torch.float32
    assert found.isfinite().all()


def modes():
    rgb = Image.fromarray(pixels())
    grey = Image.fromarray(pixels(channels=1)[:, :, 0])
    palette = rgb.quantize(8)
    palette.info["transparency"] = 0
    sixteen = Image.fromarray(pixels(channels=1)[:, :, 0].astype(np.uint16) * 257)
    return {
        "rgb": rgb,
        "rgba": Image.fromarray(pixels(channels=4)),
        "la": grey.convert("LA"),
        "l": grey,
        "p": palette,
        "1": grey.convert("1"),
        "cmyk": rgb.convert("CMYK"),
        "16": sixteen,
    }


@pytest.mark.parametrize("mode", modes())
@pytest.mark.parametrize("size", [(1, 1), (3, 90), (64, 48)], ids=str)
def test_references_of_any_mode_and_size(pipeline, mode, size, tmp_path):
    image = modes()[mode].resize(size, Image.Resampling.NEAREST)
    file = tmp_path / ("x.tiff" if mode in ("cmyk", "16") else "x.png")
    image.save(file)
    of_image, of_file = pipeline.prompts([[image], [str(file)]], ["x", "x"])
    for (vae, vit), (vae_file, vit_file) in zip(of_image.references, of_file.references, strict=True):
        assert torch.equal(vae, vae_file)
        assert torch.equal(vit, vit_file)
        assert max(vae.shape[1:]) <= 32
        assert max(vit.shape[1:]) <= 24
        assert not any(side % 4 for side in (*vae.shape[1:], *vit.shape[1:]))


def test_sixteen_bits_and_transparency_keep_their_meaning(pipeline):
    def reference(image):
        return pipeline.prompts([[image]], ["x"])[0].references[0][0]

    grey = pixels(32, 32, channels=1)[:, :, 0]
    assert torch.equal(reference(Image.fromarray(grey.astype(np.uint16) * 257)), reference(Image.fromarray(grey)))
    clear = np.concatenate([pixels(32, 32), np.zeros((32, 32, 1), np.uint8)], axis=2)
    assert (reference(clear) == 255).all()


def test_exif_orientation_is_applied(pipeline, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    stored = pixels(16, 32)
    (tmp_path / "turned.png").write_bytes(png_of(stored, exif=exif))
    upright = np.ascontiguousarray(np.rot90(stored, -1))
    turned, straight = pipeline.prompts([[tmp_path / "turned.png"], [upright]], ["x", "x"])
    assert torch.equal(turned.references[0][0], straight.references[0][0])
    assert turned.references[0][0].shape == (3, 32, 16)


BAD_CALLS = {
    "no such file": {"images": ["nowhere.png"]},
    "unreadable image": {"images": [__file__]},
    "is no image": {"images": [np.zeros((4, 4, 5))]},
    "floats must be in": {"images": [np.full((4, 4, 3), 2.0)]},
    "a int is no image": {"images": [3]},
    "multiple of 4 pixels; use 16": {"height": 18},
    "use at most 32": {"width": 64},
    "from 1 to 10000": {"num_inference_steps": 0},
    "set guidance_scale above 1": {"guidance_scale": 1.0, "image_guidance_scale": 2.0},
    "did you mean guidance_scale": {"guidance_scal": 1.0},
    "guidance_interval": {"guidance_interval": (0.5, 0.4)},
    "must be one of global": {"guidance_rescale": "local"},
    "at least 0 and at most 1": {"guidance_rescale_min": 2.0},
    "more than 0": {"timestep_shift": 0.0},
    "last decoder layer is 3": {"bridge": dataclasses.replace(BRIDGE, last_masked_layer=4)},
    "latents must be 1": {"latents": torch.zeros(3, 48)},
    "output_type": {"output_type": "jpeg"},
    "1 entries of image for 2": {"prompt": ["a", "b"], "images": [pixels()]},
    "give one each": {"prompt": ["a", "b"], "images": [[]]},
    "2 generators for 1": {"generator": [seeded(), seeded()]},
    "shorten the instruction": {"prompt": "x" * 33000},
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_bad_calls_say_what_to_change(pipeline, message):
    with pytest.raises(UserError, match=message) as error:
        pipeline(**({"prompt": "x", **FAST} | BAD_CALLS[message]))
    assert "\n" not in str(error.value)


def test_an_empty_instruction_is_begin_and_end(pipeline):
    """As in the release: not the same as no instruction, which is the branch that guidance subtracts."""
    (empty,) = pipeline.prompts([[pixels()]], [""])
    assert (empty.text_ids, empty.text_length) == ((), 2)
    without = dataclasses.replace(empty, text_ids=None)
    assert without.text_length == 0
    noise = initial_noise(empty, pipeline.model, pipeline.sequence_format, torch.Generator().manual_seed(0))
    config = SamplingConfig(num_inference_steps=1)
    found = [sample(pipeline.model, pipeline.sequence_format, [p], config, [noise])[0].tokens for p in (empty, without)]
    assert not found[0].allclose(found[1], atol=1e-3)
    builder = SequenceBuilder(pipeline.sequence_format)
    builder.begin_sample()
    builder.add_vae(empty.references[0][0], reference=0)
    builder.add_vit(empty.references[0][1], reference=0)
    builder.add_text([])
    builder.add_targets(torch.zeros(3, *empty.size), [0.0])
    assert [p.text_ids for p in prompts_of(builder.build())] == [()]


def test_truncated_image(pipeline, tmp_path):
    whole = write_picture(tmp_path / "x.png", height=50, width=50).read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"x\.png: (truncated|damaged) image"):
        pipeline(images=[tmp_path / "x.png"], prompt="x", **FAST)


def test_bad_folders_and_settings(folder, tmp_path):
    for message, call in {
        "no such checkpoint folder": {"pretrained_model_name_or_path": tmp_path / "no"},
        "llm_config.json is missing": {"folder": tmp_path},
        "use float32 or bfloat16 or float16": {"folder": folder, "dtype": "float64"},
        "device nonsense": {"folder": folder, "device": "nonsense"},
    }.items():
        with pytest.raises(UserError, match=message):
            SconePipeline.from_pretrained(**call)
    with pytest.raises(UserError, match="embeds 8"):
        SconePipeline(_with_vocabulary(8), byte_tokenizer())


def _with_vocabulary(rows):
    model = tiny_model()
    model.config = dataclasses.replace(model.config, decoder=dataclasses.replace(model.config.decoder, vocab_size=rows))
    return model


def test_compile_reaches_every_layer(folder):
    with patch("torch.nn.Module.compile", autospec=True) as compiled:
        pipeline = SconePipeline.from_pretrained(folder, compile=True)
    assert [call.args[0] for call in compiled.call_args_list] == list(pipeline.model.language_model.model.layers)
