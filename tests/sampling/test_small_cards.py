"""Quantisation, offload and tiles: same images where nothing should change, and as much memory as predicted."""

import pytest
import torch
from pipeline_helpers import pixels, write_folder, write_picture
from test_memory import FACTOR, SPACE_TO_DEPTH, measured_peak, small_pipeline

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.model.config import AutoencoderConfig
from scone_pl.model.quantized import quantize_layers
from scone_pl.model.tiling import in_tiles
from scone_pl.model.vae import build_autoencoder
from scone_pl.sampling.memory import Saving, estimate_memory, module_bytes, weight_bytes
from scone_pl.sampling.offload import offload
from scone_pl.sampling.pipeline import SconePipeline
from scone_pl.sampling.sampler import decode_latents, initial_noise, sample
from scone_pl.sampling.settings import SamplingConfig

pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")
CALL = {"num_inference_steps": 2, "seed": 1, "height": 16, "width": 16, "output_type": "latent"}


PEAKS = {
    "": 32.0,
    "--quantization int8": 19.1,
    "--quantization nf4": 13.4,
    "--offload model": 28.9,
    "--quantization nf4 --offload model --vae_tiling true": 10.2,
    "--offload sequential": 3.7,
}
"""Options of `generate` -> estimated peak in GB."""
QUICK = ("--quantization nf4", "--offload sequential")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def expected(folder):
    return SconePipeline.from_pretrained(folder)("a cat", image=pixels(), **CALL).images[0]


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.02), ("nf4", 0.3)])
def test_images_of_quantised_weights_are_near(folder, expected, kind, error):
    pipeline = SconePipeline.from_pretrained(folder, quantization=kind)
    assert module_bytes(pipeline.model) == weight_bytes(pipeline.model.config, torch.float32, Saving(kind))
    found = pipeline("a cat", image=pixels(), **CALL).images[0]
    assert 0 < (found - expected).norm() / expected.norm() < error
    with pytest.raises(UserError, match="quantised"):
        pipeline.save_pretrained(folder.parent / "out")


@pytest.mark.parametrize("kind", ["model", "sequential"])
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_offload_changes_no_image_and_its_memory_is_predicted(kind, quantization):
    """On the CPU copies take the memory that they would take on a GPU."""
    pipeline = small_pipeline(**SPACE_TO_DEPTH)
    model, sequence_format = pipeline.model, pipeline.sequence_format
    if quantization is not None:
        stored = {n: p.detach().clone() for n, p in model.named_parameters()}
        quantize_layers(model.language_model.model.layers, quantization)
        for name, module in model.named_modules():
            if getattr(module, "quantization", None):
                module.set_weight(stored[f"{name}.weight"])
    prompts = pipeline.prompts([[pixels(300, 260)]], ["two words"], 64, 64)
    config = SamplingConfig(num_inference_steps=1)
    noise = [initial_noise(prompts[0], model, sequence_format, torch.Generator().manual_seed(0))]

    def work():
        return decode_latents(model, sample(model, sequence_format, prompts, config, noise)[0])

    before = work()
    held = {name: t.data_ptr() for name, t in model.state_dict().items()}
    offload(model, kind, CPU)
    found, peak = measured_peak(work)
    assert torch.equal(found, before)
    assert {name: t.data_ptr() for name, t in model.state_dict().items()} == held, "everything is back on the CPU"
    saving = Saving(quantization, kind)
    estimate = estimate_memory(model.config, sequence_format, prompts, config, torch.float32, saving)
    added = estimate.peak - estimate.weights
    assert added / FACTOR < peak < added * FACTOR
    whole = weight_bytes(model.config, torch.float32, Saving(quantization))
    assert estimate.weights < (0.95 if kind == "model" else 0.7) * whole
    layer = module_bytes(model.language_model.model.layers[0])
    everything = estimate_memory(model.config, sequence_format, prompts, config, torch.float32, Saving(quantization))
    more = estimate.step - everything.step
    assert more == (layer if kind == "sequential" else 0)


