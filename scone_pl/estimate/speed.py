"""FLOPs of a stage, and the time they take on a GPU at a given fraction of its peak."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from scone_pl.estimate.settings import Stage
from scone_pl.gpus import Gpu
from scone_pl.model.config import NetworkConfig
from scone_pl.model.flops import StepFlops, count_tokens, step_flops
from scone_pl.model.sequence import PackedSequence
from scone_pl.model.vae import build_autoencoder
from scone_pl.training.parts import EXPERTS


@dataclass(frozen=True)
class PackFlops:
    """FLOPs of one pack."""

    model: StepFlops
    """Matrix products of the network with nothing blocked; what the bridge hides makes it less."""
    encode: int
    """The autoencoder's convolutions, no part of the MFU; 0 if latents were computed before."""
    dense_share: float
    """Attended pairs over L^2."""


def pack_flops(config: NetworkConfig, stage: Stage, pack: PackedSequence) -> PackFlops:
    """Counts a pack of a stage."""
    counts = count_tokens(pack, config.decoder.num_layers)
    with torch.device("meta"):
        autoencoder = build_autoencoder(config.autoencoder)
        images = [torch.empty(image.shape) for image in pack.images]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for image in images[: 0 if stage.latents else 1]:  # all are of one size
            autoencoder.encode(image[None])
    encode = counter.get_total_flops() * len(images)
    # Adapters cost next to nothing, but the weights beside them need no gradient.
    trained = set(stage.trained) - set(EXPERTS if stage.lora else ())
    return PackFlops(step_flops(config, counts, trained), encode, counts.pairs[0] / len(pack) ** 2)


@dataclass(frozen=True)
class StageTime:
    """Time and money of a stage on some ranks."""

    step_seconds: float
    steps: float
    hours: float
    cost: float
    """USD."""


def stage_time(flops: PackFlops, stage: Stage, gpu: Gpu, ranks: int, mfu: float) -> StageTime:
    """Of as many tokens as the recipe's steps see on the recipe's ranks.

    Args:
        flops: of a pack.
        stage: its steps, its ranks.
        gpu: what runs it.
        ranks: how many of them.
        mfu: FLOPs of the model, recomputed ones not counted, over the peak: what TensorBoard shows as speed/mfu.
    """
    seconds = stage.accumulate * flops.model.total / (gpu.tflops * 1e12 * mfu)
    steps = max(stage.steps, 0) * stage.plan.ranks / ranks
    hours = steps * seconds / 3600
    return StageTime(seconds, steps, hours, hours * ranks * gpu.price)
