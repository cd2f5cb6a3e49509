"""The world's autoencoder: a narrow one of FLUX's kind, trained on images of the world alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor

from scone_pl.evaluation.scores import SCONEEVAL_TASKS
from scone_pl.files import read_bytes, write_bytes
from scone_pl.model.config import AutoencoderConfig, icons
from scone_pl.model.vae import FluxAutoencoder
from scone_pl.progress import track
from scone_pl.worlds.icons.world import IconsConfig, IconWorld

SHIPPED = Path(__file__).parent / "autoencoder.safetensors"
_NOISE = 0.3
"""Standard deviation of the noise on latents in training."""
_POSTERIOR = 0.05
"""Standard deviation of the posterior of the finished autoencoder."""
_STATISTICS = "statistics"
"""Tensor in the file: mean and standard deviation of the latents."""


def world_images(count: int, config: IconsConfig, seed: int = 0) -> Tensor:
    """(count, 3, H, W) float32 in [-1, 1]: references and targets of the streams for training."""
    worlds = [IconWorld(seed, config, stream) for stream in ("base", "multi")]

    def images() -> Iterator[np.ndarray]:
        number = 0
        while True:
            episode = worlds[number % 2].sample(SCONEEVAL_TASKS[number % len(SCONEEVAL_TASKS)], number)
            yield from (*episode.references, episode.target)
            number += 1

    stream = images()
    pixels = np.stack([next(stream) for _ in range(count)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def train(
    file: Path,
    *,
    steps: int,
    images: int = 6000,
    batch: int = 16,
    seed: int = 0,
    held_out: int = 256,
    progress: bool = True,
) -> float:
    """Trains from random weights and writes half-precision weights and statistics.

    Returns:
        The peak signal-to-noise ratio of `held_out` other images in dB.
    """
    torch.manual_seed(seed)
    model = FluxAutoencoder(icons().autoencoder)
    data = world_images(images + held_out, IconsConfig(canvas=32), seed)
    others, data = data[:held_out], data[held_out:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for step in track(range(steps), "autoencoder", steps, unit="steps", show=progress):
        picked = data[torch.randint(len(data), (batch,), generator=generator)]
        mean = model.encoder(picked).chunk(2, dim=1)[0]
        # Noise instead of a posterior's: latents near each other decode alike, so that what is sampled a little wrong
        # still looks like something. The penalty keeps their size near 1, or the noise would not matter.
        decoded = model.decoder(mean + _NOISE * torch.randn(mean.shape, generator=generator))
        loss = F.l1_loss(decoded, picked) + F.mse_loss(decoded, picked) + 3e-3 * mean.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 249 or step == steps - 1:
            quality = _write(model, others, file)
            print(f"step {step + 1}: loss {loss.item():.4f}, {quality:.2f} dB", flush=True)
    return quality


def _fix_posterior(model: FluxAutoencoder) -> None:
    """Gives the posterior, from which training draws latents, a standard deviation of `_POSTERIOR` everywhere.

    The loss above trains the mean alone: the log-variance would stay random, and its noise drown the latents.
    """
    head, channels = model.encoder.conv_out, model.config.latent_channels
    with torch.no_grad():
        head.weight[channels:] = 0
        assert head.bias is not None
        head.bias[channels:] = 2 * math.log(_POSTERIOR)


@torch.no_grad()
def _write(model: FluxAutoencoder, images: Tensor, file: Path) -> float:
    latents = model.encode(images)
    error = (model.decode(latents).clamp(-1, 1) - images).square().mean()
    _fix_posterior(model)
    weights = {name: value.half() for name, value in model.state_dict().items()}
    write_bytes(save({**weights, _STATISTICS: torch.stack([latents.mean(), latents.std()])}), file)
    return float(10 * torch.log10(4 / error))


def shipped() -> tuple[AutoencoderConfig, dict[str, Tensor]]:
    """Config, with the scale that gives latents mean 0 and standard deviation 1, and float32 weights."""
    weights = {name: value.float() for name, value in load(read_bytes(SHIPPED)).items()}
    mean, deviation = weights.pop(_STATISTICS).tolist()
    return replace(icons().autoencoder, shift_factor=mean, scale_factor=1 / deviation), weights
