"""Plots as PNG and PDF: radar over tasks, bars of averages, scatter over groups (paper, Fig. 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes

from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.published import published
from scone_pl.evaluation.summary import Summary
from scone_pl.files import writing

_OUR_COLOURS = ("#c2410c", "#7e22ce", "#15803d", "#be123c")
_PAPER_COLOURS = ("#94a3b8", "#64748b", "#0ea5e9", "#1e3a8a")
_MIN_RADAR_FLOOR = 2.0
MANY = 12
"""With more tasks than this, a radar plot has short labels."""


def write_plots(summaries: Sequence[Summary], folder: Path) -> list[Path]:
    """Writes the plots of one or more models; returns the PNG files."""
    figures = {"radar": radar(summaries), "bars": bars(summaries)}
    if any(summary.combined["n_groups"] > 1 for summary in summaries):
        figures["stability"] = stability(summaries)
    written = []
    for name, figure in figures.items():
        for suffix in ("pdf", "png"):
            with writing(folder / f"{name}.{suffix}") as stream:
                figure.savefig(stream, format=suffix, dpi=150)
        written.append(folder / f"{name}.png")
    return written


def radar(summaries: Sequence[Summary]) -> Figure:
    """The columns `Benchmark.radar`, each over the tasks that have it."""
    benchmark = summaries[0].benchmark
    panels = [
        (column, title, [task for task in benchmark.tasks if column in benchmark.columns(task)])
        for column, title in benchmark.radar
    ]
    figure = Figure(figsize=(6.4 * len(panels), 6.0), layout="constrained")
    paper = published(benchmark).rows
    floor = _radar_floor(summaries, [f"{task}.{column}" for column, _, tasks in panels for task in tasks])
    for number, (column, title, tasks) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number, projection="polar")
        assert isinstance(axes, PolarAxes)
        angles = [2 * math.pi * i / len(tasks) for i in range(len(tasks))]
        for method, colour in zip(benchmark.radar_methods, _PAPER_COLOURS, strict=False):
            _polygon(axes, angles, [paper[method].get(f"{t}.{column}") for t in tasks], colour, f"{method} (paper)")
        for summary, colour in zip(summaries, _OUR_COLOURS * len(summaries), strict=False):
            values = [summary.mean.get(f"{task}.{column}") for task in tasks]
            _polygon(axes, angles, values, colour, summary.name, highlight=True)
        offset = math.pi / 2 - (math.pi / len(tasks) if len(tasks) == 4 else 0)
        axes.set_theta_offset(offset)
        many = len(tasks) > MANY
        axes.set_xticks(angles, [_label(benchmark, task, many) for task in tasks], fontsize=6.5 if many else 9)
        for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
            side = math.cos(angle + offset)
            label.set_horizontalalignment("center" if abs(side) < 0.2 else "left" if side > 0 else "right")
        axes.tick_params(axis="x", pad=8)
        axes.tick_params(axis="y", labelsize=8, labelcolor="#64748b")
        axes.grid(color="#e2e8f0")
        axes.spines["polar"].set_color("#cbd5e1")
        axes.set_rlabel_position(180 / len(tasks))
        axes.set_ylim(floor, benchmark.score_range[1])
        axes.set_title(title, fontsize=12, pad=18)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def bars(summaries: Sequence[Summary]) -> Figure:
    """The average columns of all methods, with 95 % intervals for the evaluated models."""
    benchmark = summaries[0].benchmark
    columns, longest = benchmark.headline, benchmark.score_range[1]
    rows: list[tuple[str, Mapping[str, float], Summary | None]] = [
        (method, row, None) for method, row in published(benchmark).rows.items()
    ]
    rows += [(summary.name, summary.mean, summary) for summary in summaries]
    figure = Figure(figsize=(3.4 * len(columns) + 1.5, 0.34 * len(rows) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (column, title) in zip(panels, columns.items(), strict=True):
        for y, (_, row, summary) in enumerate(rows):
            value = row.get(column)
            if value is None:
                axes.text(0.01 * longest, y, "not complete", va="center", fontsize=8, color="#64748b")
                continue
            colour = "#cbd5e1" if summary is None else _OUR_COLOURS[summaries.index(summary) % len(_OUR_COLOURS)]
            axes.barh(y, value, color=colour, height=0.72)
            end = value
            if summary is not None and column in summary.intervals:
                low, high = summary.intervals[column]
                sides = [[max(0, value - low)], [max(0, high - value)]]
                axes.errorbar(value, y, xerr=sides, color="#1e293b", capsize=3, lw=1)
                end = high
            axes.text(max(value, end) + 0.01 * longest, y, f"{value:.2f}", va="center", fontsize=8)
        axes.set_xlim(0, 1.1 * longest)
        axes.set_title(title, fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=9)
    panels[0].invert_yaxis()
    return figure


def stability(summaries: Sequence[Summary]) -> Figure:
    """One dot per group, samplings along the x axis."""
    benchmark = summaries[0].benchmark
    every = benchmark.varying or benchmark.headline
    # Of a part of the tasks many averages do not exist.
    columns = {c: t for c, t in every.items() if any(c in s.stability["columns"] for s in summaries)} or every
    figure = Figure(figsize=(4.0 * len(columns), 3.6), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, (column, title) in zip(panels, columns.items(), strict=True):
        samplings: set[int] = set()
        for number, summary in enumerate(summaries):
            groups = summary.stability["columns"].get(column, {}).get("groups", [])
            samplings |= {group["sampling"] for group in groups}
            colour = _OUR_COLOURS[number % len(_OUR_COLOURS)]
            shift = 0.12 * (number - (len(summaries) - 1) / 2)
            x = [group["sampling"] + shift + 0.03 * (group["scoring"] - 2) for group in groups]
            axes.scatter(x, [g["value"] for g in groups], color=colour, s=26, label=summary.name)
            if groups:
                axes.axhline(summary.mean[column], color=colour, lw=0.8, ls="--")
        axes.set_xticks(sorted(samplings))
        axes.set_xlim(min(samplings, default=1) - 0.5, max(samplings, default=1) + 0.5)
        axes.set_xlabel("sampling (one dot per scoring)")
        axes.set_title(title, fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        low, high = axes.get_ylim()
        middle = (low + high) / 2  # a range of at least half a point, or noise would look like a trend
        axes.set_ylim(min(low, middle - 0.25), max(high, middle + 0.25))
    panels[0].legend(fontsize=8, frameon=False)
    return figure


def _polygon(
    axes: Axes,
    angles: Sequence[float],
    values: Sequence[float | None],
    colour: str,
    label: str,
    *,
    highlight: bool = False,
) -> None:
    """A closed polygon; missing values leave gaps."""
    ring = [math.nan if value is None else value for value in [*values, values[0]]]
    offset = [*angles, angles[0]]
    axes.plot(
        offset, ring, color=colour, lw=2.4 if highlight else 1.2, label=label, marker="o" if highlight else None, ms=4
    )
    if highlight and None not in values:
        axes.fill(offset, ring, color=colour, alpha=0.12)


def _radar_floor(summaries: Sequence[Summary], columns: Sequence[str]) -> float:
    """Value at the radar's centre: 0 if any value is low."""
    benchmark = summaries[0].benchmark
    if benchmark.score_range[1] != 10:
        return 0.0
    paper = published(benchmark).rows
    rows = [*(paper[method] for method in benchmark.radar_methods), *(summary.mean for summary in summaries)]
    values = [value for row in rows for column in columns if (value := row.get(column)) is not None]
    return _MIN_RADAR_FLOOR if values and min(values) >= _MIN_RADAR_FLOOR + 0.5 else 0.0


def _label(benchmark: Benchmark, task: str, short_form: bool) -> str:
    """A task in two lines, or by its own name where there is no space for them."""
    if short_form:
        return task.replace("_", " ")
    group, _, short = benchmark.short_names[task].partition(" / ")
    return group.replace(" & ", " &\n") + "\n" + short
