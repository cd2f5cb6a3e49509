"""How well the similarity of every decoder layer tells the meant subject from its distractors (paper Fig. 11).

No mask is applied: one clean forward pass, the bridge's similarity computed from each layer's output.

Shapes: L tokens, U understanding tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scone_pl.checkpoints import from_pretrained
from scone_pl.data.packing import PackingConfig, add_sample
from scone_pl.data.seeding import generator
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.data.transforms import ResizeLimits
from scone_pl.mini.episode import Episode
from scone_pl.mini.evaluate import tokens_of
from scone_pl.model.bridge import Bridge
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import BridgeConfig
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import PackedSequence, SplitKind

_ANY = BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=1, apply_mask=False)


@torch.no_grad()
def similarity_of_layers(model: Scone, pack: PackedSequence) -> list[Tensor]:
    """(L,) similarity from the output of each decoder layer."""
    states: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: states.append(output.understanding))
        for layer in model.language_model.model.layers
    ]
    try:
        model(pack, model.encode_images(pack), torch.zeros(len(pack.latent_splits)))
    finally:
        for hook in hooks:
            hook.remove()
    bridge = Bridge(_ANY, pack)
    return [bridge.similarity(state) for state in states]


def pack_of(model: Scone, tokenizer: Tokenizer, episodes: Sequence[Episode]) -> PackedSequence:
    """The episodes as one pack, in their order."""
    builder = SequenceBuilder(model.sequence_format(tokenizer.special))
    for episode in episodes:
        limits = ResizeLimits(max_size=episode.canvas, min_size=episode.canvas)
        packing = PackingConfig(vae_resize=limits, vit_resize=limits).without_dropout()
        add_sample(builder, episode.to_sample(), tokenizer, packing, generator("layers", episode.key))
    return builder.build()


def separation(folder: Path, episodes: Sequence[Episode]) -> dict[str, dict[str, list[float]]]:
    """Per task and layer how the ViT tokens of meant subjects compare with those of their distractors.

    Args:
        folder: checkpoint folder.
        episodes: of distinction tasks; others are left out.

    Returns:
        Task -> `auroc` (within a reference image, then averaged: 0.5 = chance), `gap` (mean similarity of meant minus
        distractor tokens) and `effect` (gap over the standard deviation of both), a list over layers each.
    """
    model, tokenizer = from_pretrained(folder), Tokenizer.from_folder(folder)
    asked = [e for e in episodes if any(len(group) > 1 for group in e.candidates)]
    pack = pack_of(model, tokenizer, asked)
    maps = similarity_of_layers(model, pack)
    tasks = list(dict.fromkeys(e.task for e in asked))
    found: dict[str, dict[str, list[float]]] = {t: {"auroc": [], "gap": [], "effect": []} for t in tasks}
    for similarity in maps:
        rows: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {t: [] for t in tasks}
        for episode, splits in zip(asked, pack.by_sample, strict=True):
            for split in (s for s in splits if s.kind == SplitKind.VIT):
                grid = similarity[split.start + 1 : split.stop - 1].view(split.grid).numpy()  # type: ignore[arg-type]
                group = episode.candidates[split.image or 0]
                meant = tokens_of([s for s in group if s.meant], episode.canvas, grid.shape)
                others = tokens_of([s for s in group if not s.meant], episode.canvas, grid.shape)
                rows[episode.task].append((grid[meant], grid[others]))
        for task, pairs in rows.items():
            gaps = [float(m.mean() - o.mean()) for m, o in pairs]
            spread = float(np.concatenate([np.concatenate(pair) for pair in pairs]).std())
            found[task]["auroc"].append(float(np.mean([auroc(m, o) for m, o in pairs])))
            found[task]["gap"].append(float(np.mean(gaps)))
            found[task]["effect"].append(float(np.mean(gaps)) / max(spread, 1e-9))
    return found


def best_layer(found: dict[str, dict[str, Any]], last: int) -> int:
    """The layer up to `last` whose mean AUROC over tasks is highest: the automatic choice of the bridge's layer."""
    mean = np.mean([values["auroc"] for values in found.values()], axis=0)
    return int(mean[: last + 1].argmax())


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that one of `positive` exceeds one of `negative`, ties counted half; both one-dimensional."""
    above = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    return float(above)
