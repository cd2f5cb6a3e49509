"""The layers of a mini model, by episodes whose subjects are known (paper Fig. 11)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scone_pl.analysis.measures import exchanged, measure, summary
from scone_pl.analysis.report import choice_report
from scone_pl.analysis.similarity import READ, read_images
from scone_pl.checkpoints.model import from_pretrained
from scone_pl.data.packing import PackingConfig
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.model.network import Network
from scone_pl.worlds.episode import Episode
from scone_pl.worlds.evaluate import packing_of


def layers_report(folder: Path, episodes: Sequence[Episode]) -> dict[str, Any]:
    """How the tokens of target subjects compare with those of their distractors in every layer.

    Args:
        folder: checkpoint folder.
        episodes: of distinction tasks; others are left out.

    Returns:
        `layers`: expert, or `inputs`, -> task -> `measures.summary`: measures, a list over layers each; and over all
        tasks `report.choice_report` of the understanding expert.

    Raises:
        UserError: no episode has distractors, or a task has a single instruction.
    """
    asked = [e for e in episodes if any(len(group) > 1 for group in e.candidates)]
    if not asked:
        present = ", ".join(dict.fromkeys(e.task for e in episodes)) or "none"
        raise UserError(
            f"tasks: an evaluation of layers needs a distinction task and at least one episode of it, not {present}"
        )
    samples, others = [e.to_sample() for e in asked], instructions_exchanged(asked)
    model, tokenizer = from_pretrained(folder), Tokenizer.from_folder(folder)
    pairs = read_images(model, tokenizer, samples, _packing(model, tokenizer, asked), others)
    tasks = list(dict.fromkeys(e.task for e in asked))
    measured = measure(pairs, samples)
    layers = {
        expert: {task: summary([r for r in readings if asked[r.sample].task == task]) for task in tasks}
        for expert, readings in measured.items()
        if readings
    }
    return {"layers": layers, **choice_report(measured["understanding"])}


def _packing(model: Network, tokenizer: Tokenizer, episodes: Sequence[Episode]) -> PackingConfig:
    """Images as they are; those of one set have one size."""
    (canvas,) = {episode.canvas for episode in episodes}
    return packing_of(canvas, model.config.sequence_format(tokenizer.special))


def instructions_exchanged(episodes: Sequence[Episode]) -> list[str]:
    """For each the next instruction of its task that differs.

    Raises:
        UserError: there is none.
    """
    indices: dict[str, list[int]] = {}
    for index, episode in enumerate(episodes):
        indices.setdefault(episode.task, []).append(index)
    result: dict[int, str] = {}
    for task, row in indices.items():
        others = exchanged([episodes[index].instruction for index in row])
        if others is None:
            raise UserError(
                f"{task}: an evaluation of layers exchanges instructions, but all are the same; raise per_task"
            )
        result |= zip(row, others, strict=True)
    return [result[index] for index in range(len(episodes))]


def examples(folder: Path, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Similarity maps of the first reference of the first episode of each task.

    Returns:
        An object each: task, key and instruction of the episode, and per expert, and of the `inputs`, (layers, rows,
        columns) numbers.
    """
    model, tokenizer = from_pretrained(folder), Tokenizer.from_folder(folder)
    first = list({e.task: e for e in reversed(episodes)}.values())[::-1]
    packing = _packing(model, tokenizer, first)
    rows: list[dict[str, Any]] = [{"task": e.task, "key": e.key, "instruction": e.instruction} for e in first]
    for maps, _ in read_images(model, tokenizer, [e.to_sample() for e in first], packing):
        if maps.image == 0:
            rows[maps.sample] |= {e: np.round(own, 4).tolist() for e in READ if (own := getattr(maps, e)) is not None}
    return rows
