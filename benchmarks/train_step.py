"""One whole training step: encode, noise, forward, backward, clip, AdamW; against the release's algorithm.

The data is packed before. Each bridge mode has two columns: the release's algorithm (`release.py`) and scone_pl, each
in a process of its own; ratios are to the first column of the same mode. The modes: no bridge, the paper's hard
bridge in its layers, and a soft bridge in all layers after the one that it reads.

CPU seconds are of all threads (best of the repeats), so that other work on the machine matters little; the
matrix-product rate is measured in them as well, just before. FLOPs are those of matrix products, attended pairs only
(scone_pl/model/flops.py). The autoencoder is a space-to-depth, so encoding costs next to nothing; the ViT runs.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import nullcontext
from dataclasses import replace

import torch
from release import ReleasePlan, release_layers
from workload import SEQUENCE_FORMAT, in_own_process, matmul_rate, memory, training_pack

from scone_pl.model.attention import ATTENTION_BACKENDS
from scone_pl.model.config import AutoencoderConfig, BridgeConfig, DecoderConfig, SconeConfig, ViTConfig
from scone_pl.model.flops import TRAINED, count_tokens, step_flops
from scone_pl.model.initialize import random_model
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import PackedSequence
from scone_pl.training import losses
from scone_pl.training.heap import trim_heap_before
from scone_pl.training.parts import set_trainable

ATTENTION_BACKENDS["release"] = ReleasePlan


def model_config(options: argparse.Namespace) -> SconeConfig:
    """The network that the options describe."""
    return SconeConfig(
        decoder=DecoderConfig(
            vocab_size=260,
            hidden_size=options.width,
            intermediate_size=3 * options.width,
            num_layers=options.layers,
            num_heads=options.heads,
            num_kv_heads=options.kv_heads,
        ),
        vit=ViTConfig(
            hidden_size=options.width // 2,
            intermediate_size=2 * options.width,
            num_layers=2,
            num_heads=options.heads // 2,
            positions_per_side=SEQUENCE_FORMAT.vit_positions_per_side,
        ),
        autoencoder=AutoencoderConfig(kind="space_to_depth", block_size=SEQUENCE_FORMAT.latent_stride // 2),
        latent_positions_per_side=SEQUENCE_FORMAT.latent_positions_per_side,
    )


def bridge_config(options: argparse.Namespace) -> BridgeConfig | None:
    """The paper's layers (8; 9 to 15 of 28) at the model's depth; the threshold is set once similarities are known."""
    mode = options.bridge[0]
    if mode == "off":
        return None
    source, first, last = (layer * options.layers // 28 for layer in (8, 9, 15))
    last = options.layers - 1 if mode == "soft" else last
    return BridgeConfig(
        source_layer=source, first_masked_layer=max(first, source + 1), last_masked_layer=last, mode=mode
    )


@torch.no_grad()
def calibrate(model: Scone, pack: PackedSequence, bridge: BridgeConfig, share: float) -> BridgeConfig:
    """Sets the threshold so that about `share` of the reference tokens is blocked."""
    times = torch.zeros(len(pack.latent_splits))
    state = model(pack, model.encode_images(pack), times, replace(bridge, apply_mask=False)).bridge
    assert state is not None
    return replace(bridge, threshold=torch.quantile(state.similarity[pack.reference_tokens], share).item())


def run(options: argparse.Namespace) -> dict[str, float]:
    """Measures in this process."""
    torch.set_num_threads(options.threads)
    config = model_config(options)
    model = random_model(config, seed=0).train()
    release = options.implementation[0] == "release"
    model.attention = "release" if release else options.attention
    model.language_model.model.activation_checkpointing = options.checkpointing
    trim_heap_before(model.language_model.model.layers)
    set_trainable(model, TRAINED)  # type: ignore[arg-type]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=2e-5, betas=(0.9, 0.95), eps=1e-15, weight_decay=0.0, fused=not release
    )
    pack = training_pack(options.tokens, pixels=True, samples=options.samples)
    bridge = bridge_config(options)
    if bridge is not None:
        bridge = calibrate(model, pack, bridge, options.blocked / 100)
    rate = matmul_rate()
    before = memory("VmRSS")

    best = best_cpu = float("inf")
    for _ in range(options.repeats):
        layers = release_layers() if release else nullcontext()
        start, start_cpu = time.perf_counter(), time.process_time()
        with torch.no_grad():
            clean = model.encode_images(pack, sample=True)
        noise = torch.randn(clean.shape)
        with layers:
            result = losses.flow_matching(model, pack, clean, noise, bridge=bridge)
            loss = result.squared_error.mean() + losses.text_cross_entropy(result.output, pack)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        best = min(best, time.perf_counter() - start)
        best_cpu = min(best_cpu, time.process_time() - start_cpu)

    state = result.output.bridge
    blocked = None if state is None else state.blocked
    flops = step_flops(config, count_tokens(pack, options.layers, bridge, blocked))
    return {
        "tokens": len(pack),
        "parameters": sum(p.numel() for p in model.parameters()),
        "blocked": 0.0 if blocked is None else blocked[pack.reference_tokens].float().mean().item(),
        "loss": loss.item(),
        "seconds": best,
        "cpu_seconds": best_cpu,
        "peak": memory("VmHWM"),
        "growth": memory("VmHWM") - before,
        "flops": flops.total,
        "recomputed": flops.recomputed * options.checkpointing,
        "rate": rate,
    }


def described(case: dict[str, float], first: dict[str, float]) -> dict[str, str]:
    """The rows of one case's column; `first`: the case that ratios refer to."""
    ideal = case["flops"] / case["rate"]
    spent = (case["flops"] + case["recomputed"]) / case["rate"]
    return {
        "step / the release's, CPU time": f"{case['cpu_seconds'] / first['cpu_seconds']:.2f}",
        "peak memory / the release's": f"{case['peak'] / first['peak']:.2f}",
        "CPU time / time of its FLOPs at the matrix-product rate": f"{case['cpu_seconds'] / ideal:.2f}",
        "the same, recomputed FLOPs included": f"{case['cpu_seconds'] / spent:.2f}",
        "tokens": f"{case['tokens']:,}",
        "parameters": f"{case['parameters']:,}",
        "reference tokens blocked": f"{case['blocked']:.0%}",
        "loss": f"{case['loss']:.4f}",
        "step": f"{case['seconds']:.2f} s",
        "CPU time of a step": f"{case['cpu_seconds']:.2f} s",
        "tokens/s": f"{case['tokens'] / case['seconds']:,.0f}",
        "peak resident memory, whole process": f"{case['peak'] / 1e9:.2f} GB",
        "of that grown in the steps": f"{case['growth'] / 1e9:.2f} GB",
        "FLOPs a step": f"{case['flops'] / 1e9:,.0f} G",
        "recomputed by activation checkpointing": f"{case['recomputed'] / 1e9:,.0f} G",
        "matrix-product rate": f"{case['rate'] / 1e9:,.0f} G/s",
    }


