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
from scone_pl.evaluation.groups import Records, is_omitted, is_redundant
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.judge_images import jpeg_url, open_rgb
from scone_pl.evaluation.scores import is_complete, item_scores
from scone_pl.evaluation.summary import Summary
from scone_pl.evaluation.tables import main_rows
from scone_pl.files import write_text

LOW = 5
"""PF and SC below this count as low."""
REFERENCE_SIDE, IMAGE_SIDE = 160, 256
"""Longer side of thumbnails in pixels."""

ERRORS = {
    "redundancy": "redundancy",
    "omission": "omission",
    "consistency": "low consistency",
    "following": "low prompt following",
    "failed": "not judged",
}
"""Errors by which items can be filtered -> their labels."""

_QUALITY = 72
_TEMPLATES = jinja2.Environment(
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
    columns = {"average.COM": "COM", "average.DIS": "DIS", "overall": "Overall"}
    if not summary.benchmark.has_overall:
        columns = {"average.COM": "Average"}
    page = _TEMPLATES.get_template("report.html").render(
        summary=summary,
        columns=columns,
        rows=main_rows([summary]),
        plots={plot.stem: _png_url(plot) for plot in plots},
        tasks={task: summary.benchmark.short_names[task] for task in summary.benchmark.tasks},
        num_items=len(items),
        low=LOW,
        labels=ERRORS,
        # Generated one at a time: each holds its images.
        cards=(_card(item, by_item[item.id], image_of) for item in items),
    )
    write_text(page.encode("ascii", "xmlcharrefreplace").decode(), file)


def errors_of(records: Records) -> list[str]:
    """Keys of `ERRORS` that apply to an item in any group."""
    errors = {
        "redundancy": any(is_redundant(record) for record in records),
        "omission": any(is_omitted(record) for record in records),
        "consistency": any(_is_low(record, "SC") for record in records),
        "following": any(_is_low(record, "PF") for record in records),
        "failed": not records or any(not is_complete(record) for record in records),
    }
    return [name for name, applies in errors.items() if applies]


def _is_low(record: Mapping[str, Any], name: str) -> bool:
    return record.get(name) is not None and record[name] < LOW


def _card(item: Item, records: Records, image_of: Callable[[Item, int], Path]) -> dict[str, Any]:
    """An item as the template's variables."""
    scores = [item_scores(record) for record in records if is_complete(record)]
    com, dis = (_mean([row[name] for row in scores if name in row]) for name in ("COM", "DIS"))
    ordered = sorted(records, key=lambda record: record["scoring"])
    return {
        "item": item,
        "errors": errors_of(records),
        "com": com,
        "dis": dis,
        "references": [
            (_thumbnail(file, REFERENCE_SIDE), list(zip(names, labels, strict=True)))
            for file, names, labels in zip_longest(item.images, item.subjects, item.labels, fillvalue=())
        ],
        "rounds": [
            {
                "sampling": sampling,
                "image": _thumbnail(image_of(item, sampling), IMAGE_SIDE),
                "scorings": [_scoring(item, record) for record in ordered if record["sampling"] == sampling],
            }
            for sampling in sorted({record["sampling"] for record in records}) or [1]
        ],
    }


def _scoring(item: Item, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "record": record,
        "scores": item_scores(record) if is_complete(record) else None,
        "presence": [
            candidate
            for group in zip(item.subjects, record.get("label") or (), record.get("pred") or (), strict=False)
            for candidate in zip(*group, strict=False)
        ],
    }


@functools.lru_cache(maxsize=256)
def _thumbnail(file: Path, side: int) -> Thumbnail | None:
    """An image whose longer side has `side` pixels, None if it cannot be read; small images are enlarged unfiltered."""
    try:
        image = open_rgb(file)
    except UserError:
        return None
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return Thumbnail(jpeg_url(image.resize(size, method), _QUALITY), *size)


def _png_url(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4f}" if values else ""
