"""How well every decoder layer tells the meant subject from its distractors (paper Fig. 11).

No mask is applied: one clean forward pass, the similarity with the instruction computed from each layer's output, in
both experts.

Shapes: L tokens, U understanding tokens, N latent tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

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
from scone_pl.model.experts import ByExpert
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import PackedSequence, SplitKind

_ANY = BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=1, apply_mask=False)
EXPERTS = ("understanding", "generation")


class ImageMap(NamedTuple):
    """Similarity of one reference image's tokens in one layer."""

    episode: int
    image: int
    grid: np.ndarray
    """(rows, columns) float32."""


@torch.no_grad()
def similarity_of_layers(model: Scone, pack: PackedSequence) -> list[ByExpert]:
    """Per decoder layer (L,) similarities with the instruction.

    Understanding: of ViT tokens, the bridge's own. Generation: mean cosine of the generation expert's states of VAE
    tokens with the understanding expert's states of the instruction. Other tokens' values mean nothing.
    """
    states: list[ByExpert] = []
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: states.append(output))
        for layer in model.language_model.model.layers
    ]
    try:
        model(pack, model.encode_images(pack), torch.zeros(len(pack.latent_splits)))
    finally:
        for hook in hooks:
            hook.remove()
    bridge, latent = Bridge(_ANY, pack), pack.latent_index
    found = []
    for state in states:
        own, words = (F.normalize(x.float(), dim=-1, eps=1e-8) for x in (state.generation, state.understanding))
        of_latents = (own * bridge.instruction_mean(words)[pack.sample_of_token[latent]]).sum(-1)
        generation = torch.ones(len(pack)).index_put((latent,), of_latents)
        found.append(ByExpert(bridge.similarity(state.understanding), generation))
    return found


def image_maps(pack: PackedSequence, similarity: ByExpert) -> dict[str, list[ImageMap]]:
    """Expert -> the maps of all reference images of a pack, from one layer's `similarity_of_layers`."""
    found: dict[str, list[ImageMap]] = {expert: [] for expert in EXPERTS}
    for expert, kind, values in zip(EXPERTS, (SplitKind.VIT, SplitKind.VAE), similarity, strict=True):
        for split in pack.splits_of(kind):
            grid = values[split.start + 1 : split.stop - 1].view(split.grid).numpy()  # type: ignore[arg-type]
            found[expert].append(ImageMap(split.sample, split.image or 0, grid))
    return found


def pack_of(model: Scone, tokenizer: Tokenizer, episodes: Sequence[Episode]) -> PackedSequence:
    """The episodes as one pack, in their order."""
    builder = SequenceBuilder(model.sequence_format(tokenizer.special))
    for episode in episodes:
        limits = ResizeLimits(max_size=episode.canvas, min_size=episode.canvas)
        packing = PackingConfig(vae_resize=limits, vit_resize=limits).without_dropout()
        add_sample(builder, episode.to_sample(), tokenizer, packing, generator("layers", episode.key))
    return builder.build()


