"""Generated images with labels that a person gave, and how far the judge agrees with them.

A folder of `labels.json` and `images.png`: the images, pixel by pixel, in rows of `_COLUMNS`, in the labels' order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from scone_pl.data.decoding import decode_rgb
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError
from scone_pl.files import read_bytes, read_json, write_bytes, write_json
from scone_pl.markdown import markdown_table
from scone_pl.worlds.episode import Failure
from scone_pl.worlds.evaluate import Drawn
from scone_pl.worlds.icons.episode import Episode
from scone_pl.worlds.icons.evaluator import IconsEvaluator
from scone_pl.worlds.icons.judge import judge
from scone_pl.worlds.icons.world import IconsConfig

_COLUMNS = 12
LABELS, IMAGES = "labels.json", "images.png"


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One image and its label."""

    episode: Episode
    image: np.ndarray
    """(H, W, 3) uint8."""
    verdict: str
    """One of `Failure`; empty = not labelled yet."""
    chosen: tuple[str, ...]
    """Per reference what is drawn of it: target, distractor, or neither (none, or both); empty = not labelled."""


def write_images(drawn: Sequence[Drawn], config: IconsConfig, folder: Path) -> None:
    """Writes images whose labels are still empty."""
    side = drawn[0].image.shape[0]
    sheet = np.full((-(-len(drawn) // _COLUMNS) * side, _COLUMNS * side, 3), 255, np.uint8)
    for number, one in enumerate(drawn):
        top, left = number // _COLUMNS * side, number % _COLUMNS * side
        sheet[top : top + side, left : left + side] = one.image
    stream = BytesIO()
    Image.fromarray(sheet).save(stream, "PNG", optimize=True)
    write_bytes(stream.getvalue(), folder / IMAGES)
    labels = [{"key": one.episode.key, "verdict": "", "chosen": []} for one in drawn]
    write_json({"world": asdict(config), "images": labels}, folder / LABELS)


def read_labels(folder: Path) -> list[Labelled]:
    """The images of a folder, in order.

    Raises:
        UserError: a file is damaged, or a label is none of those that exist.
    """
    file = folder / LABELS
    content = read_json(file, dict)
    try:
        config, entries = IconsConfig(**content["world"]), content["images"]
        episodes = [IconsEvaluator.episode_of(entry["key"], content["world"]) for entry in entries]
        pairs = [(str(entry["verdict"]), tuple(map(str, entry["chosen"]))) for entry in entries]
    except (AttributeError, KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(f"{file}: not as `icons label_images` writes it ({error!r:.100})") from None
    try:
        sheet = np.asarray(decode_rgb(read_bytes(folder / IMAGES)))
    except BrokenSampleError as error:
        raise UserError(f"{folder / IMAGES}: {error}") from None
    side = config.canvas
    if sheet.shape[1] != _COLUMNS * side or sheet.shape[0] < -(-len(entries) // _COLUMNS) * side:
        raise UserError(f"{folder / IMAGES}: does not hold {len(entries)} images of {side} pixels, {_COLUMNS} a row")
    result = []
    for number, (episode, (verdict, chosen)) in enumerate(zip(episodes, pairs, strict=True)):
        top, left = number // _COLUMNS * side, number % _COLUMNS * side
        _check(f"{file}: {episode.key}", verdict, chosen, len(episode.candidates))
        image = sheet[top : top + side, left : left + side]
        result.append(Labelled(episode=episode, image=image, verdict=verdict, chosen=chosen))
    return result


def _check(where: str, verdict: str, chosen: tuple[str, ...], references: int) -> None:
    """Raises `UserError` for a label that does not exist, or another number of choices than references."""
    if verdict not in ("", *get_args(Failure)):
        raise UserError(f"{where}: no verdict {verdict!r:.80}; choose from {', '.join(get_args(Failure))}")
    if unknown := set(chosen) - {"target", "distractor", "neither"}:
        raise UserError(f"{where}: chosen has {min(unknown)!r:.80}; not target, distractor, neither")
    if chosen and len(chosen) != references:
        raise UserError(
            f"{where}: chosen has {len(chosen)} entries for {references} references; give one each, or none"
        )


def agreement(labelled: Sequence[Labelled]) -> dict[str, Any]:
    """Judge against labels.

    Returns:
        `verdicts`: label -> the judge's verdict -> number of images. `choices`: label -> [references of which the judge
        says that the target was chosen, references].
    """
    verdicts: dict[str, Counter[str]] = {}
    choices: dict[str, list[int]] = {}
    for one in labelled:
        if not one.verdict:
            continue
        given = judge(one.episode, one.image)
        verdicts.setdefault(one.verdict, Counter())[given.failure] += 1
        for label, choice in zip(one.chosen, given.choices, strict=bool(one.chosen)):
            row = choices.setdefault(label, [0, 0])
            row[0] += choice
            row[1] += 1
    return {"verdicts": {label: dict(row) for label, row in verdicts.items()}, "choices": choices}


def table(result: dict[str, Any]) -> str:
    """Of `agreement`, as Markdown."""
    given = [v for v in get_args(Failure) if any(v in row for row in result["verdicts"].values())]
    rows = [
        [label.replace("_", " "), *(str(result["verdicts"][label].get(verdict, 0)) for verdict in given)]
        for label in get_args(Failure)
        if label in result["verdicts"]
    ]
    head = ["label \\ judge", *(verdict.replace("_", " ") for verdict in given)]
    chosen = [[label, str(count), f"{target / count:.0%}"] for label, (target, count) in result["choices"].items()]
    return (
        markdown_table(head, rows)
        + "\n\n"
        + markdown_table(["drawn, by its label", "references", "judge says target"], chosen)
    )
