"""The layers of a mini model, by episodes whose subjects are known (paper Fig. 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scone_pl.checkpoints import from_pretrained
from scone_pl.data.packing import PackingConfig
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.data.transforms import ResizeLimits
from scone_pl.layers.measures import measure, summary
from scone_pl.layers.similarity import EXPERTS, read_images
from scone_pl.mini.episode import Episode


def separation(folder: Path, episodes: Sequence[Episode]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Per expert, task and layer how the tokens of meant subjects compare with those of their distractors.

    Args:
        folder: checkpoint folder.
        episodes: of distinction tasks; others are left out.

    Returns:
        Expert -> task -> `layers.measures.summary`: measures, a list over layers each.
    """
    model, tokenizer = from_pretrained(folder), Tokenizer.from_folder(folder)
    asked = [e for e in episodes if any(len(group) > 1 for group in e.candidates)]
    samples, others = [e.to_sample() for e in asked], [e.instruction for e in with_instructions_changed(asked)]
    pairs = read_images(model, tokenizer, samples, _packing(asked), others)
    tasks = list(dict.fromkeys(e.task for e in asked))
    return {
        expert: {task: summary([r for r in readings if asked[r.sample].task == task]) for task in tasks}
        for expert, readings in measure(pairs, samples).items()
    }


def _packing(episodes: Sequence[Episode]) -> PackingConfig:
    """Pictures as they are; those of one set have one size."""
    (canvas,) = {episode.canvas for episode in episodes}
    limits = ResizeLimits(max_size=canvas, min_size=canvas)
    return PackingConfig(vae_resize=limits, vit_resize=limits)


def with_instructions_changed(episodes: Sequence[Episode]) -> list[Episode]:
    """Each with the instruction of the next one of its task."""
    places: dict[str, list[int]] = {}
    for place, episode in enumerate(episodes):
        places.setdefault(episode.task, []).append(place)
    following = {a: b for row in places.values() for a, b in zip(row, row[1:] + row[:1], strict=True)}
    return [replace(e, instruction=episodes[following[i]].instruction) for i, e in enumerate(episodes)]


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
    rows: list[dict[str, Any]] = [{"task": e.task, "key": e.key, "instruction": e.instruction} for e in first]
    for maps, _ in read_images(model, tokenizer, [e.to_sample() for e in first], _packing(first)):
        if maps.image == 0:
            rows[maps.sample] |= {expert: np.round(getattr(maps, expert), 4).tolist() for expert in EXPERTS}
    return rows
