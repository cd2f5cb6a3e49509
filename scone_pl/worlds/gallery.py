"""An image grid of answers: references, what the bridge blocked, target, generated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scone_pl.sampling.visualize import BACKGROUND, Pixels, dim_blocked, scale_to
from scone_pl.worlds.evaluate import Drawn

_CELL = 96
_GAP = 10
_LINE = 20
_INK = (20, 20, 20)
_PALE_INK = (110, 110, 110)


def gallery(drawn: Sequence[Drawn], per_task: int = 2) -> Pixels:
    """A row per answer, the first `per_task` of each task; above it its instruction and what the judge says."""
    chosen: dict[str, list[Drawn]] = {}
    for one in drawn:
        members = chosen.setdefault(one.episode.task, [])
        if len(members) < per_task:
            members.append(one)
    shown = [one for members in chosen.values() for one in members]
    references = max(len(one.episode.references) for one in shown)
    masked = any(one.latents.blocked for one in shown)
    titles = [f"reference {i + 1}" for i in range(references)]
    titles += [f"seen of {i + 1}" for i in range(references)] if masked else []
    titles += ["target", "generated"]
    rows = [(_cells(one, references, masked=masked), *_caption(one)) for one in shown]
    return _sheet(titles, rows)


def _cells(one: Drawn, references: int, *, masked: bool) -> list[Pixels | None]:
    """The images of a row; None leaves a column empty."""
    given = list(one.episode.references)
    blank = [None] * (references - len(given))
    cells: list[Pixels | None] = [*given, *blank]
    if masked:
        seen = [dim_blocked(r, b.cpu().numpy()) for r, b in zip(given, one.latents.blocked, strict=False)]
        cells += [*seen, *[None] * (references - len(seen))]
    return [*cells, one.episode.target, one.image]


def _caption(one: Drawn) -> tuple[str, str]:
    """What was asked, and what the judge says."""
    verdict = one.episode.judge(one.image)
    fault = "target only" if verdict.failure == "none" else verdict.failure.replace("_", " ")
    verdict_text = f"prompt {verdict.prompt_following:.1f}, subject {verdict.subject_consistency:.1f}, {fault}"
    return one.episode.instruction, f"{one.episode.task.replace('_', ' ')}: {verdict_text}"


def _sheet(titles: Sequence[str], rows: Sequence[tuple[list[Pixels | None], str, str]]) -> Pixels:
    """Blocks of two lines of text and the images below them, two side by side under the column heads."""
    bold, plain = ImageFont.load_default(15), ImageFont.load_default(13)
    texts = max(max(bold.getlength(asked), plain.getlength(judged)) for _, asked, judged in rows)
    width = max(int(texts), len(titles) * (_CELL + _GAP)) + 2 * _GAP
    height = 2 * _LINE + _CELL + 2 * _GAP
    columns = min(2, len(rows))
    head = _LINE + _GAP
    canvas = Image.new("RGB", (columns * width, head + -(-len(rows) // columns) * height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, (cells, asked, judged) in enumerate(rows):
        left, top = i % columns * width + _GAP, head + i // columns * height
        draw.line((left, top + _GAP // 2, left + width - 3 * _GAP, top + _GAP // 2), fill=(210, 210, 210))
        draw.text((left, top + _GAP), asked, fill=_INK, font=bold)
        draw.text((left, top + _GAP + _LINE), judged, fill=_PALE_INK, font=plain)
        for c, (title, cell) in enumerate(zip(titles, cells, strict=True)):
            x = left + c * (_CELL + _GAP)
            if i < columns:
                draw.text((x + _CELL // 2, _GAP), title, fill=_INK, font=plain, anchor="ma")
            if cell is not None:
                canvas.paste(Image.fromarray(scale_to(cell, _CELL)), (x, top + _GAP + 2 * _LINE))
    return np.asarray(canvas)
