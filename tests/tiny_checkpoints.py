"""Small random checkpoint folders with the published autoencoder, for the tests of what is read from a folder."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch

from scone_pl.checkpoints.model import save_pretrained
from scone_pl.data.tokenizer import byte_tokenizer
from scone_pl.model.config import AutoencoderConfig, DecoderConfig, SconeConfig, ViTConfig
from scone_pl.model.initialize import random_model
from scone_pl.model.scone import Scone

TINY = SconeConfig(
    decoder=DecoderConfig(
        vocab_size=264, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2
    ),
    vit=ViTConfig(
        hidden_size=24, intermediate_size=40, num_layers=1, num_heads=2, patch_size=14, positions_per_side=10
    ),
    autoencoder=AutoencoderConfig(
        base_channels=32, channel_multipliers=(1, 1, 1, 1), num_res_blocks=1, latent_channels=4
    ),
    latent_positions_per_side=8,
)


def tiny_model(config: SconeConfig = TINY, seed: int = 0) -> Scone:
    """All parameters random, so that everything matters (a fresh model's velocity is 0)."""
    model = random_model(config, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1])
        parameter.data = parameter.data + 0.3 * noise if parameter.ndim == 1 else noise * 1.2
    return model.eval().requires_grad_(False)


def write_folder(folder: Path, config: SconeConfig = TINY, seed: int = 0) -> Path:
    """A checkpoint folder with a byte tokenizer."""
    save_pretrained(tiny_model(config, seed), folder)
    byte_tokenizer().save(folder)
    return folder


def with_sizes(vit_side: int, connector_side: int, **changes: Any) -> SconeConfig:
    """`TINY` with position tables of these sides."""
    vit = dataclasses.replace(TINY.vit, positions_per_side=vit_side)
    connector = None if connector_side == vit_side else connector_side
    return dataclasses.replace(TINY, vit=vit, connector_positions_per_side=connector, **changes)
