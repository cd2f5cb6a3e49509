"""A self-contained HTML page: tables, plots, and the largest disagreements with both reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scone_pl.errors import UserError
from scone_pl.evaluation.agreement.sources import Source
from scone_pl.evaluation.agreement.tables import NOTES, sections, summary
from scone_pl.evaluation.folder import EvaluationFolder
from scone_pl.evaluation.report import IMAGE_SIDE, TEMPLATES, Thumbnail, png_url, thumbnail
from scone_pl.files import write_text


def write_report(file: Path, result: Mapping[str, Any], sources: Sequence[Source], plots: Sequence[Path]) -> None:
    """Writes the page.

    Args:
        file: HTML file.
        result: see `compare.compare`.
        sources: where the images may be found, by their evaluation folders.
        plots: PNG files.
    """
    page = TEMPLATES.get_template("agreement.html").render(
        result=result,
        summary=summary(result),
        sections=sections(result),
        notes=NOTES,
        plots={plot.stem: png_url(plot) for plot in plots},
        cards=(
            {"column": column, **one, "image": _thumbnail(one, sources)}
            for column, found in result["columns"].items()
            for one in found["disagreements"]
        ),
    )
    write_text(page.encode("ascii", "xmlcharrefreplace").decode(), file)


def _thumbnail(one: Mapping[str, Any], sources: Sequence[Source]) -> Thumbnail | None:
    for source in sources:
        folder = source.folders.get(one["system"])
        if folder is None:
            continue
        try:
            images = EvaluationFolder.open(folder, None).images_of(one["sampling"])
        except (UserError, IndexError):
            continue
        file = images / one["task"] / f"{one['key']}.png"
        if file.is_file() and (found := thumbnail(file, IMAGE_SIDE)):
            return found
    return None
