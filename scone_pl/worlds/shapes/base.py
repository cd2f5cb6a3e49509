"""Base weights of the mini-world: a checkpoint folder with random weights, in the role that BAGEL has at 7B."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from scone_pl.data.tokenizer import Tokenizer, byte_tokenizer
from scone_pl.errors import UserError
from scone_pl.model.bases import BASES, PRESETS
from scone_pl.model.initialize import random_model
from scone_pl.model.network import Network
from scone_pl.worlds.base import write_random
from scone_pl.worlds.shapes.world import WORDS

CANVAS = 16
"""Side of the mini-world's images in pixels, unless another is asked for."""


def write_base(folder: Path, *, preset: str = "mini", canvas: int = CANVAS, seed: int = 0) -> bool:
    """Writes weights, configs and tokenizer (words of the mini-world, or bytes for photographs).

    Returns:
        False if the folder already holds the same: runs that started from it would not recognise a new one.

    Raises:
        UserError: the folder holds something else, or there is no such preset.
    """
    if preset not in (known := [name for name in PRESETS if name.startswith("mini")]):
        raise UserError(f"--preset {preset:.80}: one of {', '.join(known)}")

    base = next(base for base in BASES.values() if preset in base.presets)
    if preset != "mini_photo":
        default = base.presets[preset]()
        if canvas % default.latent_stride:
            raise UserError(f"--canvas {canvas}: must be a multiple of {default.latent_stride} for preset {preset}")
        if canvas != CANVAS and default.with_canvas(canvas) == default:
            raise UserError(f"--canvas: preset {preset} takes images of any size; leave it out")

    def build() -> tuple[Network, Tokenizer]:
        photo = preset == "mini_photo"
        tokenizer: Tokenizer = byte_tokenizer() if photo else import_module(base.tokenizer).word_tokenizer(WORDS)
        config = base.presets[preset](vocab_size=tokenizer.vocab_size)
        return random_model(config if photo else config.with_canvas(canvas), seed), tokenizer

    return write_random(folder, {"preset": preset, "canvas": canvas, "seed": seed}, build)
