"""Time of sampling, per step and per image, against the release's algorithm; error of the step cache.

A random model and one prompt with two references, guided by text and references (three branches). Rows:

    release          a key/value cache for each branch, the branches one after the other (`release.py`)
    ours             contexts prefilled once, all branches in one pass, keys and values in place
    ours, bridge n%  the same with n % of the reference tokens hidden from the target in the masked layers
    ours, cache k/o  every k-th step computed, the others extrapolated with order o

Per image = prefill + 49 steps (Scone's published number), from the fastest step; ratios are to `release` in the same
run.
The error of a cache row is the largest difference of its final latents from those of all steps, over their largest
value, in a run of `--cache-steps` steps; with `--checkpoint` that model's, where velocities are not random.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Iterable
from itertools import pairwise

import release
import torch
from torch import Tensor, nn

from scone_pl.checkpoints.model import from_pretrained
from scone_pl.model.config import AutoencoderConfig, BridgeConfig, DecoderConfig, SconeConfig, ViTConfig
from scone_pl.model.initialize import random_model
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import SequenceFormat, SpecialTokens
from scone_pl.sampling.context import Prompt, prefill
from scone_pl.sampling.sampler import initial_noise, sample
from scone_pl.sampling.settings import SamplingConfig, StepCacheConfig

PUBLISHED_STEPS = 49
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]


def benchmark_model(options: argparse.Namespace) -> Scone:
    """Random, of real token sizes, with a velocity that is not 0."""
    config = SconeConfig(
        decoder=DecoderConfig(
            vocab_size=260,
            hidden_size=options.width,
            intermediate_size=3 * options.width,
            num_layers=options.layers,
            num_heads=options.width // 32,
            num_kv_heads=max(1, options.width // 128),
        ),
        vit=ViTConfig(hidden_size=96, intermediate_size=192, num_layers=2, num_heads=4),
        autoencoder=AutoencoderConfig(kind="space_to_depth", block_size=8),
    )
    model = random_model(config, 0).eval().requires_grad_(False)
    nn.init.normal_(model.llm2vae.weight, std=options.width**-0.5, generator=torch.Generator().manual_seed(0))
    return model


def benchmark_prompt(sequence_format: SequenceFormat, pixels: int, references: int) -> Prompt:
    """References and picture of `pixels` a side, an instruction of 60 tokens."""
    random = torch.Generator().manual_seed(0)
    stride, patch = sequence_format.latent_stride, sequence_format.vit_patch_size
    vae = min(pixels // stride, sequence_format.latent_positions_per_side) * stride
    vit = min(round(pixels / patch), sequence_format.vit_positions_per_side) * patch
    pairs = tuple(
        (torch.rand(3, vae, vae, generator=random) * 2 - 1, torch.rand(3, vit, vit, generator=random) * 2 - 1)
        for _ in range(references)
    )
    return Prompt(pairs, tuple(4 + i % 20 for i in range(60)), (vae, vae))


def steps_of(latents: Iterable[Tensor]) -> tuple[float, list[float]]:
    """Of a sampler that yields after each step: see `ours`."""
    marks = [clock()]
    marks.extend(clock() for _ in latents)
    return _prefill_and_steps(marks)


def _prefill_and_steps(marks: list[float]) -> tuple[float, list[float]]:
    seconds = [b - a for a, b in pairwise(marks)]
    return max(0.0, seconds[0] - statistics.median(seconds[1:])), seconds[1:]


def ours(
    model: Scone, sequence_format: SequenceFormat, prompt: Prompt, noise: Tensor, config: SamplingConfig
) -> tuple[float, list[float]]:
    """Seconds until the first step is done, less a median step (the prefill); seconds of the other steps."""
    marks = [clock()]
    sample(model, sequence_format, [prompt], config, [noise], lambda *_: marks.append(clock()))
    return _prefill_and_steps(marks)


def bridge_blocking(
    model: Scone, sequence_format: SequenceFormat, prompt: Prompt, share: float, options: argparse.Namespace
) -> BridgeConfig:
    """A bridge over the paper's share of the layers whose threshold hides `share` of the reference tokens."""
    layers = options.layers
    last = layers * 15 // 28 if options.last_masked_layer is None else options.last_masked_layer
    bridge = BridgeConfig(
        source_layer=layers * 8 // 28, first_masked_layer=layers * 8 // 28 + 1, last_masked_layer=last, threshold=0.0
    )
    found = prefill(model, sequence_format, [prompt], bridge, references=True)
    if found.bridge is None:
        raise RuntimeError("the prompt has no references")
    similarity = found.bridge.similarity[found.pack.reference_tokens]
    return dataclasses.replace(bridge, threshold=similarity.quantile(share).item())


