"""A picture of similarity maps (the form of the paper's Fig. 11): experts side by side, layers in four groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scone_pl.mini.layers import EXPERTS
from scone_pl.mini.world import World

GROUPS = 4


def draw_maps(result: Mapping[str, Any], look: str, file: Path) -> None:
    """Writes the PNG of evaluation `look` of an experiment, see `runner.collect`: the first seed of every arm.

    A map is one reference image's similarity with the instruction, averaged over a group of layers, its own lowest
    value dark and its highest bright. A red frame surrounds the meant subject.
    """
    rows = [
        (arm["label"], example)
        for arm in result["arms"].values()
        for example in arm["runs"][0]["evaluations"][look]["examples"]
        if "single" in example["task"]
    ]
    columns = 1 + GROUPS * len(EXPERTS)
    figure = Figure(figsize=(1.05 * columns + 2.2, 1.12 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for number, (label, example) in enumerate(rows):
        _row(axes[number], label, example, first=number == 0)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def _row(line: np.ndarray, label: str, example: Mapping[str, Any], *, first: bool) -> None:
    stream, seed, task, index = example["key"].split("-")
    episode = World(int(seed), stream=stream).sample(task, int(index))
    for axis in line:
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    line[0].imshow(episode.references[0])
    line[0].set_ylabel(
        f"{label}\n{example['instruction']}", rotation=0, ha="right", va="center", fontsize=7, multialignment="right"
    )
    if first:
        line[0].set_title("reference", fontsize=8)
    places = iter(line[1:])
    for expert in EXPERTS:
        layers = np.array(example[expert])  # (layers, rows, columns)
        for group in np.array_split(np.arange(len(layers)), GROUPS):
            axis: Axes = next(places)
            axis.imshow(layers[group].mean(0), cmap="viridis", extent=(0, episode.canvas, episode.canvas, 0))
            for subject in (s for s in episode.candidates[0] if s.meant):
                left, top, right, bottom = subject.box
                axis.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="#ef4444")
            if first:
                span = f"{group[0]}" if len(group) == 1 else f"{group[0]}-{group[-1]}"
                axis.set_title(f"{expert}\nlayer {span}", fontsize=8)
