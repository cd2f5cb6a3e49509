"""A training step of a 7B-shaped stack at the real token budget: seconds, MFU, peak memory, worth of each switch.

MFU is model FLOPs (attended pairs, recomputation apart) a second over the rate of a large bfloat16 matrix product
measured in the same process. Every step is made on another pack, as in training. To measure another switch, add a row
to `CASES`.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_check.profile import kernel_times
from benchmarks.gpu_check.report import FAILURES, Report, one_line, problem_or
from benchmarks.gpu_check.settings import Settings, median_seconds, product_rate, wait
from benchmarks.gpu_check.stack import (
    FULL_DEPTH,
    TRAINED,
    Prediction,
    bridge_of,
    build_trained,
    config_of,
    full_pack,
    one_rank,
    varied_packs,
)
from benchmarks.release import ReleasePlan, release_layers
from scone_pl.estimate.memory import FRAGMENTATION
from scone_pl.gpus import peak_of
from scone_pl.model.attention import ATTENTION_BACKENDS, AttentionPlan, attended_pairs
from scone_pl.model.compiled import set_compiled
from scone_pl.model.config import BridgeConfig, DecoderConfig
from scone_pl.model.flops import count_tokens, step_flops
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import PackedSequence
from scone_pl.training.gradients import GradientGuard
from scone_pl.training.losses import flow_matching, text_cross_entropy
from scone_pl.training.monitoring import Mark, mark, resident_memory, seconds_between
from scone_pl.training.optimizer import OptimizerConfig

PHASES = ("encode", "forward", "backward", "optimizer")
BASE = "bridge hard"
HALF_DEPTH = "half of the layers"
RELEASE = "the release's algorithm"
"""Dense masks, eager operations on tensors of the whole sequence; see benchmarks/release.py."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Settings of a measured step; the defaults are those of the 7B recipes (`BASE`)."""

    bridge: str = "hard"
    attention: str = "varlen"
    compiled: bool = True
    checkpointing: bool = True
    recompute_attention: bool = False
    layers_kept: int = 0
    depth: float = 1.0
    """Fraction of the layers that run."""
    may_not_fit: bool = False
    """Running out of memory is a result, not a failure."""


CASES = {
    BASE: Case(),
    HALF_DEPTH: Case(depth=0.5),
    "bridge off": Case(bridge="off"),
    "bridge soft": Case(bridge="soft"),
    "attention recomputed": Case(recompute_attention=True),
    "not compiled": Case(compiled=False),
    "split attention": Case(attention="split"),
    "flex attention": Case(attention="flex", recompute_attention=True),
    "layers_kept 1": Case(layers_kept=1, may_not_fit=True),
    RELEASE: Case(attention="release", compiled=False, recompute_attention=True, may_not_fit=True),
}
"""What is measured, by name. Each is compared with `BASE`."""
PACKS = 4
"""Steps of a case, each on another pack; the first `WARM_UP` compile and are not measured."""
WARM_UP = 2


def run(settings: Settings, report: Report) -> None:
    """Attention alone, then every case."""
    torch.backends.cuda.matmul.allow_tf32 = False
    rate = product_rate(settings.device, settings.compute_dtype, 8192 if settings.cuda else 256)
    report.record(product_rate=rate)
    prediction = Prediction(settings, attention="flex" if settings.cuda else "split")
    layers = 6
    if settings.cuda:
        # One fewer than fit, so that a layer's activations can be kept (`layers_kept`).
        layers = max(3, prediction.most_layers(torch.cuda.mem_get_info(settings.device)[0]) - 1)
    config = config_of(settings, layers)
    packs = varied_packs(config, settings, PACKS)
    pack = full_pack(config, settings)
    name = torch.cuda.get_device_name(settings.device) if settings.cuda else "CPU"
    tokens = [len(p) for p in packs[WARM_UP:]]
    report.record(device=name, layers=layers, tokens=len(pack), tokens_of_packs=tokens, list_peak=peak_of(name))
    alone = attention_alone(pack, settings, config.decoder.num_kv_heads)
    report.record(attention_alone=alone)
    for label, found in alone.items():
        report.require("problem" not in found, f"attention alone, {label}: {found.get('problem')}")
    predicted = prediction.memory(layers)
    report.record(predicted_peak=predicted.peak, predicted_needed=predicted.needed)
    with one_rank(settings):
        model = build_trained(config, settings, "split")
        report.record(parameters=sum(p.numel() for p in model.parameters()))
        cases: dict[str, Any] = {}
        for label, case in CASES.items():
            cases[label] = measure_safely(model, packs, case, settings, rate)
            problem = cases[label].get("problem", "")
            report.record(cases=cases)
            report.require(not problem or cases[label]["tolerated"], f"{label}: {problem}")
        if settings.cuda:
            profiled = problem_or(profile_base, model, packs[-1], settings)
            report.record(profile=profiled)
            report.require("problem" not in profiled, f"profile: {profiled.get('problem')}")
    base = cases[BASE]
    for case in cases.values():
        if "seconds" in case and "seconds" in base:
            case["time_ratio"] = case["seconds"] / base["seconds"]
            case["memory_ratio"] = case["allocated"] / base["allocated"]
    report.record(cases=cases)
    if "seconds" in base and "seconds" in cases[HALF_DEPTH]:
        report.record(full_depth=extrapolated(base, cases[HALF_DEPTH], layers, rate))
    if settings.cuda and "allocated" in base:
        ratio = base["allocated"] / predicted.peak
        report.record(memory_over_prediction=ratio)
        report.require(
            ratio <= 1 + FRAGMENTATION,
            f"peak memory {base['allocated'] / 1e9:.2f} GB; predicted {predicted.peak / 1e9:.2f} GB",
        )
    if not settings.cuda:
        report.skip("needs CUDA: toy sizes, split attention alone")