def separation(folder: Path, episodes: Sequence[Episode]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Per expert, task and layer how the tokens of meant subjects compare with those of their distractors.

    Args:
        folder: checkpoint folder.
        episodes: of distinction tasks; others are left out.

    Returns:
        Expert -> task -> `auroc` (within a reference image, then averaged: 0.5 = chance), `gap` (mean similarity of
        meant minus distractor tokens), `effect` (gap over the standard deviation of both) and, without any label,
        `sensitivity` (see there), a list over layers each.
    """
    model, tokenizer = from_pretrained(folder), Tokenizer.from_folder(folder)
    asked = [e for e in episodes if any(len(group) > 1 for group in e.candidates)]
    pack, other = (pack_of(model, tokenizer, e) for e in (asked, with_instructions_changed(asked)))
    tasks = list(dict.fromkeys(e.task for e in asked))
    found: dict[str, Any] = {expert: {task: {} for task in tasks} for expert in EXPERTS}
    layers = zip(similarity_of_layers(model, pack), similarity_of_layers(model, other), strict=True)
    for similarity, changed in layers:
        of_experts, of_changed = image_maps(pack, similarity), image_maps(other, changed)
        for expert, task in ((expert, task) for expert in EXPERTS for task in tasks):
            both = zip(of_experts[expert], of_changed[expert], strict=True)
            maps = [pair for pair in both if asked[pair[0].episode].task == task]
            for measure, value in _measures(asked, [m for m, _ in maps]).items():
                found[expert][task].setdefault(measure, []).append(value)
            change = float(np.mean([sensitivity(m.grid, c.grid) for m, c in maps]))
            found[expert][task].setdefault("sensitivity", []).append(change)
    return found


def _measures(episodes: Sequence[Episode], maps: Sequence[ImageMap]) -> dict[str, float]:
    pairs = []
    for episode, image, grid in maps:
        group, canvas = episodes[episode].candidates[image], episodes[episode].canvas
        meant, others = (tokens_of([s for s in group if s.meant == m], canvas, grid.shape) for m in (True, False))
        pairs.append((grid[meant], grid[others]))
    gap = float(np.mean([m.mean() - o.mean() for m, o in pairs]))
    spread = float(np.concatenate([np.concatenate(pair) for pair in pairs]).std())
    area = float(np.mean([auroc(m, o) for m, o in pairs]))
    return {"auroc": area, "gap": gap, "effect": gap / max(spread, 1e-9)}


def with_instructions_changed(episodes: Sequence[Episode]) -> list[Episode]:
    """Each with the instruction of the next one of its task."""
    places: dict[str, list[int]] = {}
    for place, episode in enumerate(episodes):
        places.setdefault(episode.task, []).append(place)
    following = {a: b for row in places.values() for a, b in zip(row, row[1:] + row[:1], strict=True)}
    return [replace(e, instruction=episodes[following[i]].instruction) for i, e in enumerate(episodes)]


def sensitivity(one: np.ndarray, other: np.ndarray) -> float:
    """How far a map depends on the instruction, 0 to 2: 0 = only its mean changes, 1 = two maps without relation.

    `one` and `other` are the maps of one image under two instructions. Each is centred; their difference's mean square
    over the sum of their own: needs no label, as nobody says what the instructions mean.
    """
    a, b = one - one.mean(), other - other.mean()
    return float(((a - b) ** 2).mean() / max((a**2).mean() + (b**2).mean(), 1e-12))


def best_layer(found: dict[str, dict[str, Any]], last: int, measure: str = "auroc") -> int:
    """The layer up to `last` whose mean `measure` over tasks is highest: the automatic choice of the bridge's layer.

    `found` is one expert's part of `separation`; `measure` "sensitivity" needs no labels.
    """
    mean = np.mean([values[measure] for values in found.values()], axis=0)
    return int(mean[: last + 1].argmax())


def examples(folder: Path, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Similarity maps of the first reference of the first episode of each task.

    Returns:
        An object each: task, key and instruction of the episode, and per expert (layers, rows, columns) numbers.
    """
    model, tokenizer = from_pretrained(folder), Tokenizer.from_folder(folder)
    first = list({e.task: e for e in reversed(episodes)}.values())[::-1]
    pack = pack_of(model, tokenizer, first)
    rows = [{"task": e.task, "key": e.key, "instruction": e.instruction, **{x: [] for x in EXPERTS}} for e in first]
    for similarity in similarity_of_layers(model, pack):
        for expert, maps in image_maps(pack, similarity).items():
            for episode, image, grid in maps:
                if image == 0:
                    rows[episode][expert].append(np.round(grid, 4).tolist())
    return rows


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that one of `positive` exceeds one of `negative`, ties counted half; both one-dimensional."""
    above = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    return float(above)
