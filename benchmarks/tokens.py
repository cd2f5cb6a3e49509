"""What leaving blocked tokens out saves, in training and in sampling: time, memory, counted work.

One sample in the proportions of two references and a picture of 1024 pixels a side, a network in the proportions of
the 7B decoder. The bridge blocks a share of each reference's tokens (`BridgeConfig.quantile`). Rows:

    mask               blocked tokens get an additive -inf in the paper's quarter of the layers: the baseline, all work
                       done
    left out           the same result, blocked keys left out of the pictures' products (what scone_pl does)
    left out, later    likewise in all layers after the source layer
    dropped            blocked tokens leave the network behind the source layer (`BridgeConfig.drop_blocked`)

Each case runs in a process of its own. Training: forward and backward of one step, the best of the repeats; memory is
the growth of peak resident memory, with and without recomputing activations (timed with, as the recipes train).
Sampling: prefill and a step of three guidance branches; cache is the bytes of the context with references. Ratios are
to `mask` at the same share, at 0 % to nothing blocked. FLOPs are counted (scone_pl/model/flops.py), beside them those
of the 7B model at full size, and the share of its tokens times layers that is computed at all. How well a model does
with fewer tokens is measured in the mini-world: experiments/studies/tokens.yaml.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import sampling
import torch
from torch import Tensor
from workload import SEQUENCE_FORMAT, in_own_process, memory, training_pack

from scone_pl.files import write_json
from scone_pl.model.attention import ATTENTION_BACKENDS, SplitPlan
from scone_pl.model.config import AutoencoderConfig, BridgeConfig, DecoderConfig, SconeConfig, ViTConfig, bagel_7b
from scone_pl.model.flops import TRAINED, TokenCounts, count_tokens, step_flops
from scone_pl.model.initialize import random_model
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import PackedSequence
from scone_pl.sampling.context import prefill
from scone_pl.sampling.prompts import prompts_of
from scone_pl.sampling.sampler import initial_noise
from scone_pl.sampling.settings import SamplingConfig
from scone_pl.study.training import commit, versions
from scone_pl.training import losses
from scone_pl.training.heap import trim_heap, trim_heap_before
from scone_pl.training.parts import set_trainable

FULL_SIZE = 15080
"""Tokens of the sample at 1024 pixels a side."""
ROWS = {"mask": "mask", "paper": "left out", "later": "left out, later", "dropped": "dropped"}


class MaskedPlan(SplitPlan):
    """Hides by an additive mask: nothing is left out."""

    def hiding(self, blocked: Tensor) -> SplitPlan:
        return self.biased(torch.zeros(len(blocked)).masked_fill_(blocked, -torch.inf))


ATTENTION_BACKENDS["masked"] = MaskedPlan


def network(options: argparse.Namespace) -> SconeConfig:
    """The 7B decoder's proportions at another width and depth."""
    large = bagel_7b().decoder
    width = options.width
    return SconeConfig(
        decoder=DecoderConfig(
            vocab_size=260,
            hidden_size=width,
            intermediate_size=width * large.intermediate_size // large.hidden_size,
            num_layers=options.layers,
            num_heads=width // 32,
            num_kv_heads=max(1, width // 128),
        ),
        vit=ViTConfig(
            hidden_size=width // 2,
            intermediate_size=2 * width,
            num_layers=2,
            num_heads=4,
            positions_per_side=SEQUENCE_FORMAT.vit_positions_per_side,
        ),
        autoencoder=AutoencoderConfig(kind="space_to_depth", block_size=SEQUENCE_FORMAT.latent_stride // 2),
        latent_positions_per_side=SEQUENCE_FORMAT.latent_positions_per_side,
    )


def bridge_of(row: str, share: float, num_layers: int) -> BridgeConfig:
    """The paper's layers (8; 9 to 15 of 28) at this depth, or all after the source layer."""
    source, first, last = (layer * num_layers // 28 for layer in (8, 9, 15))
    return BridgeConfig(
        source_layer=source,
        first_masked_layer=max(first, source + 1),
        last_masked_layer=last if row in ("mask", "paper") else num_layers - 1,
        threshold=-2.0,  # with nothing to block
        quantile=share or None,
        drop_blocked=row == "dropped",
    )


def run_case(row: str, share: float, options: argparse.Namespace) -> dict[str, float]:
    """Measures one case in this process."""
    torch.set_num_threads(options.threads)
    config = network(options)
    model = random_model(config, seed=0).train()
    set_trainable(model, TRAINED)  # type: ignore[arg-type]
    trim_heap_before(model.language_model.model.layers)
    pack, bridge = training_pack(options.tokens, pixels=True), bridge_of(row, share, options.layers)
    _train_step(model, training_pack(300, pixels=True), bridge)  # starts threads
    trim_heap(0)
    before = memory("VmRSS")
    model.attention = "masked" if row == "mask" else "split"
    model.language_model.model.activation_checkpointing = True
    seconds, blocked = zip(*(_train_step(model, pack, bridge) for _ in range(options.repeats)), strict=True)
    recomputing = memory("VmHWM") - before
    model.language_model.model.activation_checkpointing = False
    _train_step(model, pack, bridge)
    keeping = memory("VmHWM") - before
    counts = count_tokens(pack, options.layers, bridge, blocked[0])
    return {
        "tokens": len(pack),
        "blocked": blocked[0][pack.reference_tokens].float().mean().item(),
        "step_seconds": min(seconds),
        "step_memory": recomputing,
        "step_memory_kept": keeping,
        "flops": step_flops(config, counts).total,
        **_sampling(model, pack, bridge, options),
    }


def _train_step(model: Scone, pack: PackedSequence, bridge: BridgeConfig) -> tuple[float, Tensor]:
    """Seconds, and what was blocked (L,)."""
    with torch.no_grad():
        clean = model.encode_images(pack)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    start = sampling.clock()
    result = losses.flow_matching(model, pack, clean, noise, bridge=bridge)
    result.squared_error.mean().backward()
    seconds = sampling.clock() - start
    model.zero_grad()
    assert result.output.bridge is not None
    return seconds, result.output.bridge.blocked


def _sampling(
    model: Scone, pack: PackedSequence, bridge: BridgeConfig, options: argparse.Namespace
) -> dict[str, float]:
    model.eval()
    if model.attention == "masked":
        # A soft bias as steep as a step: caches then add it to the logits and leave nothing out.
        model.attention, bridge = "split", dataclasses.replace(bridge, mode="soft", temperature=1e-6)
    prompt = prompts_of(pack)[0]
    noise = initial_noise(prompt, model, SEQUENCE_FORMAT, torch.Generator().manual_seed(0))
    prefills = []
    with torch.no_grad():
        for _ in range(options.repeats):
            start = sampling.clock()
            contexts = prefill(model, SEQUENCE_FORMAT, [prompt], bridge, references=True)
            prefills.append(sampling.clock() - start)
    config = SamplingConfig(num_inference_steps=options.steps, bridge=bridge)
    _, seconds = sampling.ours(model, SEQUENCE_FORMAT, prompt, noise, config)
    # The room for the target's own keys and values, which any step needs, is no part of what is compared.
    decoder = model.config.decoder
    own = sum(cache.num_targets for cache in contexts.caches) * decoder.num_layers * decoder.num_kv_heads
    return {
        "prefill_seconds": min(prefills),
        "sample_step_seconds": statistics.median(seconds),
        "cache_bytes": sum(cache.nbytes for cache in contexts.caches) - own * 2 * decoder.head_dim * 4,
    }


def full_size(row: str, share: float) -> dict[str, float]:
    """Counted at 7B: FLOPs of a step, and computed tokens times layers over all."""
    config, pack = bagel_7b(), training_pack(FULL_SIZE)
    layers, bridge = config.decoder.num_layers, bridge_of(row, share, config.decoder.num_layers)
    blocked = pack.reference_tokens & (torch.rand(len(pack), generator=torch.Generator().manual_seed(0)) < share)
    counts = count_tokens(pack, layers, bridge, blocked)
    return {
        "full_tokens": len(pack),
        "full_flops": _flops_of_mask(config, pack) if row == "mask" else step_flops(config, counts).total,
        "full_token_layers": 1 - _dropped(counts, layers) / (len(pack) * layers),
    }


def _flops_of_mask(config: SconeConfig, pack: PackedSequence) -> int:
    return step_flops(config, count_tokens(pack, config.decoder.num_layers)).total


def _dropped(counts: TokenCounts, layers: int) -> int:
    return sum(counts.dropped) * (layers - counts.dropped_from)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs all cases and prints the rows of the table as they come."""
    cases = []
    for percent in options.blocked:
        baseline: dict[str, Any] = {}
        for row in ROWS if percent else ("paper", "dropped"):
            passed = ["tokens", "width", "layers", "repeats", "steps", "threads", "clock"]
            flags = [f"--{name}={getattr(options, name)}" for name in passed]
            case = in_own_process([__file__, "--case", row, f"--blocked={percent}", *flags])
            case |= {"row": row, "blocked_percent": percent, **full_size(row, percent / 100)}
            if row == "mask" and "error" not in case:
                case["flops"] = _flops_of_mask(network(options), training_pack(options.tokens))
            baseline = baseline or case
            cases.append(case)
            print(_line(case, baseline), flush=True)
    return cases


def _line(case: dict[str, Any], baseline: dict[str, Any]) -> str:
    name = ROWS[case["row"]] if case["blocked_percent"] or case["row"] == "dropped" else "nothing blocked"
    if "error" in case:
        return f"| {case['blocked_percent']} % | {name} | {case['error']} |" + 9 * " |"

    def cell(key: str, scale: float, digits: int) -> str:
        ratio = "" if case is baseline or key not in baseline else f" ({case[key] / baseline[key]:.2f})"
        return f"{case[key] / scale:.{digits}f}{ratio}"

    columns = [
        cell("step_seconds", 1, 2),
        cell("step_memory", 1e6, 0),
        cell("step_memory_kept", 1e6, 0),
        cell("flops", 1e9, 0),
        cell("prefill_seconds", 1, 2),
        cell("sample_step_seconds", 1, 2),
        cell("cache_bytes", 1e6, 1),
        cell("full_flops", 1e15, 2),
        f"{case['full_token_layers']:.0%}",
    ]
    return f"| {case['blocked_percent']} % | {name} | " + " | ".join(columns) + " |"


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1200, help="length of the sample (%(default)s)")
    parser.add_argument("--width", type=int, default=256, help="hidden size (%(default)s)")
    parser.add_argument("--layers", type=int, default=8, help="decoder layers (%(default)s)")
    parser.add_argument("--blocked", type=int, nargs="+", default=[0, 25, 50, 75], help="%% of reference tokens")
    parser.add_argument("--repeats", type=int, default=2, help="steps and prefills, the best counts (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="of sampling, the median but the first (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--clock", choices=list(sampling.CLOCKS), default="wall", help="cpu: beside other work")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    parser.add_argument("--case", choices=list(ROWS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sampling.clock = sampling.CLOCKS[options.clock]
    if options.case:
        print(json.dumps(run_case(options.case, options.blocked[0] / 100, options)))
        return
    bridge = bridge_of("paper", 0.5, options.layers)
    print(
        f"width {options.width}, {options.layers} layers (source {bridge.source_layer}, masked "
        f"{bridge.first_masked_layer}-{bridge.last_masked_layer}), {len(training_pack(options.tokens))} tokens, "
        f"float32, {options.threads} threads, {options.clock} clock, torch {torch.__version__}; in brackets: over "
        "mask, at 0 % over nothing blocked\n"
    )
    print(
        "| blocked | how | train step s | MB, recomputing | MB, keeping | GFLOPs | prefill s | sampling step s "
        f"| cache MB | 7B, {len(training_pack(FULL_SIZE))} tokens: PFLOPs a train step | token-layers computed |"
    )
    print("|" + 11 * "---|")
    cases = measure(options)
    if options.output is not None:
        settings = {k: v for k, v in vars(options).items() if k not in ("output", "case")}
        made = {"commit": commit(), "versions": versions(), "machine": platform.platform()}
        write_json({"settings": settings, **made, "cases": cases}, options.output)


if __name__ == "__main__":
    main()
