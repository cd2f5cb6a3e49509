"""`python -m scone_pl construct demo`: the whole pipeline on pools of icons with planted faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from scone_pl.construct.pipeline import Pipeline
from scone_pl.construct.sheet import write_sheet
from scone_pl.construct.status import status_text
from scone_pl.files import write_json, write_text
from scone_pl.markdown import markdown_table
from scone_pl.worlds.planted.pools import IconPools, write_pools
from scone_pl.worlds.planted.proof import construction, measure
from scone_pl.worlds.planted.server import IconServer

FAULTS = 0.03
"""Fraction of requests that end in 429, 500, garbage, prose or a thought that is cut off."""


def run_demo(output: Path, pairs: int, sets: int, rates: Sequence[float], workers: int | None) -> Path:
    """Writes pools, constructs shards from them at several rates of wrong answers, and reports precision and recall.

    Returns:
        The report.
    """
    shutil.rmtree(output / "pools", ignore_errors=True)
    pools = write_pools(output / "pools", pairs, sets)
    reports: dict[str, Any] = {}
    for rate in rates:
        folder = output / f"errors_{round(100 * rate)}"
        shutil.rmtree(folder, ignore_errors=True)  # of other pools
        with IconServer(pools, errors=rate, faults=FAULTS) as server:
            settings = construction(pools, folder, server.url, workers=workers)
            pipeline = Pipeline(settings)
            pipeline.run()
            content = {name: getattr(settings, name) for name in ("output", "pools", "models", "steps", "outputs")}
            write_text(yaml.safe_dump(content, sort_keys=False), folder / "construct.yaml")
        print(status_text(pipeline))
        reports[f"{rate:.0%}"] = measure(pipeline, pools)
        write_sheet(pipeline, 12)
    write_json(reports, output / "report.json")
    write_text(report_text(reports, pools), output / "report.md")
    print((output / "report.md").read_text())
    for rate in rates:
        print(f"{output / f'errors_{round(100 * rate)}' / 'sheet.html'}")
    return output / "report.md"


def report_text(reports: dict[str, Any], pools: IconPools) -> str:
    """The report as Markdown."""
    lines = ["# Kept samples against the truth", ""]
    for rate, steps in reports.items():
        lines += [f"## {rate} of the models' answers are wrong", ""]
        rows = []
        for name, one in steps.items():
            counts = [str(one[key]) for key in ("in", "out", "clean_out")]
            rows.append([name, *counts, _percent(one["precision"]), _percent(one["recall"]), str(one["calls"])])
        head = ["step", "in", "out", "clean", "precision", "recall", "calls"]
        lines += [markdown_table(head, rows), ""]
        left = steps["consistency"]["faults_left"]
        lines += [f"planted faults left in `refined`: {json.dumps(left) if left else 'none'}", ""]
    planted = len(pools.planted)
    lines.append(f"{planted} samples have a planted fault. Precision: clean among those kept. Recall: clean ones kept.")
    return "\n".join(lines) + "\n"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
