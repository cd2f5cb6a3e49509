"""A picture of an experiment: every seed a dot, means as bars with their intervals; lines over layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scone_pl.image_files import write_figure
from scone_pl.study.metrics import estimate_of, layer_estimates, looks_of, rows_of

_COLOURS = ("#1e3a8a", "#c2410c", "#64748b")


def plot(result: Mapping[str, Any], file: Path) -> None:
    """Writes the PNG of one experiment, see `runner.collect`."""
    rows, layered = rows_of(result, looks_of(result, "score")), looks_of(result, "layers", "test")
    panels = bool(rows) + bool(layered)
    figure = Figure(figsize=(9, 0.42 * len(rows) + 1.2 + 3.2 * bool(layered)), layout="constrained")
    axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
    if rows:
        _bars(axes[0], rows)
    if layered:
        _lines(axes[-1], result, layered[0])
    write_figure(figure, file, dpi=110)


def _bars(axes: Axes, rows: list[tuple[str, Mapping[str, Any], str]]) -> None:
    for number, (_, arm, look) in enumerate(rows):
        for offset, (metric, colour) in enumerate(zip(("COM", "DIS"), _COLOURS, strict=False)):
            found, place = estimate_of(arm, look, metric), number + 0.36 * offset - 0.18
            if math.isnan(found.mean):  # composition alone has no DIS
                continue
            width = 0.0 if math.isnan(found.half_width) else found.half_width
            axes.barh(place, found.mean, 0.34, xerr=width, color=colour, alpha=0.45, label=None if number else metric)
            axes.plot(found.values, [place] * len(found.values), ".", color=colour, markersize=5)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 10)
    axes.set_xlabel("score (0 to 10), 95 % intervals over seeds, a dot a seed")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False)


def _lines(axes: Axes, result: Mapping[str, Any], look: str) -> None:
    for number, arm in enumerate(result["arms"].values()):
        found = [run["evaluations"][look]["layers"] for run in arm["runs"]]
        for style, expert in (("-", "understanding"), (":", "generation")):
            means = [e.mean for e in layer_estimates(found, expert, "auroc", list(found[0][expert]))]
            label = f"{arm['label']}, {expert}"
            axes.plot(range(len(means)), means, style, marker="o", color=f"C{number}", label=label)
    axes.axhline(0.5, color="0.8", linewidth=1)
    axes.set_xlabel("decoder layer")
    axes.set_ylabel("AUROC of s, mean of tasks")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
