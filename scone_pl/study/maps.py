"""Similarity maps of an experiment's models, on episodes of the mini-world."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scone_pl.analysis.drawing import MapRow
from scone_pl.analysis.drawing import draw_maps as draw_rows
from scone_pl.analysis.similarity import EXPERTS
from scone_pl.worlds.shapes.world import World, WorldConfig


def draw_maps(result: Mapping[str, Any], look: str, file: Path) -> None:
    """Writes the PNG of evaluation `look` of an experiment, see `runner.collect`: the first seed of every arm."""
    config = WorldConfig(**result["evaluations"][look]["world"])
    rows = [
        _row(arm["label"], example, config)
        for arm in result["arms"].values()
        for example in arm["runs"][0]["evaluations"][look]["examples"]
        if "single" in example["task"]
    ]
    draw_rows(rows, file)


def _row(label: str, example: Mapping[str, Any], config: WorldConfig) -> MapRow:
    stream, seed, task, index = example["key"].split("-")
    episode = World(int(seed), config, stream=stream).sample(task, int(index))
    return MapRow(
        label=f"{label}\n{example['instruction']}",
        picture=episode.references[0],
        maps={expert: np.array(example[expert]) for expert in EXPERTS},
        meant=[np.array(s.box) / episode.canvas for s in episode.candidates[0] if s.meant],
    )
