"""Figures of similarities: maps (the form of the paper's Fig. 11), experts side by side, layers in four groups; and
histograms of target, distractor and background tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scone_pl.image_files import write_figure

GROUPS = 4
MAXIMUM_BINS = 40
"""Of a drawn histogram; neighbours are merged beyond."""
_TOKENS = {"target": "target subjects", "others": "distractors", "background": "background"}
_COLOURS = ("#c2410c", "#1e3a8a", "#64748b")


class MapRow(NamedTuple):
    """One reference image."""

    label: str
    image: np.ndarray
    """(H, W, 3) uint8."""
    maps: Mapping[str, np.ndarray]
    """Expert, or `inputs` of one layer, -> (layers, rows, columns) similarities."""
    targets: Sequence[Sequence[float]]
    """Left, top, right, bottom of the boxes of target subjects, as fractions of the image's sides."""


def draw_maps(rows: Sequence[MapRow], file: Path) -> None:
    """Writes the PNG, a row an image.

    A map is one reference image's similarity with the instruction, averaged over a group of layers, its own lowest
    value dark and its highest bright. A red frame surrounds each target subject.
    """
    layers = {expert: np.arange(len(maps)) for expert, maps in rows[0].maps.items()}
    groups = {expert: np.array_split(own, min(GROUPS, len(own))) for expert, own in layers.items()}
    columns = 1 + sum(map(len, groups.values()))
    figure = Figure(figsize=(1.05 * columns + 2.2, 1.12 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        _draw(line, row, groups)
    heads = [
        f"{expert}\nlayer {_span(group)}" if len(layers[expert]) > 1 else expert
        for expert, own in groups.items()
        for group in own
    ]
    for axis, head in zip(axes[0], ["reference", *heads], strict=True):
        axis.set_title(head, fontsize=8)
    write_figure(figure, file, dpi=100)


def _span(group: np.ndarray) -> str:
    return f"{group[0]}" if len(group) == 1 else f"{group[0]}-{group[-1]}"


def _draw(line: Sequence[Axes], row: MapRow, groups: Mapping[str, Sequence[np.ndarray]]) -> None:
    for axis in line:
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    line[0].imshow(row.image)
    line[0].set_ylabel(row.label, rotation=0, ha="right", va="center", fontsize=7, multialignment="right")
    height, width = row.image.shape[:2]
    maps = [layers[group].mean(0) for expert, layers in row.maps.items() for group in groups[expert]]
    for axis, values in zip(line[1:], maps, strict=True):
        axis.imshow(values, cmap="viridis", extent=(0, width, height, 0))
        for left, top, right, bottom in row.targets:
            x, y = np.array([left, right, right, left, left]), np.array([top, top, bottom, bottom, top])
            axis.plot(x * width, y * height, color="#ef4444")


def draw_histograms(histograms: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Writes the PNG, a panel for each of `histograms`: label -> `measures.histograms`."""
    figure = Figure(figsize=(8, 1.9 * len(histograms) + 0.6), layout="constrained")
    panels = figure.subplots(len(histograms), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (label, histogram) in zip(panels, histograms.items(), strict=True):
        edges = np.array(histogram["edges"])
        starts = np.arange(0, len(edges) - 1, -(-(len(edges) - 1) // MAXIMUM_BINS))
        for (name, words), colour in zip(_TOKENS.items(), _COLOURS, strict=True):
            counts = np.add.reduceat(np.array(histogram[name]), starts)
            percent = 100 * counts / max(counts.sum(), 1)
            axes.stairs(percent, np.append(edges[starts], edges[-1]), fill=True, color=colour, alpha=0.25)
            axes.stairs(percent, np.append(edges[starts], edges[-1]), color=colour, label=words)
        axes.set_title(f"{label}, layer {histogram['layer']}".removeprefix(", "), fontsize=9)
        axes.set_ylabel("% of tokens")
    panels[0].legend(fontsize=8, frameon=False)
    panels[-1].set_xlabel("s")
    write_figure(figure, file, dpi=110)
