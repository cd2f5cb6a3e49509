"""Small pools on disk."""

from __future__ import annotations

import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from scone_pl.construct.phases import State


def pixels(seed: int, side: int = 48) -> Image.Image:
    """A picture of its own, which its perceptual hash tells from others."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    data = io.BytesIO()
    image.save(data, form)
    return data.getvalue()


def save(image: Image.Image, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file


def uno_row(number: int, folder: Path, **changes: Any) -> dict[str, Any]:
    """A clean pair with its two images."""
    for which in (1, 2):
        save(pixels(2 * number + which), folder / f"images/{number}_{which}.png")
    row: dict[str, Any] = {
        "img_path1": f"images/{number}_1.png",
        "img_path2": f"images/{number}_2.png",
        "caption": {
            "img_path1": f"A cat sleeps on chair number {number}.",
            "img_path2": f"A cat runs through garden number {number}.",
            "judgment": "same",
            "subject": "cat",
        },
        "vlm_filter_cot": {"score_part": {"shape": 4}, "score_final": 4.0},
    }
    return {**row, **changes}


def write_list(rows: list[Any], file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))
    return file


def write_config(file: Path, **content: Any) -> str:
    file.write_text(yaml.safe_dump({"output": str(file.parent / "out"), "workers": 1, **content}))
    return str(file)


def state(folder: Path, name: str) -> State:
    """What a step did."""
    found = State.of(next((folder / "out/steps").glob(f"*-{name}")))
    assert found is not None
    return found


def items(folder: Path, name: str) -> list[dict[str, Any]]:
    file = next((folder / "out/steps").glob(f"*-{name}")) / "items.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def num_answers(output: Path) -> int:
    """Number of answers in the store of an output folder."""
    file = output / "construct.sqlite"
    if not file.is_file():
        return 0
    connection = sqlite3.connect(file)
    try:
        return int(connection.execute("SELECT count(*) FROM answers").fetchone()[0])
    except sqlite3.OperationalError:  # not created yet
        return 0
    finally:
        connection.close()
