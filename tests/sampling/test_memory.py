"""The memory estimate against what is really there."""

import dataclasses

import pytest
import torch
from pipeline_helpers import pixels
from torch.profiler import ProfilerActivity, profile

from scone_pl.data.packing import PackingConfig
from scone_pl.data.tokenizer import byte_tokenizer
from scone_pl.data.transforms import ResizeLimits
from scone_pl.model.config import AutoencoderConfig, bagel_7b, mini_photo
from scone_pl.model.initialize import random_model
from scone_pl.model.sequence import SpecialTokens
from scone_pl.sampling.context import prefill
from scone_pl.sampling.memory import count_prompt, estimate_memory, weight_bytes
from scone_pl.sampling.pipeline import SconePipeline
from scone_pl.sampling.sampler import Prompt, decode_latents, initial_noise, sample
from scone_pl.sampling.settings import SamplingConfig

FACTOR = 1.6
"""Activations are an estimate; it must hold within this factor either way."""


def small_pipeline(dtype=torch.float32, packing=None, **autoencoder):
    config = mini_photo()
    decoder = dataclasses.replace(config.decoder, num_layers=2)
    config = dataclasses.replace(config, decoder=decoder, autoencoder=AutoencoderConfig(**autoencoder))
    return SconePipeline(random_model(config, 0).eval().requires_grad_(False).to(dtype), byte_tokenizer(), packing)


SPACE_TO_DEPTH = {"kind": "space_to_depth", "block_size": 8}


def measured_peak(work):
    """Largest sum of what `work` allocates and does not free."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = work()
    now = peak = 0
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return result, peak


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_weights_and_caches_are_exact(dtype):
    limits = ResizeLimits(max_size=112, min_size=56)
    packing = PackingConfig(vae_resize=limits, vit_resize=limits, vit_source="vae_resized")
    pipeline = small_pipeline(dtype, packing, base_channels=32)
    model, sequence_format = pipeline.model, pipeline.sequence_format
    tensors = (*model.parameters(), *model.buffers())
    assert weight_bytes(model.config, dtype) == sum(t.nbytes for t in tensors)
    images = [[pixels(300, 260)], [], [pixels(300, 260), pixels(90, 90)]]
    prompts = pipeline.prompts(images, ["a", "b c", "d"], 64, 96)
    prompts.sort(key=lambda p: p.layout)
    clean = [prefill(model, sequence_format, prompts, None, references=r) for r in (True, False)]
    for config, contexts in (
        (SamplingConfig(), clean),
        (SamplingConfig(image_guidance_scale=1.0), clean[:1]),
        (SamplingConfig(guidance_scale=1.0, image_guidance_scale=1.0), clean[:1]),
    ):
        estimate = estimate_memory(model.config, sequence_format, prompts, config, dtype)
        assert estimate.caches == sum(cache.nbytes for context in contexts for cache in context.caches)
    assert sum(count_prompt(p, sequence_format).context for p in prompts) == len(clean[0].pack)


@pytest.mark.parametrize("case", ["references", "text to image"])
def test_peak_is_near_the_measured_one(case):
    pipeline = small_pipeline(**SPACE_TO_DEPTH)
    model, sequence_format = pipeline.model, pipeline.sequence_format
    side, images = (64, [pixels(300, 260)]) if case == "references" else (512, [])
    prompts = pipeline.prompts([images], ["two words"], side, side)
    config = SamplingConfig(num_inference_steps=1)
    estimate = estimate_memory(model.config, sequence_format, prompts, config, torch.float32)
    noise = [initial_noise(prompts[0], model, sequence_format)]

    def work():
        return decode_latents(model, sample(model, sequence_format, prompts, config, noise)[0])

    _, peak = measured_peak(work)
    expected = estimate.peak - estimate.weights
    assert expected / FACTOR < peak < expected * FACTOR


def test_decoding_is_near_the_measured_peak():
    pipeline = small_pipeline(base_channels=32)
    prompts = pipeline.prompts([[]], ["x"], 128, 128)
    config = SamplingConfig(num_inference_steps=1)
    found = sample(pipeline.model, pipeline.sequence_format, prompts, config, [torch.randn(64, 64)])[0]
    _, peak = measured_peak(lambda: decode_latents(pipeline.model, found))
    estimate = estimate_memory(pipeline.model.config, pipeline.sequence_format, prompts, config, torch.float32)
    assert estimate.decode / FACTOR < peak < estimate.decode * FACTOR


def test_the_published_model_fits_one_gpu_of_40_gb():
    config = bagel_7b()
    sequence_format = config.sequence_format(SpecialTokens(0, 1, 2, 3))
    reference = torch.empty(3, 1024, 1024, device="meta"), torch.empty(3, 980, 980, device="meta")
    prompt = Prompt((reference,) * 4, tuple(range(60)), (1024, 1024))
    estimate = estimate_memory(config, sequence_format, [prompt], SamplingConfig())
    assert 29e9 < estimate.weights < 29.5e9
    assert estimate.peak < 36e9, "as memory.py says"
    assert "peak" in estimate.report().splitlines()[-1]
