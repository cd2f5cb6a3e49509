"""Random weights for the world's base, with its vocabulary and its trained autoencoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scone_pl.data.tokenizer import Tokenizer, word_tokenizer
from scone_pl.model.config import icons
from scone_pl.model.initialize import random_model
from scone_pl.model.network import Network
from scone_pl.worlds.base import write_random
from scone_pl.worlds.icons import autoencoder
from scone_pl.worlds.icons.atlas import read_atlas
from scone_pl.worlds.icons.language import vocabulary


def write_base(folder: Path, *, atlas: str = "", seed: int = 0) -> bool:
    """Writes a checkpoint folder; see `worlds.base.write_random`.

    Args:
        folder: where.
        atlas: folder of an atlas whose names the vocabulary has; empty = the shipped one. Others are spelled.
        seed: of the weights.
    """

    def build() -> tuple[Network, Tokenizer]:
        tokenizer = word_tokenizer(vocabulary(read_atlas(atlas).names), spelled=True)
        config, weights = autoencoder.shipped()
        model = random_model(replace(icons(tokenizer.vocab_size), autoencoder=config), seed)
        model.autoencoder.load_state_dict(weights)
        return model, tokenizer

    return write_random(folder, {"preset": "icons", "atlas": atlas, "seed": seed}, build)
