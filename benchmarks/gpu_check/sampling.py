"""Sampling a 1024 x 1024 image with a 7B-shaped stack: two depths are measured, 28 layers extrapolated.

Two references, an instruction, guidance by text and references (three branches), bfloat16 weights, as `generate` does.
Prefill and step are linear in the number of layers, so two depths tell what 28 cost; where memory allows, all 28 are
measured too, which tests the extrapolation.
"""

from __future__ import annotations

import statistics
from itertools import pairwise
from typing import Any

import torch

from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.settings import Settings, median_seconds
from benchmarks.gpu_check.stack import FULL_DEPTH, build_sampled, config_of
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import SpecialTokens
from scone_pl.sampling.sampler import Prompt, decode_latents, initial_noise, sample
from scone_pl.sampling.settings import SamplingConfig
from scone_pl.training.monitoring import Mark, mark, seconds_between

LAYERS = (4, 8)
PUBLISHED_STEPS = 49
TIMED_STEPS = 4
LINEAR = ("prefill_seconds", "step_seconds", "peak_bytes")
"""What is linear in the number of layers."""
WHOLE_BYTES = 45e9
"""Free memory from which all layers are measured: 27 GB of weights, caches, activations."""


def run(settings: Settings, report: Report) -> None:
    """Measures both depths and extrapolates."""
    torch.backends.cuda.matmul.allow_tf32 = False
    side = 1024 if not settings.quick else 64
    depths = [*(LAYERS if not settings.quick else (2, 4))]
    if settings.cuda and not settings.quick and torch.cuda.mem_get_info(settings.device)[0] > WHOLE_BYTES:
        depths.append(FULL_DEPTH)
    measured: dict[str, dict[str, float]] = {}
    for layers in depths:
        measured[str(layers)] = measure(layers, side, settings)
        report.record(pixels=side, layers=depths, measured=measured)
    whole = extrapolate(*((layers, measured[str(layers)]) for layers in depths[:2]), FULL_DEPTH)
    decode = statistics.median(m["decode_seconds"] for m in measured.values())
    whole["image_seconds"] = image_seconds(whole, decode)
    note = f"extrapolated to {FULL_DEPTH} layers from {depths[0]} and {depths[1]}, linearly"
    report.record(extrapolated=whole, note=note)
    if str(FULL_DEPTH) in measured:
        real = measured[str(FULL_DEPTH)]
        real["image_seconds"] = image_seconds(real, decode)
        report.record(measured=measured, extrapolation_over_measured=whole["image_seconds"] / real["image_seconds"])
    if not settings.cuda:
        report.skip("needs CUDA: toy sizes")


def extrapolate(few: tuple[int, dict[str, float]], many: tuple[int, dict[str, float]], layers: int) -> dict[str, float]:
    """Values of `LINEAR` at `layers` layers, from those at two other depths (layers, values)."""
    (a, low), (b, high) = few, many
    return {name: low[name] + (high[name] - low[name]) * (layers - a) / (b - a) for name in LINEAR}


def image_seconds(values: dict[str, float], decode: float) -> float:
    """Of prefill, `PUBLISHED_STEPS` steps and decoding."""
    return values["prefill_seconds"] + PUBLISHED_STEPS * values["step_seconds"] + decode


def measure(layers: int, side: int, settings: Settings) -> dict[str, float]:
    """Seconds of prefill, of a step and of decoding, and peak memory of a stack of `layers` layers."""
    device = settings.device
    model = build_sampled(config_of(settings, layers), settings)
    model_bytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    prompt = prompt_of(model, side)
    sequence_format = model.config.sequence_format(SpecialTokens(0, 1, 2, 3))
    noise = initial_noise(prompt, model, sequence_format, torch.Generator().manual_seed(0)).to(device)
    config = SamplingConfig(num_inference_steps=TIMED_STEPS)

    def sampled() -> tuple[Any, list[float]]:
        marks: list[Mark] = [mark(device)]
        result = sample(model, sequence_format, [prompt], config, [noise], lambda *_: marks.append(mark(device)))[0]
        if settings.cuda:
            torch.cuda.synchronize(device)
        return result, [seconds_between(start, stop) for start, stop in pairwise(marks)]

    sampled()  # loads kernels
    if settings.cuda:
        torch.cuda.reset_peak_memory_stats(device)
    result, seconds = sampled()
    step = statistics.median(seconds[1:])
    decode = median_seconds(lambda: decode_latents(model, result), device, 1, 1)
    peak = torch.cuda.max_memory_allocated(device) if settings.cuda else model_bytes
    finite = bool(torch.isfinite(result.tokens).all())
    if not finite:
        raise RuntimeError(f"{layers} layers: sampled latents are not finite")
    return {
        "prefill_seconds": max(0.0, seconds[0] - step),
        "step_seconds": step,
        "decode_seconds": decode,
        "peak_bytes": peak,
        "model_bytes": model_bytes,
    }


def prompt_of(model: Scone, side: int) -> Prompt:
    """Two references and an image of `side` pixels a side, an instruction of 60 tokens, all random."""
    random = torch.Generator().manual_seed(0)
    patch = model.config.vit.patch_size
    vit = min(side // patch, model.config.vit.positions_per_side) * patch
    device, dtype = model.vae2llm.weight.device, model.vae2llm.weight.dtype
    references = tuple(
        (
            (torch.rand(3, side, side, generator=random) * 2 - 1).to(device, dtype),
            (torch.rand(3, vit, vit, generator=random) * 2 - 1).to(device, dtype),
        )
        for _ in range(2)
    )
    return Prompt(references, tuple(4 + i % 20 for i in range(60)), (side, side))
