"""Agreement with the published implementation, and that the report can disagree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scone_pl.__main__ import main
from scone_pl.parity import ParityCase

GOLDEN = Path(__file__).parent / "golden/parity"


@pytest.mark.parametrize("attention", ["split", "dense"])
def test_everything_in_the_golden_folder_agrees(attention: str) -> None:
    comparisons = list(ParityCase(GOLDEN, attention=attention, device="cpu").compare())
    assert [c.name for c in comparisons if not c.agrees] == []
    names = {c.name for c in comparisons}
    assert len(comparisons) == 65
    assert {"bridge.blocked", "train.bridge.loss", "infer.cfg_text_channel.image", "pack.attention_allowed.2"} <= names


def test_exactly_the_wrong_numbers_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "parity"
    shutil.copytree(GOLDEN, folder)
    wrong = [
        "pack.packed_position_ids",
        "train.bridge.last_hidden_state",
        "bridge.blocked",
        "infer.cfg_global.velocity_first",
    ]
    tensors = load_file(folder / "expected.safetensors")
    for name in wrong:
        flat = tensors[name].flatten()
        flat[3] = ~flat[3] if flat.dtype == torch.bool else flat[3] + 1
    save_file(tensors, folder / "expected.safetensors")
    expected = json.loads((folder / "expected.json").read_text())
    expected["train.plain.grad_norms"]["vae2llm.bias"] *= 1.01
    (folder / "expected.json").write_text(json.dumps(expected))
    reported = {c.name for c in ParityCase(folder, attention="split", device="cpu").compare() if not c.agrees}
    assert reported == {*wrong, "train.plain.grad_norms (556)"}


def test_a_wrong_mask_range_changes_the_result(tmp_path: Path) -> None:
    folder = tmp_path / "parity"
    shutil.copytree(GOLDEN, folder)
    expected = json.loads((folder / "expected.json").read_text())
    expected["bridge"]["last_masked_layer"] = 15
    (folder / "expected.json").write_text(json.dumps(expected))
    wrong = [c.name for c in ParityCase(folder, attention="split", device="cpu").compare() if not c.agrees]
    assert "train.bridge.last_hidden_state" in wrong
    assert "train.plain.last_hidden_state" not in wrong


@pytest.mark.parametrize("key", ["config", "special_tokens", "samples", "bridge", "pack"])
@pytest.mark.parametrize("value", [None, []])
def test_a_damaged_description_ends_in_one_line(
    key: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "parity"
    folder.mkdir()
    for file in GOLDEN.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "expected.json").unlink()
    expected = json.loads((GOLDEN / "expected.json").read_text())
    (folder / "expected.json").write_text(json.dumps({**expected, key: value}))
    assert main(["parity", str(folder)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "expected.json" in line


def test_sizes_of_a_description_must_be_the_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "parity"
    shutil.copytree(GOLDEN, folder)
    expected = json.loads((GOLDEN / "expected.json").read_text())
    for name, value in (("vit_max_num_patch_per_side", 9), ("max_latent_size", 64), ("connector_act", "relu")):
        changed = {**expected, "config": {**expected["config"], "scone": {**expected["config"]["scone"], name: value}}}
        (folder / "expected.json").write_text(json.dumps(changed))
        assert main(["parity", str(folder)]) == 2
        assert f"config.scone.{name} is {value!r}" in capsys.readouterr().err


def test_mistakes_end_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["parity", str(tmp_path)]) == 2
    assert main(["parity", str(GOLDEN), "--attention", "flex"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 2
    assert "not a parity folder" in errors[0]
    assert "--device cuda" in errors[1]
