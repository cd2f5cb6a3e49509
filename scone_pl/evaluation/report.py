"""A self-contained HTML report: per item its references, instruction, generated images, scores and the judge's reasons.

Style, script and images (small JPEG data URLs) are embedded; nothing is loaded. The template escapes every text.
"""

from __future__ import annotations

import base64
import functools
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from PIL import Image

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.groups import Records
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.judge_images import open_rgb
from scone_pl.evaluation.summary import Summary
from scone_pl.evaluation.tables import failure_rows, main_rows
from scone_pl.files import write_text
from scone_pl.vlm.images import jpeg_url

LOW = 5
"""Answers of the judge below this count as low."""
REFERENCE_SIDE, IMAGE_SIDE = 160, 256
"""Longer side of thumbnails in pixels."""

_LOW_NAMES = {"SC": ("consistency", "low consistency"), "PF": ("following", "low prompt following")}
_EXPLAINED = {
    "redundancy": "redundancy (a distractor is present)",
    "omission": "omission (a target subject is missing)",
    "swap": "swap (a distractor instead of its reference's target)",
    "dominance": "dominance (one reference's subjects instead of another's)",
    "drift": "drift (a target is missing, nothing of its reference is there)",
    "blending": "blending (attributes of one reference on another)",
}

_QUALITY = 72
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("scone_pl.evaluation", "page"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Thumbnail(NamedTuple):
    """An embedded image."""

    url: str
    width: int
    height: int


def write_report(
    file: Path,
    summary: Summary,
    items: Sequence[Item],
    records: Records,
    image_of: Callable[[Item, int], Path],
    plots: Sequence[Path] = (),
) -> None:
    """Writes the report.

    Args:
        file: HTML file.
        summary: summary of `records`.
        items: in the order in which they are shown.
        records: records of all groups.
        image_of: (item, sampling) -> path of the generated image, which need not exist.
        plots: PNG files.
    """
    by_item: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        by_item[record["task_type"], str(record["key"])].append(record)
    page = TEMPLATES.get_template("report.html").render(
        summary=summary,
        columns=summary.benchmark.headline,
        rated=(*summary.benchmark.rated, "PHY"),
        sorted_by=summary.benchmark.sorted_by,
        rows=main_rows([summary]),
        plots={plot.stem: png_url(plot) for plot in plots},
        tasks={task: summary.benchmark.short_names[task] for task in summary.benchmark.tasks},
        num_items=len(items),
        filters=_filters(summary),
        tables=_tables(summary),
        # Generated one at a time: each holds its images.
        cards=(_card(summary.benchmark, item, by_item[item.id], image_of) for item in items),
    )
    write_text(page.encode("ascii", "xmlcharrefreplace").decode(), file)


def errors_of(benchmark: Benchmark, records: Records) -> dict[str, str]:
    """Errors of an item in any group: name -> label."""
    faults = [found for record in records if (found := benchmark.failures(record))]
    errors = {name: name for found in faults for name, applies in found.items() if applies}
    for name in benchmark.rated[::-1]:
        if any(record.get(name) is not None and record[name] < LOW for record in records):
            key, label = _low(name)
            errors[key] = label
    if not records or any(not benchmark.is_complete(record) for record in records):
        errors["failed"] = "not judged"
    return errors


def _low(name: str) -> tuple[str, str]:
    return _LOW_NAMES.get(name, (f"low-{name}", f"low {name}"))


def _filters(summary: Summary) -> dict[str, str]:
    """Errors by which items can be filtered -> their texts."""
    benchmark = summary.benchmark
    names = dict.fromkeys(name for found in summary.failure_rates.values() for name in found)
    lows = [(name, *_low(name)) for name in benchmark.rated[::-1]]
    return {
        **{name: _EXPLAINED.get(name, name) for name in names},
        **{key: f"{label} ({name} below {LOW})" for name, key, label in lows},
        "failed": "judge failed or no image",
    }


def _tables(summary: Summary) -> list[tuple[str, list[list[str]]]]:
    """Failures by name over tasks, and the benchmark's own tables."""
    rows = failure_rows(summary)
    return [*([("Failures by name", rows)] if len(rows) > 1 else []), *summary.extra]


def _card(benchmark: Benchmark, item: Item, records: Records, image_of: Callable[[Item, int], Path]) -> dict[str, Any]:
    """An item as the template's variables."""
    scores = [benchmark.item_scores(record) for record in records if benchmark.is_complete(record)]
    ordered = sorted(records, key=lambda record: record["scoring"])
    return {
        "item": item,
        "errors": errors_of(benchmark, records),
        "scores": {name: _mean([row[name] for row in scores if name in row]) for name in benchmark.sorted_by},
        "references": [
            (thumbnail(file, REFERENCE_SIDE), list(zip(names, labels, strict=True)))
            for file, names, labels in zip_longest(item.images, item.subjects, item.labels, fillvalue=())
        ],
        "rounds": [
            {
                "sampling": sampling,
                "image": thumbnail(image_of(item, sampling), IMAGE_SIDE),
                "scorings": [_scoring(benchmark, item, record) for record in ordered if record["sampling"] == sampling],
            }
            for sampling in sorted({record["sampling"] for record in records}) or [1]
        ],
    }


def _scoring(benchmark: Benchmark, item: Item, record: Mapping[str, Any]) -> dict[str, Any]:
    scores = benchmark.item_scores(record) if benchmark.is_complete(record) else None
    return {
        "record": record,
        "reasons": {
            key.removesuffix("_reason"): text
            for key, text in record.items()
            if text and key.endswith("_reason") and key.removesuffix("_reason") not in (*benchmark.rated, "PHY")
        },
        "scores": scores and {name: scores[name] for name in benchmark.sorted_by if name in scores},
        "missed": benchmark.missed(record) if scores else [],
        "presence": [
            (number, list(zip(*group, strict=False)))
            for number, group in enumerate(
                zip(item.subjects, record.get("label") or (), record.get("pred") or (), strict=False), 1
            )
            if group[0]
        ],
    }


@functools.lru_cache(maxsize=256)
def thumbnail(file: Path, side: int) -> Thumbnail | None:
    """An image whose longer side has `side` pixels, None if it cannot be read; small images are enlarged unfiltered."""
    try:
        image = open_rgb(file)
    except UserError:
        return None
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return Thumbnail(jpeg_url(image.resize(size, method), _QUALITY), *size)


def png_url(file: Path) -> str:
    """A PNG file as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4f}" if values else ""