def test_tiles_bound_the_memory_of_decoding():
    pipeline = small_pipeline(base_channels=32)
    model, sequence_format = pipeline.model, pipeline.sequence_format
    prompts = pipeline.prompts([[]], ["x"], 128, 128)
    config = SamplingConfig(num_inference_steps=1)
    found = sample(model, sequence_format, prompts, config, [torch.randn(64, 64)])[0]
    whole, before = measured_peak(lambda: decode_latents(model, found))
    pipeline.enable_vae_tiling(64)
    tiled, peak = measured_peak(lambda: decode_latents(model, found))
    estimate = estimate_memory(model.config, sequence_format, prompts, config, torch.float32, Saving(tile=64))
    assert estimate.decode / FACTOR < peak < estimate.decode * FACTOR
    assert peak < 0.5 * before
    assert tiled.shape == whole.shape
    pipeline.disable_vae_tiling()
    assert torch.equal(decode_latents(model, found), whole)


@pytest.mark.parametrize("size", [(48, 48), (64, 64), (72, 200), (64, 80)])
def test_tiles_of_what_acts_on_each_pixel_alone_change_nothing(size):
    x = torch.randn(2, 3, *size)
    up = in_tiles(lambda part: part.repeat_interleave(2, -1).repeat_interleave(2, -2), x, 64)
    assert torch.allclose(up, x.repeat_interleave(2, -1).repeat_interleave(2, -2), atol=1e-6)


def test_tiles_of_the_convolutional_autoencoder_are_near_the_whole():
    torch.manual_seed(0)
    autoencoder = build_autoencoder(AutoencoderConfig(base_channels=32, num_res_blocks=1)).eval()
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 12) * 2 - 1, size=192, mode="bilinear")
    with torch.no_grad():
        whole = autoencoder.encode(image)
        decoded = autoencoder.decode(whole)
        autoencoder.tile = 128
        tiled, decoded_tiled = autoencoder.encode(image), autoencoder.decode(whole)
    assert tiled.shape == whole.shape
    assert decoded_tiled.shape == decoded.shape
    assert torch.cosine_similarity(tiled.flatten(), whole.flatten(), dim=0) > 0.9, "random weights; norms see a tile"
    assert not torch.equal(tiled, whole)


@pytest.mark.parametrize("options", [o if o in QUICK else pytest.param(o, marks=pytest.mark.slow) for o in PEAKS])
def test_the_published_model_and_cards(bagel_folder, tmp_path, capsys, options):
    """What docs/sampling.md says of one reference and a 1024 x 1024 image."""
    image = write_picture(tmp_path / "cat.png", height=1024, width=1024)
    command = ["generate", "--checkpoint", str(bagel_folder), "--image", str(image), "--instruction", "a cat"]
    assert main([*command, "--dry_run", "true", *options.split()]) == 0
    peak = capsys.readouterr().out.splitlines()[-1].split()[1]
    assert float(peak) == pytest.approx(PEAKS[options], abs=0.06)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--offload", "model", "--device", "cpu"], "offload model: keeps weights on the CPU while a GPU computes"),
        (["--quantization", "nf4", "--compile", "true"], "compile does not go together with quantization nf4"),
        (["--offload", "model", "--compile", "true", "--dry_run", "true"], "--compile does not go together with"),
    ],
)
def test_what_does_not_go_together_is_one_line(folder, tmp_path, capsys, arguments, message):
    command = ["generate", "--checkpoint", str(folder), "--instruction", "x", "--output", str(tmp_path / "x.png")]
    assert main([*command, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_generate_obeys(folder, tmp_path):
    image = write_picture(tmp_path / "cat.png")
    command = ["generate", "--checkpoint", str(folder), "--instruction", "x", "--image", str(image)]
    command += ["--output", str(tmp_path / "out.png"), "--num_inference_steps", "2", "--dtype", "float32"]
    results = []
    for option in ("", "--vae_tiling true", "--quantization int8"):
        assert main([*command, *option.split(), "--device", "cpu"]) == 0
        results.append((tmp_path / "out.png").read_bytes())
    assert results[0] == results[1], "such a small image is one tile"
    assert results[0] != results[2]


def test_a_pipeline_that_offloads_stays_where_it_is(folder):
    pipeline = SconePipeline.from_pretrained(folder)
    with pytest.raises(UserError, match="device is cpu"):
        pipeline.enable_model_cpu_offload("cpu")
    pipeline._offload = "sequential"
    with pytest.raises(UserError, match="load the pipeline anew"):
        pipeline.to("cpu")
    with pytest.raises(UserError, match="before enable_sequential_cpu_offload"):
        pipeline.load_lora_weights("anything")
    with pytest.raises(UserError, match="multiple of 64"):
        pipeline.enable_vae_tiling(100)
