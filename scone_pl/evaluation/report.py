"""One HTML file to look through: references, instruction, pictures, scores, the judge's reasons.

Nothing is loaded from anywhere: style, script and images (as small JPEG data URLs) are inside. Every text is escaped.
"""

from __future__ import annotations

import base64
import functools
import html
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from scone_pl.errors import UserError
from scone_pl.evaluation.groups import Records, is_omitted, is_redundant
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.judge_images import jpeg_url, open_rgb
from scone_pl.evaluation.scores import is_complete, item_scores
from scone_pl.evaluation.summary import Summary
from scone_pl.evaluation.tables import main_rows
from scone_pl.files import write_text

PAGE = Path(__file__).parent / "page"
LOW = 5
"""PF and SC below this count as low."""
REFERENCE_SIDE, PICTURE_SIDE = 160, 256
"""Longest side of the images in the page, in pixels."""

FAULTS = {
    "redundancy": "redundancy",
    "omission": "omission",
    "consistency": "low consistency",
    "following": "low prompt following",
    "failed": "not judged",
}
"""What a card can be filtered by, and its name there."""

_QUALITY = 72


def write_report(
    file: Path,
    summary: Summary,
    items: Sequence[Item],
    records: Records,
    picture_of: Callable[[Item, int], Path],
    plots: Sequence[Path] = (),
) -> None:
    """Writes the page.

    Args:
        file: HTML file.
        summary: of the records.
        items: in the order in which they are shown.
        records: all of them, any groups.
        picture_of: item and sampling -> file of its picture, which need not be there.
        plots: PNG files.
    """
    by_item: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        by_item[record["task_type"], str(record["key"])].append(record)
    short = summary.benchmark.short_names
    cards = [
        _card(place, item, short[item.task_type], by_item[item.place], picture_of) for place, item in enumerate(items)
    ]
    tasks = [f'<option value="{_e(task)}">{_e(short[task])}</option>' for task in summary.benchmark.tasks]
    n = summary.combined["n_groups"]
    about = f"{len(items)} items, {n} group{'s' if n != 1 else ''} (sampling x scoring). "
    about += f"{summary.lost} record{' lacks' if summary.lost == 1 else 's lack'} a score."
    if models := summary.provenance["models"]:
        about += f" Judged by {', '.join(models)}."
    page = Template((PAGE / "report.html").read_text(encoding="utf-8")).substitute(
        title=_e(f"{summary.benchmark.title}: {summary.name}"),
        about=_e(about),
        css=(PAGE / "report.css").read_text(encoding="utf-8"),
        js=(PAGE / "report.js").read_text(encoding="utf-8"),
        tables=_table(summary),
        plots="".join(f'<img alt="{_e(plot.stem)}" src="{_png_url(plot)}">' for plot in plots),
        tasks="".join(tasks),
        low=LOW,
        cards="\n".join(cards),
    )
    write_text(page.encode("ascii", "xmlcharrefreplace").decode(), file)


def faults_of(records: Records) -> list[str]:
    """What went wrong with an item in any group, see `FAULTS`."""
    found = {
        "redundancy": any(is_redundant(record) for record in records),
        "omission": any(is_omitted(record) for record in records),
        "consistency": any(_below(record, "SC") for record in records),
        "following": any(_below(record, "PF") for record in records),
        "failed": not records or any(not is_complete(record) for record in records),
    }
    return [name for name, there in found.items() if there]


def _below(record: Mapping[str, Any], name: str) -> bool:
    return record.get(name) is not None and record[name] < LOW


def _card(place: int, item: Item, task: str, records: Records, picture_of: Callable[[Item, int], Path]) -> str:
    faults = faults_of(records)
    scores = [item_scores(record) for record in records if is_complete(record)]
    com, dis = (_mean([row[name] for row in scores if name in row]) for name in ("COM", "DIS"))
    tags = "".join(f'<span class="tag">{_e(FAULTS[fault])}</span>' for fault in faults)
    samplings = sorted({record["sampling"] for record in records}) or [1]
    rounds = [
        _round(item, sampling, [r for r in records if r["sampling"] == sampling], picture_of(item, sampling))
        for sampling in samplings
    ]
    references = [
        f"<figure>{_image(file, REFERENCE_SIDE)}<figcaption>reference {number}{_candidates(item, number - 1)}"
        "</figcaption></figure>"
        for number, file in enumerate(item.images, 1)
    ]
    return (
        f'<article data-task="{_e(item.task_type)}" data-faults="{" ".join(faults)}" data-place="{place}" '
        f'data-com="{com}" data-dis="{dis}">'
        f'<h2>{_e(task)} <span class="pale">{_e(item.key)}{_e(f" ({item.case_type})" if item.case_type else "")}</span>'
        f'{tags}</h2><p class="said">{_e(item.instruction)}</p>'
        f'<div class="row">{"".join(references)}{"".join(rounds)}</div></article>'
    )


