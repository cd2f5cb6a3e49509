"""A page and contact sheets of kept and rejected samples, to look through."""

from __future__ import annotations

import json
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image, ImageDraw

from scone_pl.construct.items import Item
from scone_pl.construct.phases import State
from scone_pl.construct.pipeline import POOLS, Pipeline
from scone_pl.construct.pools import Images
from scone_pl.data.decoding import decode_rgb
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError
from scone_pl.files import write_text
from scone_pl.image_files import write_image
from scone_pl.vlm.images import jpeg_url

SIDE = 144
_PER_REASON = 4
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("scone_pl.construct", "page"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass
class _Card:
    """A sample on the page."""

    key: str
    instruction: str = ""
    thumbnails: list[tuple[str, Image.Image | None]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    detail: str = ""

    @property
    def images(self) -> list[dict[str, str]]:
        """For the page."""
        return [{"label": name, "url": jpeg_url(image, 80) if image else ""} for name, image in self.thumbnails]


def write_sheet(pipeline: Pipeline, show: int) -> list[Path]:
    """Writes `sheet.html`, and `sheets/STEP.png` of every step that has run.

    Raises:
        UserError: no step has run.
    """
    steps, files = [], []
    for name in (POOLS, *(step.name for step in pipeline.steps)):
        state = State.of(pipeline.step_folder(name))
        if state is None:
            continue
        kept = list(_kept(pipeline, name, state, show))
        groups = [(f"kept ({state.kept})", kept)]
        groups += [
            (f"{reason} ({state.reasons.get(reason, len(cards))})", cards)
            for reason, cards in _rejected(pipeline, name, min(show, _PER_REASON)).items()
        ]
        steps.append({"name": name, "state": state, "groups": groups})
        file = pipeline.folder / "sheets" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_image(_contact_sheet([card for _, cards in groups for card in cards][:show]), file)
        files.append(file)
    if not steps:
        raise UserError(f"{pipeline.folder}: no step has run yet; start with `construct run`")
    page = _TEMPLATES.get_template("sheet.html").render(title=f"construct: {pipeline.folder.name}", steps=steps)
    write_text(page.encode("ascii", "xmlcharrefreplace").decode(), pipeline.folder / "sheet.html")
    return [pipeline.folder / "sheet.html", *files]


def _kept(pipeline: Pipeline, name: str, state: State, show: int) -> Iterator[_Card]:
    """Samples that are spread evenly over all."""
    chosen = set(np.linspace(0, state.kept - 1, min(show, state.kept)).astype(int).tolist())
    with (pipeline.step_folder(name) / "items.jsonl").open("rb") as stream:
        for number, line in enumerate(stream):
            if number in chosen:
                yield _card(Item.from_json(json.loads(line)), pipeline.images)


def _rejected(pipeline: Pipeline, name: str, limit: int) -> dict[str, list[_Card]]:
    """The first samples of each reason."""
    cards: dict[str, list[_Card]] = defaultdict(list)
    with (pipeline.step_folder(name) / "rejected.jsonl").open("rb") as stream:
        for line in stream:
            content = json.loads(line)
            if len(cards[content["reason"]]) >= limit:
                continue
            card = _Card(content["key"])
            if "item" in content:
                card = _card(Item.from_json(content["item"]), pipeline.images)
            card.reason, card.detail = content["reason"], content["detail"]
            cards[card.reason].append(card)
    return cards


def _card(item: Item, images: Images) -> _Card:
    groups: Sequence[Any] = item.candidates or [()] * len(item.references)
    shown = [
        (f"reference {i}", ref, group) for i, (ref, group) in enumerate(zip(item.references, groups, strict=True), 1)
    ]
    if item.target:
        shown.append(("target", item.target, ()))
    thumbnails = [(label, _thumbnail(images, ref, group)) for label, ref, group in shown]
    facts = {name: json.dumps(value)[:200] for name, value in item.metadata.get("construct", {}).items()}
    return _Card(item.key, item.instruction, thumbnails, facts)


def _thumbnail(images: Images, ref: Any, group: Sequence[Any]) -> Image.Image | None:
    try:
        image = decode_rgb(images.read(ref))
    except BrokenSampleError:
        return None
    image.thumbnail((SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for candidate in group:
        corners = [round(value * (image.size[i % 2] - 1)) for i, value in enumerate(candidate.box)]
        draw.rectangle(corners, outline="limegreen" if candidate.is_target else "red", width=2)
    return image


def _contact_sheet(cards: Sequence[_Card]) -> Image.Image:
    """A row for each sample: images, then text; rejected ones have a red margin."""
    columns = max((len(card.thumbnails) for card in cards), default=0)
    gap, text_width = 6, 420
    sheet = Image.new("RGB", (columns * (SIDE + gap) + text_width, max(1, len(cards)) * (SIDE + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, card in enumerate(cards):
        top = row * (SIDE + gap)
        for column, (_, image) in enumerate(card.thumbnails):
            if image is not None:
                sheet.paste(image, (column * (SIDE + gap) + gap, top + gap // 2))
        draw.rectangle((0, top + 2, 3, top + SIDE), fill="firebrick" if card.reason else "seagreen")
        why = textwrap.wrap(f"{card.reason}: {card.detail}", 66) if card.reason else []
        lines = [card.key, *textwrap.wrap(card.instruction, 66), *why]
        printable = "\n".join(lines[:9]).encode("latin-1", "replace").decode("latin-1")
        draw.multiline_text((columns * (SIDE + gap) + gap, top + gap), printable, fill="black")
    return sheet