def attention_alone(pack: PackedSequence, settings: Settings, kv_heads: int) -> dict[str, Any]:
    """Seconds of planning and of one layer's attention at the decoder's head sizes, by backend and bridge."""
    decoder = config_of(settings, 3).decoder
    shapes = (decoder.num_heads, kv_heads, kv_heads)
    q, k, v = (
        torch.randn(len(pack), heads, decoder.head_dim, device=settings.device, dtype=settings.compute_dtype)
        for heads in shapes
    )
    similarity = torch.randn(len(pack), device=settings.device)
    blocked = pack.reference_tokens & (similarity < 0)
    bias = torch.nn.functional.logsigmoid(similarity).masked_fill(~pack.reference_tokens, 0.0)
    results: dict[str, Any] = {}
    for backend, kind in itertools.product(
        ("varlen", "split") if settings.cuda else ("split",), ("off", "hard", "soft")
    ):
        results[f"{backend}, bridge {kind}"] = problem_or(
            _attention_case, ATTENTION_BACKENDS[backend], pack, kind, (q, k, v), blocked, bias, settings
        )
    return results


def _attention_case(
    backend: type[AttentionPlan],
    pack: PackedSequence,
    kind: str,
    inputs: tuple[torch.Tensor, ...],
    blocked: torch.Tensor,
    bias: torch.Tensor,
    settings: Settings,
) -> dict[str, float]:
    repeats = 5 if settings.cuda else 1
    leaves = [x.detach().requires_grad_() for x in inputs]
    bias = bias.detach().requires_grad_(kind == "soft")

    def limited(plan: AttentionPlan) -> AttentionPlan:
        return plan if kind == "off" else plan.hiding(blocked) if kind == "hard" else plan.biased(bias)

    def planned() -> AttentionPlan:
        return backend(pack)  # type: ignore[call-arg]

    plan = planned()
    masked = limited(plan)

    def both() -> None:
        masked(*leaves, 0).sum().backward()
        for leaf in leaves:
            leaf.grad = None

    with torch.no_grad():
        forward = median_seconds(lambda: masked(*leaves, 0), settings.device, repeats)
    whole = median_seconds(both, settings.device, repeats)
    pairs = attended_pairs(pack, blocked if kind == "hard" else None)
    products = 4 * pairs * inputs[0].shape[1] * inputs[0].shape[2]
    return {
        "plan_seconds": median_seconds(planned, settings.device, repeats, 1),
        "mask_seconds": median_seconds(lambda: limited(plan), settings.device, repeats, 1),
        "forward_seconds": forward,
        "forward_backward_seconds": whole,
        "forward_flops_per_second": products / forward,
    }


def extrapolated(whole: dict[str, Any], half: dict[str, Any], layers: int, rate: float) -> dict[str, float]:
    """Seconds and MFU of a step of `FULL_DEPTH` layers on one device, linear in the layers of two measured depths."""
    more = (FULL_DEPTH - layers) / (layers - int(layers * CASES[HALF_DEPTH].depth))
    seconds, flops, tokens = (whole[key] + more * (whole[key] - half[key]) for key in ("seconds", "flops", "tokens"))
    return {"seconds": seconds, "flops": flops, "mfu": flops / seconds / rate, "tokens_per_second": tokens / seconds}


def measure_safely(
    model: Scone, packs: Sequence[PackedSequence], case: Case, settings: Settings, rate: float
) -> dict[str, Any]:
    """`measure`, or the problem, and whether the case tolerates it; memory is given back either way."""
    layers = model.language_model.model.layers
    model.language_model.model.layers = layers[: int(len(layers) * case.depth)]
    try:
        with release_layers() if case.attention == "release" else nullcontext():
            return {**dataclasses.asdict(case), **measure(model, packs, case, settings, rate)}
    except FAILURES as error:
        tolerated = case.may_not_fit and isinstance(error, torch.OutOfMemoryError)
        return {**dataclasses.asdict(case), "problem": one_line(error), "tolerated": tolerated}
    finally:
        model.language_model.model.layers = layers
        model.zero_grad(set_to_none=True)
        gc.collect()
        if settings.cuda:
            torch.cuda.empty_cache()


