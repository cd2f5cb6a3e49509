"""Base weights of the mini-world: a checkpoint folder with random weights, in the place that BAGEL has at 7B."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from scone_pl.checkpoints import save_pretrained
from scone_pl.data.tokenizer import byte_tokenizer, word_tokenizer
from scone_pl.mini.world import WORDS
from scone_pl.model.config import PRESETS, SconeConfig
from scone_pl.model.initialize import random_model


def write_base(
    folder: Path, *, preset: Literal["mini", "mini_photo"] = "mini", canvas: int = 16, seed: int = 0
) -> None:
    """Writes weights, configs and tokenizer (words of the mini-world, or bytes for photographs)."""
    tokenizer = word_tokenizer(WORDS) if preset == "mini" else byte_tokenizer()
    config: SconeConfig = PRESETS[preset](vocab_size=tokenizer.vocab_size)  # type: ignore[operator]
    if preset == "mini":
        side = canvas // config.latent_stride
        config = dataclasses.replace(
            config, latent_positions_per_side=side, vit=dataclasses.replace(config.vit, positions_per_side=side)
        )
    save_pretrained(
        random_model(config, seed), folder, training={"stage": "random", "seed": seed, "preset": preset, "steps": 0}
    )
    tokenizer.save(folder)
