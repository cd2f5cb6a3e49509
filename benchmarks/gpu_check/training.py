"""A training step of a 7B-shaped stack at the real token budget: seconds, MFU, peak memory, worth of each switch.

MFU is model FLOPs (attended pairs, recomputation apart) a second over the rate of a large bfloat16 matrix product
measured in the same process. To measure another switch, add a row to `CASES`.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import statistics
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_check.profile import kernel_times
from benchmarks.gpu_check.report import FAILURES, Report, one_line, problem_or
from benchmarks.gpu_check.settings import Settings, median_seconds, product_rate, wait
from benchmarks.gpu_check.stack import (
    TRAINED,
    Prediction,
    bridge_of,
    build_trained,
    config_of,
    full_pack,
    one_rank,
)
from scone_pl.estimate.memory import FRAGMENTATION
from scone_pl.gpus import peak_of
from scone_pl.model.attention import ATTENTION_BACKENDS, AttentionPlan, attended_pairs
from scone_pl.model.config import BridgeConfig
from scone_pl.model.flops import count_tokens, step_flops
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import PackedSequence
from scone_pl.training.gradients import GradientGuard
from scone_pl.training.losses import flow_matching, text_cross_entropy
from scone_pl.training.monitoring import Mark, mark, resident_memory, seconds_between

PHASES = ("encode", "forward", "backward", "optimizer")
BASE = "bridge hard"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Settings of a measured step; the defaults are the recipe's (`BASE`)."""

    bridge: str = "hard"
    attention: str = "flex"
    checkpointing: bool = True
    layers_kept: int = 0
    fused_optimizer: bool | None = None
    """None = torch's default for AdamW."""
    may_not_fit: bool = False
    """Running out of memory is a result, not a failure."""


CASES = {
    BASE: Case(),
    "bridge off": Case(bridge="off"),
    "bridge soft": Case(bridge="soft"),
    "split attention": Case(attention="split"),
    "split attention, bridge soft": Case(attention="split", bridge="soft"),
    "fused AdamW": Case(fused_optimizer=True),
    "layers_kept 1": Case(layers_kept=1, may_not_fit=True),
    "layers_kept 2": Case(layers_kept=2, may_not_fit=True),
    "no activation checkpointing": Case(checkpointing=False, may_not_fit=True),
}
"""What is measured, by name. Each is compared with `BASE`."""


def run(settings: Settings, report: Report) -> None:
    """Attention alone, then every case."""
    torch.backends.cuda.matmul.allow_tf32 = False
    rate = product_rate(settings.device, settings.compute_dtype, 8192 if settings.cuda else 256)
    report.record(product_rate=rate)
    prediction = Prediction(settings, attention="flex" if settings.cuda else "split")
    layers = 4
    if settings.cuda:
        # One fewer than fit, so that a layer's activations can be kept (`layers_kept`).
        layers = max(3, prediction.most_layers(torch.cuda.mem_get_info(settings.device)[0]) - 1)
    config = config_of(settings, layers)
    pack = full_pack(config, settings)
    name = torch.cuda.get_device_name(settings.device) if settings.cuda else "CPU"
    report.record(device=name, layers=layers, tokens=len(pack), list_peak=peak_of(name))
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
            cases[label] = measure_safely(model, pack, case, settings, rate)
            problem = cases[label].get("problem", "")
            report.record(cases=cases)
            report.require(not problem or cases[label]["tolerated"], f"{label}: {problem}")
        if settings.cuda:
            profiled = problem_or(profile_base, model, pack, settings)
            report.record(profile=profiled)
            report.require("problem" not in profiled, f"profile: {profiled.get('problem')}")
    base = cases[BASE]
    for case in cases.values():
        if "seconds" in case and "seconds" in base:
            case["time_ratio"] = case["seconds"] / base["seconds"]
            case["memory_ratio"] = case["allocated"] / base["allocated"]
    report.record(cases=cases)
    if settings.cuda and "allocated" in base:
        ratio = base["allocated"] / predicted.peak
        report.record(memory_over_prediction=ratio)
        report.require(
            ratio <= 1 + FRAGMENTATION,
            f"peak memory {base['allocated'] / 1e9:.2f} GB; predicted {predicted.peak / 1e9:.2f} GB",
        )
    if not settings.cuda:
        report.skip("needs CUDA: toy sizes, split attention in place of flex")


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
    for backend, kind in itertools.product(("flex", "split") if settings.cuda else ("split",), ("off", "hard", "soft")):
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


