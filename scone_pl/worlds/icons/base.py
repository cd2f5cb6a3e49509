"""Weights for the world's base to start from: random, with its vocabulary and its trained autoencoder; on request ViT,
connector and words' embeddings are pretrained with texts.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, cast

from scone_pl.data.tokenizer import Tokenizer, word_tokenizer
from scone_pl.model.config import PRESETS
from scone_pl.model.initialize import random_model
from scone_pl.model.network import Network
from scone_pl.model.scone import Scone
from scone_pl.worlds.base import write_random
from scone_pl.worlds.icons import autoencoder
from scone_pl.worlds.icons.atlas import read_atlas
from scone_pl.worlds.icons.contrastive import pretrain
from scone_pl.worlds.icons.language import vocabulary
from scone_pl.worlds.icons.world import IconsConfig


def write_base(
    folder: Path,
    *,
    preset: Literal["icons", "icons_large"] = "icons",
    config: IconsConfig | None = None,
    contrastive_steps: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> bool:
    """Writes a checkpoint folder; see `worlds.base.write_random`.

    Args:
        folder: where.
        preset: sizes of the model.
        config: of the world; the vocabulary has the names of its atlas, others are spelled.
        contrastive_steps: see `contrastive.pretrain`; 0 = none.
        seed: of the weights, and of the pretraining's images.
        progress: whether to show progress bars.
    """
    config = config or IconsConfig()

    def build() -> tuple[Network, Tokenizer]:
        tokenizer = word_tokenizer(vocabulary(read_atlas(config.atlas).names), spelled=True)
        coder, weights = autoencoder.shipped()
        model = cast(Scone, random_model(replace(PRESETS[preset](tokenizer.vocab_size), autoencoder=coder), seed))
        model.autoencoder.load_state_dict(weights)
        if contrastive_steps:
            auroc = pretrain(model, tokenizer, config, steps=contrastive_steps, seed=seed, progress=progress)
            print(f"names in held-out images: AUROC {auroc:.3f}")
        return model, tokenizer

    settings: dict[str, Any] = {"preset": preset, "atlas": config.atlas, "seed": seed}
    if contrastive_steps:
        settings |= {"contrastive_steps": contrastive_steps, "world": asdict(config)}
    return write_random(folder, settings, build)
