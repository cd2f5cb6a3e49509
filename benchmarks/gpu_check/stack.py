"""A stack of decoder layers of the 7B shape with everything around it, laid out as in training, and its full pack.

As many of the 28 layers as fit, both experts training: FSDP2 on one rank as in the recipes (float32 master weights,
bfloat16 compute), activation checkpointing, the FLUX autoencoder in float32. The vocabulary is cut short: without
labels its rows cost memory and no time.
"""

from __future__ import annotations

import bisect
import dataclasses
import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.gpu_check.settings import Settings
from scone_pl.data.packing import PackingConfig
from scone_pl.data.transforms import ResizeLimits
from scone_pl.estimate.activations import StepActivations, step_activations
from scone_pl.estimate.memory import PROCESS_BYTES, RankMemory, encode_bytes, rank_memory
from scone_pl.estimate.state import Network, Plan
from scone_pl.estimate.workload import typical_pack
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import AutoencoderConfig, BridgeConfig, DecoderConfig, SconeConfig, ViTConfig, bagel_7b
from scone_pl.model.embeddings import PositionTable
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import PackedSequence, SpecialTokens
from scone_pl.training.gradients import local_shard
from scone_pl.training.parts import Part, set_trainable
from scone_pl.training.sharding import ShardingConfig, freeze_dtype, shard

TRAINED: tuple[Part, ...] = ("understanding", "generation")
VOCABULARY = 1024
FULL_DEPTH = 28
FEWEST_LAYERS = 3
"""The bridge needs a source and a masked layer."""
SPARE = 0.92
"""Fraction of the free memory that is planned for."""


def config_of(settings: Settings, layers: int) -> SconeConfig:
    """The published sizes at fewer layers, or toy ones that take the same paths."""
    if not settings.quick:
        full = bagel_7b()
        decoder = dataclasses.replace(full.decoder, num_layers=layers, vocab_size=VOCABULARY)
        return dataclasses.replace(full, decoder=decoder)
    return SconeConfig(
        decoder=DecoderConfig(
            vocab_size=64, hidden_size=64, intermediate_size=160, num_layers=layers, num_heads=4, num_kv_heads=2
        ),
        vit=ViTConfig(hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, positions_per_side=16),
        autoencoder=AutoencoderConfig(base_channels=32, channel_multipliers=(1, 2), num_res_blocks=1),
        latent_positions_per_side=16,
    )


def packing_of(settings: Settings) -> PackingConfig:
    """The recipes' packing (26,496 tokens), or a small one."""
    if not settings.quick:
        return PackingConfig()
    limits = ResizeLimits(max_size=64, min_size=32), ResizeLimits(max_size=112, min_size=56)
    return PackingConfig(token_budget=700, vae_resize=limits[0], vit_resize=limits[1])


class Prediction:
    """What the estimator says of a stack of any number of layers: activations are linear in it."""

    def __init__(self, settings: Settings, *, attention: str) -> None:
        self.settings = settings
        self.packing = packing_of(settings)
        self._few, self._many = (
            step_activations(
                config_of(settings, layers),
                typical_pack(config_of(settings, layers), self.packing),
                TRAINED,
                attention=attention,
                recompute_attention=False,
                dtype=settings.compute_dtype,
            )
            for layers in (FEWEST_LAYERS, FULL_DEPTH)
        )
        self._encode = encode_bytes(config_of(settings, FEWEST_LAYERS), self.packing.vae_resize.max_size)

    def activations(self, layers: int) -> StepActivations:
        """Of a stack of `layers` layers."""
        return self._few.interpolate(self._many, (layers - FEWEST_LAYERS) / (FULL_DEPTH - FEWEST_LAYERS))

    def memory(self, layers: int) -> RankMemory:
        """Of the one rank that holds all."""
        compute = "bfloat16" if self.settings.cuda else "float32"
        network = Network.of(config_of(self.settings, layers), TRAINED)
        return rank_memory(network, Plan("sharded", compute=compute), self.activations(layers), self._encode)

    def most_layers(self, free: int) -> int:
        """Layers that fit into `free` bytes.

        Raises:
            RuntimeError: fewer than `FEWEST_LAYERS`.
        """
        choices = range(FEWEST_LAYERS, FULL_DEPTH + 1)
        fitting = bisect.bisect(choices, False, key=lambda n: self.memory(n).peak + PROCESS_BYTES > SPARE * free)
        if not fitting:
            raise RuntimeError(f"{free / 2**30:.1f} GiB are too little for {FEWEST_LAYERS} layers")
        return choices[fitting - 1]


