"""Scatter plots and differences against means (Bland-Altman), per column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from scone_pl.evaluation.agreement.compare import means
from scone_pl.evaluation.agreement.sources import Source, paired
from scone_pl.files import writing

_COLOURS = ("#0ea5e9", "#c2410c", "#15803d", "#7e22ce", "#be123c", "#64748b", "#a16207", "#1e3a8a")


def write_plots(result: dict[str, Any], reference: Source, candidate: Source, folder: Path) -> list[Path]:
    """Writes a PNG and a PDF for each column; returns the PNG files."""
    written = []
    for column, images in paired(reference, candidate).items():
        x, y = means(reference, column, images), means(candidate, column, images)
        systems = list(dict.fromkeys(image.system for image in images))
        colours = [_COLOURS[systems.index(image.system) % len(_COLOURS)] for image in images]
        rows = result["columns"][column]["tasks"]
        row = rows.get("pooled", next(iter(rows.values())))
        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        size = 0.012 * max(np.ptp(x), np.ptp(y))
        jitter = np.random.default_rng(0).uniform(-size, size, (2, len(x)))  # ties would hide each other
        left.scatter(x + jitter[0], y + jitter[1], s=12, alpha=0.5, c=colours)
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        left.plot(ends, ends, color="#94a3b8", lw=1)
        left.set(xlabel=result["reference"], ylabel=result["candidate"], title=f"{column}: {len(x)} images")
        right.scatter((x + y) / 2 + jitter[0], y - x + jitter[1], s=12, alpha=0.5, c=colours)
        for name, style in (("bias", "-"), ("low", "--"), ("high", "--")):
            if row[name] is not None:
                right.axhline(row[name], color="#1e293b", lw=1, ls=style)
        right.set(xlabel="mean of both", ylabel="candidate - reference", title="bias and limits of agreement")
        if len(systems) > 1:
            for system, colour in zip(systems, _COLOURS * len(systems), strict=False):
                left.scatter([], [], s=12, color=colour, label=system)
            left.legend(fontsize=8, frameon=False)
        for suffix in ("png", "pdf"):
            with writing(folder / f"{column}.{suffix}") as stream:
                figure.savefig(stream, format=suffix, dpi=130)
        written.append(folder / f"{column}.png")
    return written
