"""One training step of a 7B-shaped stack on one GPU at the real token budget, bridge off and on.

As many of the 28 layers as fit, every one of the published size, both experts training: FSDP2 on one rank as in the
recipes (float32 master weights, bfloat16 compute), FlexAttention, activation checkpointing, the FLUX autoencoder in
float32, norm clipping, AdamW. The vocabulary is cut short: without labels its rows cost memory and no time.

Reported: seconds of a step and of its phases (median), model FLOPs (attended pairs, recomputation apart) and the MFU
against the rate of a large bfloat16 matrix product measured just before, and peak memory beside what
`python -m scone_pl estimate` would predict.
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import itertools
import json
import statistics
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from scone_pl.data.packing import PackingConfig
from scone_pl.data.transforms import ResizeLimits
from scone_pl.estimate.activations import step_activations
from scone_pl.estimate.memory import PROCESS_BYTES, RankMemory, encode_bytes, rank_memory
from scone_pl.estimate.state import Network, Plan
from scone_pl.estimate.workload import typical_pack
from scone_pl.gpus import peak_of
from scone_pl.model.config import AutoencoderConfig, BridgeConfig, DecoderConfig, SconeConfig, ViTConfig, bagel_7b
from scone_pl.model.embeddings import PositionTable
from scone_pl.model.flops import count_tokens, step_flops
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import PackedSequence
from scone_pl.training.gradients import GradientGuard, local
from scone_pl.training.losses import flow_matching, text_cross_entropy
from scone_pl.training.monitoring import Mark, mark, resident_memory, seconds_between
from scone_pl.training.parts import Part, set_trainable
from scone_pl.training.sharding import ShardingConfig, freeze_dtype, shard

TRAINED: tuple[Part, ...] = ("understanding", "generation")
PHASES = ("encode", "forward", "backward", "optimizer")
VOCABULARY = 1024
SPARE = 0.92
"""Share of the free memory that is planned for."""


def sizes(tiny: bool, layers: int) -> tuple[SconeConfig, PackingConfig]:
    """The published sizes, or toy ones that take the same way."""
    if not tiny:
        full = bagel_7b()
        decoder = dataclasses.replace(full.decoder, num_layers=layers, vocab_size=VOCABULARY)
        return dataclasses.replace(full, decoder=decoder), PackingConfig()
    config = SconeConfig(
        decoder=DecoderConfig(
            vocab_size=64, hidden_size=64, intermediate_size=160, num_layers=layers, num_heads=4, num_kv_heads=2
        ),
        vit=ViTConfig(hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, positions_per_side=16),
        autoencoder=AutoencoderConfig(base_channels=32, channel_multipliers=(1, 2), num_res_blocks=1),
        latent_positions_per_side=16,
    )
    limits = ResizeLimits(max_size=64, min_size=32), ResizeLimits(max_size=112, min_size=56)
    return config, PackingConfig(token_budget=1500, vae_resize=limits[0], vit_resize=limits[1])


def predicted(config: SconeConfig, packing: PackingConfig, attention: str, compute: str) -> RankMemory:
    """What the estimator says."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[compute]
    activations = step_activations(config, typical_pack(config, packing), TRAINED, attention=attention, dtype=dtype)
    encode = encode_bytes(config, packing.vae_resize.max_size)
    return rank_memory(Network.of(config, TRAINED), Plan("sharded", compute=compute), activations, encode)


def most_layers(options: argparse.Namespace, free: int) -> int:
    """Layers that fit into `free` bytes."""

    def too_many(layers: int) -> bool:
        config, packing = sizes(options.tiny, layers)
        packing = dataclasses.replace(packing, token_budget=options.tokens or packing.token_budget)
        return predicted(config, packing, options.attention, options.compute).peak + PROCESS_BYTES > SPARE * free

    choices = range(3, 29)
    fitting = bisect.bisect(choices, False, key=too_many)
    if not fitting:
        raise SystemExit(f"{free / 2**30:.1f} GiB are too little for 3 layers at this budget; give fewer --tokens")
    return choices[fitting - 1]