@contextmanager
def one_rank(settings: Settings) -> Iterator[None]:
    """A process group of this process alone: NCCL on CUDA, else gloo."""
    dist.init_process_group(
        "nccl" if settings.cuda else "gloo",
        store=dist.HashStore(),
        rank=0,
        world_size=1,
        device_id=settings.device if settings.cuda else None,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def build_trained(config: SconeConfig, settings: Settings, attention: str) -> Scone:
    """A network with random weights, frozen, sharded and laid out as training does it; inside `one_rank`."""
    with torch.device("meta"):
        model = Scone(config).train()
    model.attention = attention
    model.language_model.model.activation_checkpointing = True
    set_trainable(model, TRAINED)
    sharding = ShardingConfig(compute_dtype="bfloat16" if settings.cuda else "float32")
    mesh = init_device_mesh(settings.device.type, (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    freeze_dtype(model, sharding)
    shard(model, mesh, sharding)
    return fill(model, settings)


def build_sampled(config: SconeConfig, settings: Settings) -> Scone:
    """A network with random weights as `generate` loads it: whole, in bfloat16 on CUDA."""
    with torch.device("meta"):
        model = Scone(config).eval().requires_grad_(False)
    return fill(model.to(settings.compute_dtype), settings)


@torch.no_grad()
def fill(model: Scone, settings: Settings) -> Scone:
    """Gives a network on the meta device memory and random weights."""
    model.to_empty(device=settings.device)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        held = local_shard(parameter)
        held.fill_(1.0) if "norm" in name and name.endswith("weight") else held.normal_(std=0.02)
    for module in model.modules():
        if isinstance(module, PositionTable):
            module.reset_buffers()
    return model


def varied_packs(config: SconeConfig, settings: Settings, count: int) -> list[PackedSequence]:
    """Packs as training meets them: as many samples as fit, images of many sizes, instructions of many lengths.

    No two have equal layouts. A benchmark that repeats one pack hides what a kernel costs at each new shape.
    """
    packing, draw = packing_of(settings), random.Random(0)
    sequence_format = config.sequence_format(SpecialTokens(0, 1, 2, 3))
    resizes = packing.resizes(sequence_format)
    strides = config.latent_stride, config.vit.patch_size

    def image(kind: int, shape: tuple[float, float]) -> torch.Tensor:
        sides = (max(1, round(side * resizes[kind].max_size / strides[kind])) for side in shape)
        rows, columns = (side * strides[kind] for side in sides)
        return torch.zeros(1).expand(3, rows, columns)

    packs = []
    for _ in range(count):
        builder = SequenceBuilder(sequence_format)
        while builder.length < packing.token_budget:
            shapes = [(draw.uniform(0.6, 1.0), draw.uniform(0.6, 1.0)) for _ in range(draw.randint(1, 2) + 1)]
            words = draw.randint(20, 120)
            images = [(image(0, shape), image(1, shape)) for shape in shapes]
            tokens = sum(_tokens(vae, strides[0]) + _tokens(vit, strides[1]) for vae, vit in images)
            needed = tokens - _tokens(images[-1][1], strides[1]) + words + 4 * len(shapes)
            if packing.token_budget - builder.length < needed:
                break
            builder.begin_sample()
            for number, (vae, vit) in enumerate(images[:-1]):
                builder.add_vae(vae, reference=number)
                builder.add_vit(vit, reference=number)
            builder.add_text([4] * words)
            builder.add_targets(images[-1][0], [0.0])
        packs.append(_with_pixels(builder.build(), settings))
    return packs


def _tokens(image: torch.Tensor, stride: int) -> int:
    return image.shape[1] * image.shape[2] // stride**2


def full_pack(config: SconeConfig, settings: Settings) -> PackedSequence:
    """A full pack of square images."""
    return _with_pixels(typical_pack(config, packing_of(settings)), settings)


def _with_pixels(pack: PackedSequence, settings: Settings) -> PackedSequence:
    """Random ones: zeros would let the chip run cooler and faster."""
    generator = torch.Generator().manual_seed(0)
    images = tuple(torch.rand(image.shape, generator=generator) * 2 - 1 for image in pack.images)
    patches = torch.rand(pack.vit_patches.shape, generator=generator) * 2 - 1
    return dataclasses.replace(pack, images=images, vit_patches=patches).to(settings.device)


def bridge_of(kind: str, layers: int) -> BridgeConfig | None:
    """Off, hard or soft, in the paper's layers (8; 9 to 15 of 28) at this depth, half of each reference blocked."""
    if kind == "off":
        return None
    source, first, last = (layer * layers // FULL_DEPTH for layer in (8, 9, 15))
    first = max(first, source + 1)
    return BridgeConfig(
        source_layer=source, first_masked_layer=first, last_masked_layer=max(first, last), quantile=0.5, mode=kind
    )  # type: ignore[arg-type]