def time_rows(options: argparse.Namespace) -> None:
    """Prints naive and ours, without and with the bridge."""
    model = benchmark_model(options)
    sequence_format = model.config.sequence_format(SpecialTokens(0, 1, 2, 3))
    prompt = benchmark_prompt(sequence_format, options.pixels, options.references)
    noise = initial_noise(prompt, model, sequence_format, torch.Generator().manual_seed(0))
    config = SamplingConfig(num_inference_steps=options.steps)
    ours(model, sequence_format, prompt, noise, dataclasses.replace(config, num_inference_steps=2))  # starts threads
    print("| sampling | image / release | step / release | s per image | s per step |\n|---|---|---|---|---|")
    reference: list[float] = []

    def row(name: str, prefilled: float, seconds: list[float]) -> None:
        step = min(seconds)
        image = prefilled + PUBLISHED_STEPS * step
        reference[:] = reference or [image, step]
        ratios = f"{image / reference[0]:.2f} | {step / reference[1]:.2f}"
        print(f"| {name} | {ratios} | {image:.1f} | {step:.3f} |", flush=True)

    row("release", *steps_of(release.sample(model, sequence_format, prompt, noise, config)))
    row("ours", *ours(model, sequence_format, prompt, noise, config))
    for percent in options.blocked:
        bridge = bridge_blocking(model, sequence_format, prompt, percent / 100, options)
        layers = f"layers {bridge.first_masked_layer}-{bridge.last_masked_layer} of {options.layers}"
        settings = dataclasses.replace(config, bridge=bridge)
        row(f"ours, bridge {percent} % ({layers})", *ours(model, sequence_format, prompt, noise, settings))


def cache_rows(options: argparse.Namespace) -> None:
    """Prints error and time of the step cache."""
    model = benchmark_model(options) if options.checkpoint is None else from_pretrained(options.checkpoint)
    sequence_format = model.config.sequence_format(SpecialTokens(0, 1, 2, 3))
    prompt = benchmark_prompt(sequence_format, options.cache_pixels, options.references)
    noise = initial_noise(prompt, model, sequence_format, torch.Generator().manual_seed(0))
    config = SamplingConfig(num_inference_steps=options.cache_steps)
    start = clock()
    whole = sample(model, sequence_format, [prompt], config, [noise])[0].tokens
    full = clock() - start
    print(f"\n| step cache, {options.cache_steps} steps | error | time / all steps |\n|---|---|---|")
    for interval in options.intervals:
        for order in options.orders:
            cached = dataclasses.replace(config, step_cache=StepCacheConfig(interval=interval, order=order))
            start = clock()
            found = sample(model, sequence_format, [prompt], cached, [noise])[0].tokens
            took = (clock() - start) / full
            error = ((found - whole).abs().max() / whole.abs().max()).item()
            print(f"| interval {interval}, order {order} | {error:.4f} | {took:.2f} |", flush=True)


def main() -> None:
    """Prints Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="hidden size of the decoder (%(default)s)")
    parser.add_argument("--layers", type=int, default=8, help="decoder layers (%(default)s)")
    parser.add_argument("--pixels", type=int, default=512, help="side of references and picture (%(default)s)")
    parser.add_argument("--references", type=int, default=2, help="reference images (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="steps timed (%(default)s)")
    parser.add_argument("--blocked", type=int, nargs="*", default=[0, 50, 90], help="%% of reference tokens hidden")
    parser.add_argument("--last-masked-layer", type=int, help="by default the paper's share of the layers (15 of 28)")
    parser.add_argument("--cache-steps", type=int, default=49, help="steps of the step cache's runs (%(default)s)")
    parser.add_argument("--cache-pixels", type=int, default=128, help="picture side in them (%(default)s)")
    parser.add_argument("--intervals", type=int, nargs="*", default=[2, 3], help="intervals of the step cache")
    parser.add_argument("--orders", type=int, nargs="*", default=[0, 1, 2], help="orders of the step cache")
    parser.add_argument("--checkpoint", help="checkpoint folder for the step cache rows, instead of a random model")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: on a machine with other work")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args()
    global clock
    clock = CLOCKS[options.clock]
    torch.set_num_threads(options.threads)
    print(
        f"width {options.width}, {options.layers} layers, {options.references} references and picture of "
        f"{options.pixels} pixels a side, float32, {options.threads} threads, {options.clock} clock, "
        f"torch {torch.__version__}\n"
    )
    time_rows(options)
    if options.intervals and options.orders:
        cache_rows(options)


if __name__ == "__main__":
    main()