def report(cases: dict[str, dict[str, float]]) -> str:
    """A Markdown table with a column each case."""
    first: dict[str, dict[str, float]] = {}
    columns = [described(case, first.setdefault(name.split(", ")[0], case)) for name, case in cases.items()]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    head = ["what", *cases]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def main() -> None:
    """Prints a Markdown table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384, help="length of the sample, two references (%(default)s)")
    parser.add_argument("--width", type=int, default=256, help="hidden size (%(default)s)")
    parser.add_argument("--layers", type=int, default=12, help="decoder layers (%(default)s)")
    parser.add_argument("--heads", type=int, default=8, help="query heads (%(default)s)")
    parser.add_argument("--kv-heads", type=int, default=8, help="key/value heads (%(default)s)")
    parser.add_argument("--samples", type=int, default=1, help="samples of the pack (%(default)s)")
    names = ["release", "ours"]
    parser.add_argument("--implementation", nargs="+", choices=names, default=names, help="one case each")
    parser.add_argument("--attention", choices=["split", "dense"], default="split", help="backend (%(default)s)")
    modes = ["off", "hard", "soft"]
    parser.add_argument("--bridge", nargs="+", choices=modes, default=modes, help="its mode; one case each")
    parser.add_argument("--blocked", type=int, default=50, help="%% of reference tokens below the bridge's threshold")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True, help="recompute layers")
    parser.add_argument("--repeats", type=int, default=2, help="steps, the best one counts (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--json", action="store_true", help="measure in this process and print JSON")
    options = parser.parse_args()
    if options.json:
        if len(options.bridge) > 1 or len(options.implementation) > 1:
            parser.error("--json measures in this process: name one --bridge and one --implementation")
        print(json.dumps(run(options)))
        return
    flags = [
        f"--{name.replace('_', '-')}={value}" for name, value in vars(options).items() if type(value) in (int, str)
    ]
    flags.append("--checkpointing" if options.checkpointing else "--no-checkpointing")
    cases = {
        f"bridge {mode}, {name}": in_own_process(
            [__file__, "--json", f"--bridge={mode}", f"--implementation={name}", *flags]
        )
        for mode in options.bridge
        for name in options.implementation
    }
    failed = [f"{name}: {case['error']}" for name, case in cases.items() if "error" in case]
    print("\n".join(failed) if failed else report(cases))


if __name__ == "__main__":
    main()