def measure_safely(model: Scone, pack: PackedSequence, case: Case, settings: Settings, rate: float) -> dict[str, Any]:
    """`measure`, or the problem, and whether the case tolerates it; memory is given back either way."""
    try:
        return {**dataclasses.asdict(case), **measure(model, pack, case, settings, rate)}
    except FAILURES as error:
        tolerated = case.may_not_fit and isinstance(error, torch.OutOfMemoryError)
        return {**dataclasses.asdict(case), "problem": one_line(error), "tolerated": tolerated}
    finally:
        model.zero_grad(set_to_none=True)
        gc.collect()
        if settings.cuda:
            torch.cuda.empty_cache()


def measure(model: Scone, pack: PackedSequence, case: Case, settings: Settings, rate: float) -> dict[str, Any]:
    """Times steps behind two that compile and warm up."""
    device, decoder = settings.device, model.language_model.model
    model.attention = case.attention if settings.cuda else "split"
    decoder.activation_checkpointing, decoder.layers_kept = case.checkpointing, case.layers_kept
    bridge = bridge_of(case.bridge, len(decoder.layers))
    step = TrainingStep(model, pack, bridge, settings, fused=case.fused_optimizer)
    warm_up, repeats = (2, 3) if settings.cuda else (1, 1)
    steps: list[list[Mark]] = []
    for number in range(warm_up + repeats):
        if settings.cuda and number == warm_up:
            torch.cuda.reset_peak_memory_stats(device)
        steps.append(step())
        wait(device)
    spans = [[seconds_between(x, y) for x, y in itertools.pairwise(marks)] for marks in steps[warm_up:]]
    phases = {name: statistics.median(column) for name, column in zip(PHASES, zip(*spans, strict=True), strict=True)}
    seconds = statistics.median(sum(span) for span in spans)
    counts = count_tokens(pack, len(decoder.layers), bridge, step.blocked)
    flops = step_flops(model.config, counts, TRAINED)
    recomputed = flops.recomputed * (1 - case.layers_kept / len(decoder.layers)) if case.checkpointing else 0
    return {
        "loss": step.loss.item(),
        "blocked_fraction": 0.0 if step.blocked is None else step.blocked[pack.reference_tokens].float().mean().item(),
        "seconds": seconds,
        "phases": phases,
        "tokens_per_second": len(pack) / seconds,
        "flops": flops.total,
        "recomputed": recomputed,
        "mfu": flops.total / seconds / rate,
        "mfu_with_recomputation": (flops.total + recomputed) / seconds / rate,
        "allocated": torch.cuda.max_memory_allocated(device) if settings.cuda else resident_memory(),
        "reserved": torch.cuda.max_memory_reserved(device) if settings.cuda else resident_memory(),
    }


def profile_base(model: Scone, pack: PackedSequence, settings: Settings) -> dict[str, Any]:
    """Kernel times of a step of `BASE`."""
    case, decoder = CASES[BASE], model.language_model.model
    model.attention = case.attention
    decoder.activation_checkpointing, decoder.layers_kept = case.checkpointing, case.layers_kept
    step = TrainingStep(model, pack, bridge_of(case.bridge, len(decoder.layers)), settings)
    return kernel_times(step, settings.device)


class TrainingStep:
    """One optimizer step as `SconeModule` makes it: encode, noise, forward, backward, clip, AdamW."""

    loss: torch.Tensor
    blocked: torch.Tensor | None

    def __init__(
        self,
        model: Scone,
        pack: PackedSequence,
        bridge: BridgeConfig | None,
        settings: Settings,
        *,
        fused: bool | None = None,
    ) -> None:
        self.model, self.pack, self.bridge, self.device = model, pack, bridge, settings.device
        self.named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [p for _, p in self.named], lr=2e-5, betas=(0.9, 0.95), eps=1e-15, weight_decay=0.0, fused=fused
        )
        self.guard = GradientGuard()
        self.done = 0

    def __call__(self) -> list[Mark]:
        """Makes a step; marks of its beginning and of the end of each of `PHASES`."""
        self.done += 1
        marks = [mark(self.device)]
        with torch.no_grad():
            clean = self.model.encode_images(self.pack, sample=True).float()
        marks.append(mark(self.device))
        result = flow_matching(self.model, self.pack, clean, torch.randn_like(clean), bridge=self.bridge)
        self.loss = result.squared_error.mean() + text_cross_entropy(result.output, self.pack)
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