def _candidates(item: Item, reference: int) -> str:
    """The descriptions of a reference's candidates, the wanted ones marked."""
    if reference >= len(item.subjects):
        return ""
    names = [
        f'<span class="wanted">{_e(name)} (wanted)</span>' if label else _e(name)
        for name, label in zip(item.subjects[reference], item.labels[reference], strict=True)
    ]
    return ": " + "; ".join(names)


def _round(item: Item, sampling: int, records: Records, picture: Path) -> str:
    shown = "".join(_scoring(item, record) for record in sorted(records, key=lambda record: record["scoring"]))
    figure = f"<figure>{_image(picture, PICTURE_SIDE)}<figcaption>sampling {sampling}</figcaption></figure>"
    return f'<div class="round">{figure}{shown}</div>'


def _scoring(item: Item, record: Mapping[str, Any]) -> str:
    lines = [
        (f"{name} {record[name]:g}", str(record.get(f"{name}_reason") or ""))
        for name in ("PF", "SC", "PHY")
        if record.get(name) is not None
    ]
    if record.get("failure"):
        lines.append(("failed", str(record["failure"])))
    if is_complete(record):
        row = item_scores(record)
        parts = [f"COM {row['COM']:.2f}", *([f"DIS {row['DIS']:.2f}"] if "DIS" in row else [])]
        lines.insert(0, (f"scoring {record['scoring']}", ", ".join(parts)))
    else:
        lines.insert(0, (f"scoring {record['scoring']}", "counts nowhere: incomplete"))
    found = "".join(f"<dt>{_e(head)}</dt><dd>{_e(text)}</dd>" for head, text in lines)
    return f"<dl>{found}</dl>{_presence(item, record)}"


def _presence(item: Item, record: Mapping[str, Any]) -> str:
    """What the judge saw of the candidates, against what should be there."""
    if not record.get("pred") or not item.subjects:
        return ""
    rows = [
        f"<tr{_wrong(wanted, seen)}><td>{_e(name)}</td><td>{'yes' if wanted else 'no'}</td>"
        f"<td>{'yes' if seen else 'no'}</td></tr>"
        for names, labels, preds in zip(item.subjects, record["label"], record["pred"], strict=False)
        for name, wanted, seen in zip(names, labels, preds, strict=False)
    ]
    return f'<table class="presence"><tr><th>candidate</th><th>wanted</th><th>seen</th></tr>{"".join(rows)}</table>'


def _wrong(wanted: int, seen: int) -> str:
    return "" if wanted == seen else ' class="wrong"'


def _table(summary: Summary) -> str:
    """The averages of everyone; the whole table is in the Markdown beside the page."""
    columns = {"average.COM": "COM", "average.DIS": "DIS", "overall": "Overall"}
    if not summary.benchmark.has_overall:
        columns = {"average.COM": "Average"}
    heads = "".join(f"<th>{head}</th>" for head in ("Method", *columns.values()))
    rows = []
    for method, row, ours in main_rows([summary]):
        cells = "".join(f"<td>{'-' if row.get(c) is None else f'{row[c]:.2f}'}</td>" for c in columns)
        mark = ' class="ours"' if ours else ""
        rows.append(f"<tr{mark}><td>{_e(method)}</td>{cells}</tr>")
    return f'<div class="scroll"><table><tr>{heads}</tr>{"".join(rows)}</table></div>'


def _image(file: Path, side: int) -> str:
    """An image of at most `side` pixels, or a line that it is not there; small ones are enlarged, pixels kept."""
    found = _thumbnail(file, side)
    if found is None:
        return '<p class="pale">no picture</p>'
    url, width, height = found
    return f'<img alt="" loading="lazy" width="{width}" height="{height}" src="{url}">'


@functools.lru_cache(maxsize=256)
def _thumbnail(file: Path, side: int) -> tuple[str, int, int] | None:
    try:
        image = open_rgb(file)
    except UserError:
        return None
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return jpeg_url(image.resize(size, method), _QUALITY), *size


def _png_url(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4f}" if values else ""


def _e(text: str) -> str:
    return html.escape(text, quote=True)
