"""Base weights of the mini-world: a checkpoint folder with random weights, in the role that BAGEL has at 7B."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Literal

from scone_pl.checkpoints.model import save_pretrained
from scone_pl.checkpoints.training_record import read_record
from scone_pl.data.tokenizer import byte_tokenizer, word_tokenizer
from scone_pl.errors import UserError
from scone_pl.model.config import PRESETS, SconeConfig
from scone_pl.model.initialize import random_model
from scone_pl.outputs import check_output_folder
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
    check_output_folder(folder)
    settings = {"stage": "random", "preset": preset, "canvas": canvas, "seed": seed, "steps": 0}
    if folder.exists():
        if read_record(folder) == settings:
            return False
        raise UserError(f"{folder}: holds other weights; choose another --output")
    tokenizer = byte_tokenizer() if preset == "mini_photo" else word_tokenizer(WORDS)
    config: SconeConfig = PRESETS[preset](vocab_size=tokenizer.vocab_size)
    if preset != "mini_photo":
        side = canvas // config.latent_stride
        config = dataclasses.replace(
            config, latent_positions_per_side=side, vit=dataclasses.replace(config.vit, positions_per_side=side)
        )
    with tempfile.TemporaryDirectory() as assets:
        tokenizer.save(assets)
        save_pretrained(random_model(config, seed), folder, assets_from=assets, training=settings)
    return True
