"""Base weights of the mini-world: a checkpoint folder with random weights, in the role that BAGEL has at 7B."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from scone_pl.data.tokenizer import Tokenizer, byte_tokenizer, word_tokenizer
from scone_pl.model.config import PRESETS, SconeConfig
from scone_pl.model.initialize import random_model
from scone_pl.model.scone import Scone
from scone_pl.worlds.base import write_random
from scone_pl.worlds.shapes.world import WORDS


def write_base(
    folder: Path, *, preset: Literal["mini", "mini_dense", "mini_photo"] = "mini", canvas: int = 16, seed: int = 0
) -> bool:
    """Writes weights, configs and tokenizer (words of the mini-world, or bytes for photographs).

    Returns:
        False if the folder already holds the same: runs that started from it would not recognise a new one.

    Raises:
        UserError: the folder holds something else.
    """

    def build() -> tuple[Scone, Tokenizer]:
        tokenizer = byte_tokenizer() if preset == "mini_photo" else word_tokenizer(WORDS)
        config: SconeConfig = PRESETS[preset](vocab_size=tokenizer.vocab_size)
        if preset != "mini_photo":
            side = canvas // config.latent_stride
            config = dataclasses.replace(
                config, latent_positions_per_side=side, vit=dataclasses.replace(config.vit, positions_per_side=side)
            )
        return random_model(config, seed), tokenizer

    return write_random(folder, {"preset": preset, "canvas": canvas, "seed": seed}, build)
