"""The verb `latents`, and training on what it wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from running import ROOT

from scone_pl.__main__ import main

BASE = ROOT / "experiments/mini/base_weights"


def recipe(data: Path) -> list[str]:
    sizes = "{max_size: 16, min_size: 16}"
    return [
        *("--config", f"{ROOT}/experiments/mini/stage2.yaml", "--model.init_args.init_from", str(BASE)),
        *("--data.train", f"[{{path: {data}}}]", "--data.packing.vae_resize", sizes),
    ]


def test_a_recipe_is_encoded_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    shutil.copytree(ROOT / "data_shards/tiny/multi", data)
    assert main(["latents", *recipe(data)]) == 0
    (folder,) = (Path(line) for line in capsys.readouterr().out.split())  # both steps of the chain share it
    assert folder.parent == data / "latents"
    files = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert {"000000.safetensors", "cache.json"} <= files.keys()
    assert main(["latents", *recipe(data)]) == 0
    assert {n: folder.joinpath(n).stat().st_mtime_ns for n in files if n.endswith("tensors")}.items() <= files.items()
    assert main(["shards", "verify", str(data)]) == 0, "beside the set, not of it"


def test_a_remote_set_and_a_missing_one_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latents", *recipe(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
