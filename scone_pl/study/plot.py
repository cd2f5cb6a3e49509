"""The figure of a study: every seed a dot, means as bars with their intervals; lines over layers."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scone_pl.analysis.drawing import draw_histograms as draw_panels
from scone_pl.analysis.drawing import draw_maps as draw_rows
from scone_pl.image_files import write_figure
from scone_pl.study import frontier
from scone_pl.study.result import Result, Row, layer_estimates

_COLOURS = ("#1e3a8a", "#c2410c", "#64748b")


def plot(result: Result, file: Path) -> None:
    """Writes the PNG of one study."""
    rows, layered = result.rows(result.of_kind("score")), result.of_kind("layers", "test")
    costs = bool(result.content.get("frontier"))
    panels = bool(rows) + bool(layered) + costs
    height = 0.42 * len(rows) + 1.2 + 3.2 * (bool(layered) + costs)
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
    if rows:
        _bars(axes[0], result, rows)
    if costs:
        frontier.draw(axes[1], result)
    if layered:
        _lines(axes[-1], result, layered[0])
    write_figure(figure, file, dpi=110)


def draw_maps(result: Result, evaluation: str, file: Path) -> None:
    """Writes the PNG of the similarity maps of an evaluation: the first seed of every arm."""
    evaluator, settings = result.evaluator(evaluation), result.evaluations[evaluation]
    rows = [
        row
        for name, arm in result.arms.items()
        for row in evaluator.maps(settings, arm["label"], result.reports(name, evaluation)[0])
    ]
    if rows:
        draw_rows(rows, file)


def draw_histograms(result: Result, evaluation: str, file: Path) -> None:
    """Writes the PNG of the histograms of s of an evaluation: the first seed of every arm."""
    reports = {arm["label"]: result.reports(name, evaluation)[0] for name, arm in result.arms.items()}
    if panels := {label: report["histograms"] for label, report in reports.items() if "histograms" in report}:
        draw_panels(panels, file)


def _bars(axes: Axes, result: Result, rows: list[Row]) -> None:
    for number, (_, arm, evaluation) in enumerate(rows):
        metrics = result.evaluator(evaluation).plotted
        for offset, (metric, colour) in enumerate(zip(metrics, _COLOURS, strict=False)):
            estimate = result.estimate(arm, evaluation, metric)
            y = number + 0.72 / len(metrics) * (offset - (len(metrics) - 1) / 2)
            if math.isnan(estimate.mean):  # composition alone has no DIS
                continue
            width = 0.0 if math.isnan(estimate.half_width) else estimate.half_width
            label = None if number else metric
            axes.barh(y, estimate.mean, 0.68 / len(metrics), xerr=width, color=colour, alpha=0.45, label=label)
            axes.plot(estimate.values, [y] * len(estimate.values), ".", color=colour, markersize=5)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 10)
    over = "seeds and episodes" if result.counts_episodes else "seeds"
    axes.set_xlabel(f"score (0 to 10), 95 % intervals over {over}, a dot a seed")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False)


def _lines(axes: Axes, result: Result, evaluation: str) -> None:
    inputs = False  # whether any arm shows what enters the decoder
    for number, (name, arm) in enumerate(result.arms.items()):
        layers = result.layers(name, evaluation)
        for style, expert in (("-", "understanding"), (":", "generation")):
            if expert not in layers[0]:
                continue
            tasks = list(layers[0][expert])
            measure = "auroc" if "auroc" in layers[0][expert][tasks[0]] else "sensitivity"  # without boxes
            means = [e.mean for e in layer_estimates(layers, expert, measure, tasks)]
            if before := expert == "understanding" and all("inputs" in one for one in layers):
                means[:0] = [e.mean for e in layer_estimates(layers, "inputs", measure, tasks)]
            inputs |= before
            label = f"{arm['label']}, {expert}"
            axes.plot(range(-before, len(means) - before), means, style, marker="o", color=f"C{number}", label=label)
    if measure == "auroc":
        axes.axhline(0.5, color="0.8", linewidth=1)
    axes.set_xlabel("decoder layer (-1: its inputs)" if inputs else "decoder layer")
    axes.set_ylabel("AUROC of s, mean of tasks" if measure == "auroc" else "sensitivity of s to the instruction")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