def apply(case: Case, model: Scone, settings: Settings) -> None:
    """Sets a case's switches."""
    ATTENTION_BACKENDS["release"] = partial(ReleasePlan, dtype=settings.compute_dtype)  # type: ignore[assignment]
    decoder = model.language_model.model
    model.attention = case.attention if settings.cuda or case.attention == "release" else "split"
    set_compiled(model, case.compiled and settings.cuda)  # on the CPU compiling takes a minute
    decoder.activation_checkpointing, decoder.layers_kept = case.checkpointing, case.layers_kept
    decoder.recompute_attention = case.recompute_attention


def measure(
    model: Scone, packs: Sequence[PackedSequence], case: Case, settings: Settings, rate: float
) -> dict[str, Any]:
    """Times a step on each of `packs` after the first `WARM_UP`; sums over them."""
    device, decoder = settings.device, model.language_model.model
    apply(case, model, settings)
    bridge = bridge_of(case.bridge, len(decoder.layers))
    step = TrainingStep(model, bridge, settings)
    spans: list[list[float]] = []
    flops = recomputed = host = tokens = 0.0
    for number, pack in enumerate(packs):
        if settings.cuda and number == WARM_UP:
            torch.cuda.reset_peak_memory_stats(device)
        begun = time.perf_counter()
        marks = step(pack)
        launched = time.perf_counter() - begun
        wait(device)
        if number < WARM_UP:
            continue
        spans.append([seconds_between(x, y) for x, y in itertools.pairwise(marks)])
        counts = count_tokens(pack, len(decoder.layers), bridge, step.blocked)
        counted = step_flops(dataclasses.replace(model.config, decoder=_depth(model)), counts, TRAINED)
        flops, recomputed = flops + counted.total, recomputed + counted.recomputed
        host, tokens = host + launched, tokens + len(pack)
    phases = {name: sum(column) for name, column in zip(PHASES, zip(*spans, strict=True), strict=True)}
    seconds = sum(phases.values())
    recomputed *= (1 - case.layers_kept / len(decoder.layers)) if case.checkpointing else 0
    return {
        "loss": step.loss.item(),
        "seconds": seconds / len(spans),
        "host_seconds": host / len(spans),
        "phases": {name: value / len(spans) for name, value in phases.items()},
        "tokens": tokens / len(spans),
        "tokens_per_second": tokens / seconds,
        "flops": flops / len(spans),
        "recomputed": recomputed / len(spans),
        "blocked_fraction": 0.0 if step.blocked is None else step.blocked[pack.reference_tokens].float().mean().item(),
        "mfu": flops / seconds / rate,
        "mfu_with_recomputation": (flops + recomputed) / seconds / rate,
        "allocated": torch.cuda.max_memory_allocated(device) if settings.cuda else resident_memory(),
        "reserved": torch.cuda.max_memory_reserved(device) if settings.cuda else resident_memory(),
    }


def _depth(model: Scone) -> DecoderConfig:
    return dataclasses.replace(model.config.decoder, num_layers=len(model.language_model.model.layers))


def profile_base(model: Scone, pack: PackedSequence, settings: Settings) -> dict[str, Any]:
    """Kernel times of a step of `BASE`."""
    apply(CASES[BASE], model, settings)
    step = TrainingStep(model, bridge_of(CASES[BASE].bridge, len(model.language_model.model.layers)), settings)
    return kernel_times(partial(step, pack), settings.device)


class TrainingStep:
    """One optimizer step as `SconeModule` makes it: encode, noise, forward, backward, clip, AdamW."""

    loss: torch.Tensor
    blocked: torch.Tensor | None

    def __init__(self, model: Scone, bridge: BridgeConfig | None, settings: Settings) -> None:
        self.model, self.bridge, self.device = model, bridge, settings.device
        self.named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.optimizer = OptimizerConfig().build(p for _, p in self.named)
        self.guard = GradientGuard()
        self.done = 0

    def __call__(self, pack: PackedSequence) -> list[Mark]:
        """Makes a step on `pack`; marks of its beginning and of the end of each of `PHASES`."""
        self.done += 1
        marks = [mark(self.device)]
        with torch.no_grad():
            clean = self.model.encode_images(pack, sample=True).float()
        marks.append(mark(self.device))
        result = flow_matching(self.model, pack, clean, torch.randn_like(clean), bridge=self.bridge)
        self.loss = result.squared_error.mean() + text_cross_entropy(result.output, pack)
        self.blocked = None if result.output.bridge is None else result.output.bridge.blocked
        del result
        marks.append(mark(self.device))
        self.loss.backward()
        self.loss = self.loss.detach()
        marks.append(mark(self.device))
        self.guard.apply(self.named, 1.0, self.done, self.device)
        self.optimizer.step()
        self.optimizer.zero_grad()
        marks.append(mark(self.device))
        return marks