def build(config: SconeConfig, options: argparse.Namespace) -> Scone:
    """A network with random weights, frozen, wrapped and laid out as training does it."""
    device = torch.device(options.device)
    with torch.device("meta"):
        model = Scone(config).train()
    model.attention = options.attention
    model.language_model.model.activation_checkpointing = True
    set_trainable(model, TRAINED)
    sharding = ShardingConfig(compute_dtype=options.compute)
    mesh = init_device_mesh(device.type, (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    freeze_dtype(model, sharding)
    shard(model, mesh, sharding)
    model.to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            held = local(parameter)
            held.fill_(1.0) if "norm" in name and name.endswith("weight") else held.normal_(std=0.02)
    for module in model.modules():
        if isinstance(module, PositionTable):
            module.reset_buffers()
    return model


def random_pack(config: SconeConfig, packing: PackingConfig, device: torch.device) -> PackedSequence:
    """A full pack of random pixels: zeros would let the chip run cooler and faster."""
    pack = typical_pack(config, packing)
    images = tuple(torch.rand(image.shape) * 2 - 1 for image in pack.images)
    return dataclasses.replace(pack, images=images, vit_patches=torch.rand_like(pack.vit_patches) * 2 - 1).to(device)


@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype, size: int, repeats: int = 10) -> float:
    """FLOPs a second of a square matrix product, the best of `repeats`."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    marks: list[Mark] = [mark(device)]
    for _ in range(repeats + 2):
        torch.mm(a, b)
        marks.append(mark(device))
    _wait(device)
    spans = [seconds_between(x, y) for x, y in itertools.pairwise(marks[2:])]
    return 2 * size**3 / min(spans)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    model: Scone, pack: PackedSequence, bridge: BridgeConfig | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Times `options.repeats` steps behind two that compile and warm up."""
    device = torch.device(options.device)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW((p for _, p in named), lr=2e-5, betas=(0.9, 0.95), eps=1e-15, weight_decay=0.0)
    guard = GradientGuard()
    steps: list[list[Mark]] = []
    blocked = None
    for step in range(2 + options.repeats):
        if device.type == "cuda" and step == 2:
            torch.cuda.reset_peak_memory_stats(device)
        marks = [mark(device)]
        with torch.no_grad():
            clean = model.encode_images(pack, sample=True).float()
        marks.append(mark(device))
        result = flow_matching(model, pack, clean, torch.randn_like(clean), bridge=bridge)
        loss = result.squared_error.mean() + text_cross_entropy(result.output, pack)
        blocked = None if result.output.bridge is None else result.output.bridge.blocked
        del result
        marks.append(mark(device))
        loss.backward()
        marks.append(mark(device))
        guard.apply(named, 1.0, step + 1, device)
        optimizer.step()
        optimizer.zero_grad()
        marks.append(mark(device))
        _wait(device)
        steps.append(marks)
    spans = [[seconds_between(x, y) for x, y in itertools.pairwise(s)] for s in steps[2:]]
    phases = {name: statistics.median(column) for name, column in zip(PHASES, zip(*spans, strict=True), strict=True)}
    flops = step_flops(model.config, count_tokens(pack, model.config.decoder.num_layers, bridge, blocked), TRAINED)
    cuda = device.type == "cuda"
    return {
        "loss": loss.item(),
        "blocked": 0.0 if blocked is None else blocked[pack.reference_tokens].float().mean().item(),
        "seconds": statistics.median(sum(span) for span in spans),
        "phases": phases,
        "flops": flops.total,
        "recomputed": flops.recomputed,
        "allocated": torch.cuda.max_memory_allocated(device) if cuda else resident_memory(),
        "reserved": torch.cuda.max_memory_reserved(device) if cuda else resident_memory(),
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures with the bridge off and on."""
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        rate = matmul_rate(device, torch.bfloat16 if cuda else torch.float32, 8192 if cuda else 512)
        free = torch.cuda.mem_get_info(device)[0] if cuda else 2**34
        layers = options.layers or (most_layers(options, free) if cuda else 4)
        config, packing = sizes(options.tiny, layers)
        packing = dataclasses.replace(packing, token_budget=options.tokens or packing.token_budget)
        model, pack = build(config, options), random_pack(config, packing, device)
        source, first, last = (max(i, layer * layers // 28) for i, layer in enumerate((8, 9, 15)))
        bridge = BridgeConfig(
            source_layer=source, first_masked_layer=max(first, source + 1), last_masked_layer=last, quantile=0.5
        )
        cases = {name: measure(model, pack, b, options) for name, b in (("off", None), ("on", bridge))}
        name = torch.cuda.get_device_name(device) if cuda else "CPU"
        return {
            "device": name,
            "layers": layers,
            "parameters": sum(p.numel() for p in model.parameters()),
            "tokens": len(pack),
            "rate": rate,
            "list_peak": peak_of(name),
            "predicted": predicted(config, packing, options.attention, options.compute).peak,
            "bridge": cases,
        }
    finally:
        dist.destroy_process_group()


def report(found: dict[str, Any]) -> str:
    """A Markdown table."""
    off, on = (found["bridge"][name] for name in ("off", "on"))
    rows = {
        "reference tokens blocked": lambda c: f"{c['blocked']:.0%}",
        "step": lambda c: f"{c['seconds']:.3f} s",
        **{name: (lambda c, n=name: f"{c['phases'][n]:.3f} s") for name in PHASES},
        "tokens/s": lambda c: f"{found['tokens'] / c['seconds']:,.0f}",
        "model FLOPs": lambda c: f"{c['flops'] / 1e12:,.4g} T",
        "recomputed": lambda c: f"{c['recomputed'] / 1e12:,.4g} T",
        "MFU of the measured rate": lambda c: f"{c['flops'] / c['seconds'] / found['rate']:.1%}",
        "the same, recomputed ones included": lambda c: (
            f"{(c['flops'] + c['recomputed']) / c['seconds'] / found['rate']:.1%}"
        ),
        "peak memory allocated": lambda c: f"{c['allocated'] / 1e9:.2f} GB",
        "peak memory reserved": lambda c: f"{c['reserved'] / 1e9:.2f} GB",
    }
    if found["list_peak"]:
        rows["MFU of the list value"] = lambda c: f"{c['flops'] / c['seconds'] / found['list_peak']:.1%}"
    return "\n".join(
        [
            f"{found['device']}: {found['layers']} layers, {found['parameters'] / 1e9:.3f} B parameters, "
            f"{found['tokens']:,} tokens; matrix products at {found['rate'] / 1e12:,.2f} TFLOP/s; "
            f"predicted peak {found['predicted'] / 1e9:.2f} GB",
            "",
            "| what | bridge off | bridge on |",
            "|---|---|---|",
            *(f"| {name} | {of(off)} | {of(on)} |" for name, of in rows.items()),
        ]
    )


def main() -> None:
    """Prints a Markdown table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ..., or cpu with --tiny (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that everything runs")
    parser.add_argument("--tokens", type=int, default=0, help="token budget (default: 26,496; tiny: 1,500)")
    parser.add_argument("--layers", type=int, default=0, help="decoder layers, at least 3 (default: as many as fit)")
    parser.add_argument("--repeats", type=int, default=5, help="steps that count (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --device cpu --tiny shows that everything runs")
    if options.device == "cpu" and not options.tiny:
        raise SystemExit("--device cpu needs --tiny: the real sizes would take hours there")
    if options.layers and options.layers < 3:
        raise SystemExit("--layers must be at least 3: the bridge needs a source and a masked layer")
    cuda = options.device.startswith("cuda")
    options.attention = "flex" if cuda else "split"
    options.compute = "bfloat16" if cuda else "float32"
    found = run(options)
    print(json.dumps(found) if options.json else report(found))


if __name__ == "__main__":
    main()
