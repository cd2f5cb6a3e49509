"""Runs with images of one colour each, for the tests of the blind study."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

NAMES = ("dull", "fair", "keen")
TASKS = ("single_object", "multi_object")
ITEMS = [(task, f"item{number}") for task in TASKS for number in range(3)]
QUALITY = dict(zip(NAMES, (3, 5, 9), strict=True))


def colour(name: str, task: str, key: str) -> tuple[int, int, int]:
    return (40 + 60 * NAMES.index(name), 100 * TASKS.index(task), 60 * int(key[-1]))


def write_runs(folder: Path, *, judged: bool = True) -> list[str]:
    """Outputs of `evaluate` on OmniContext, each image with its model's name in the file."""
    Image.new("RGB", (24, 16), (9, 9, 9)).save(folder / "reference.png")
    prompts = [
        {
            "key": key,
            "task_type": task,
            "instruction": f"{task} </script> {key}",
            "input_images": [str(folder / "reference.png")],
        }
        for task, key in ITEMS
    ]
    for name in NAMES:
        run, records = folder / name, []
        for task, key in ITEMS:
            file = run / "round_1/predictions" / task / f"{key}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            described = PngInfo()
            described.add_text("Software", f"model {name}")
            Image.new("RGB", (16, 16), colour(name, task, key)).save(file, pnginfo=described)
            record = {"sampling": 1, "scoring": 1, "key": key, "task_type": task}
            record |= {
                "PF": QUALITY[name],
                "SC": QUALITY[name],
                "picture": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
            records.append(json.dumps(record) + "\n")
        (run / "evaluation.json").write_text(json.dumps({"benchmark": "omnicontext", "name": name}))
        (run / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
        if judged:
            (run / "scores.jsonl").write_text("".join(records))
    return [str(folder / name) for name in NAMES]
