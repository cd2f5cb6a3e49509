"""Damaged checkpoint folders and snapshots in front of the verbs that read them whole: a result or one line."""

from __future__ import annotations

import copy
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from folder_damage import damage, mutated
from PIL import Image
from tiny_checkpoints import write_folder

from scone_pl.__main__ import main
from scone_pl.checkpoints.model import from_pretrained
from scone_pl.files import write_json
from scone_pl.training.runs import weights_identity

COUNT = 80


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("fuzz") / "folder")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sample to read."""
    folder = tmp_path_factory.mktemp("rows")
    Image.new("RGB", (16, 16), "red").save(folder / "a.png")
    write_json({"references": ["a.png"], "instruction": "draw"}, folder / "row.json")
    text = (folder / "row.json").read_text().replace("\n", " ")
    (folder / "row.json").unlink()
    (folder / "rows.jsonl").write_text(text)
    return folder / "rows.jsonl"


def outcome(args: list[str], done: str, capsys: pytest.CaptureFixture[str]) -> int:
    """The status; what is said on refusing is one line. A traceback fails here."""
    status = main(args)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert status in (0, 2), (done, said)
    assert len(said) == (status == 2), (done, said)
    assert all(len(line) < 1500 for line in said), (done, said)
    return status


@pytest.mark.slow
def test_layers_of_damaged_folders(base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, statuses = random.Random(0), Counter[int]()
    args = ["layers", "--data", str(rows), "--checkpoint"]
    assert outcome([*args, str(base)], "nothing", capsys) == 0
    for number in range(COUNT):
        folder = Path(shutil.copytree(base, tmp_path / str(number)))
        done = damage(folder, draw)
        statuses[outcome([*args, str(folder)], f"{number}: {done}", capsys)] += 1
        shutil.rmtree(folder)
    assert statuses[2] > COUNT / 2, statuses


def snapshot_of(base: Path) -> dict[str, Any]:
    """What a run without fully_sharded writes, as far as `export` reads it."""
    weights = from_pretrained(base).state_dict()
    trained = {f"model.{name}": weights[name] for name in ("connector.fc1.bias", "vae2llm.weight")}
    described = {"init_from": str(base), "start": weights_identity(base), "stage": "Composition", "steps": 2}
    return {"scone": {**described, "lora": None}, "state_dict": trained, "global_step": 2}


def odd(value: Any, draw: random.Random) -> Any:
    """`mutated`, which knows no tensors."""
    if isinstance(value, torch.Tensor):
        return draw.choice((value[:1], value.to(torch.complex64), value.bool(), value * float("nan"), None, 3, [value]))
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(sorted(value, key=str))
        rest = {key: inner for key, inner in value.items() if key != name}
        return rest if draw.random() < 0.2 else {**rest, name: odd(value[name], draw)}
    return mutated(value, draw)


def test_export_of_odd_snapshots_and_damaged_starts(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, statuses = random.Random(1), Counter[int]()
    whole = snapshot_of(base)
    for number in range(COUNT):
        start = Path(shutil.copytree(base, tmp_path / f"start{number}"))
        content, done = copy.deepcopy(whole), "nothing"
        if number % 3 == 1:
            content, done = odd(content, draw), "snapshot"
        elif number % 3 == 2:
            done = damage(start, draw)
            content["scone"]["start"] = identity_of(start)
        torch.save(content, tmp_path / "snapshot")
        if number % 6 == 4:
            image = bytearray((tmp_path / "snapshot").read_bytes())
            image[draw.randrange(len(image))] ^= 1 << draw.randrange(8)
            (tmp_path / "snapshot").write_bytes(image)
        args = ["export", str(tmp_path / "snapshot"), str(tmp_path / "out"), "--start", str(start)]
        status = outcome(args, f"{number}: {done}", capsys)
        assert (status == 0) == (tmp_path / "out").exists()
        assert status == 0 or done != "nothing"
        statuses[status] += 1
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.rmtree(start)
    assert statuses[2] > COUNT / 4, statuses


def identity_of(folder: Path) -> str:
    """As if training had started from the damaged folder."""
    try:
        return weights_identity(folder)
    except (OSError, ValueError):
        return ""
