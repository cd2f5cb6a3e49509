"""A folder in which the commands of the documentation find what they name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from documents import blocks
from PIL import Image
from running import ROOT
from tiny_checkpoints import write_folder


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as the documentation sees it, with tiny weights as `weights/Scone` and a few small images."""
    folder = tmp_path_factory.mktemp("documentation") / "scone_pl"
    (folder / "data_shards").mkdir(parents=True)
    for name in ("experiments", "tests", "benchmarks", "data_shards/tiny", "Makefile", "docs"):
        (folder / name).symlink_to(ROOT / name)
    write_folder(folder / "weights/Scone")
    generator = np.random.default_rng(0)
    (folder / "my").mkdir()
    for file in ("cat.png", "room.jpg", "a.png", "my/cat.png", "my/room.jpg", "my/result.png"):
        Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / file)
    row = {"references": ["cat.png", "room.jpg"], "target": "result.png", "instruction": "Put the cat into the room."}
    (folder / "my/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    (pipeline,) = (block for block in blocks("yaml") if block.file == "docs/construct.md")
    (folder / "construct.yaml").write_text(pipeline.text)
    return folder


@pytest.fixture
def in_sandbox(sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a test's commands."""
    monkeypatch.chdir(sandbox)
    return sandbox
