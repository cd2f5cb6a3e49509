"""What training leaves: exported folders are bit-identical where nothing trained, and hold what was trained."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scone_pl.__main__ import main
from scone_pl.checkpoints.model import from_pretrained
from scone_pl.errors import UserError
from scone_pl.model.lora import LoRAConfig, add_lora, initial_weights, is_lora_parameter
from scone_pl.model.scone import Scone
from scone_pl.parity import ParityCase
from scone_pl.training import results
from scone_pl.training.ema import EMA, EMAConfig
from scone_pl.training.runs import weights_identity
from scone_pl.training.snapshots import SnapshotWriter, snapshot_name

GOLDEN = Path(__file__).parents[1] / "golden/parity"


@pytest.fixture
def start(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "start"))


def snapshot_of(
    model: Scone, start: Path, run: Path, ema: EMA | None = None, lora: dict[str, Any] | None = None
) -> Path:
    """As a run would write it."""
    described = {"stage": "Composition", "steps": 7, "init_from": str(start), "lora": lora}
    described["start"] = weights_identity(start)
    tensors: dict[str, Any] = {"model": {n: p for n, p in model.named_parameters() if p.requires_grad}}
    if ema is not None:
        tensors["ema"] = ema.average
    path = run / "checkpoints" / snapshot_name(7)
    writer = SnapshotWriter()
    writer.write(tensors, {"scone": described}, path)
    writer.wait()
    return path


def same_bytes(one: Path, two: Path) -> bool:
    return load_file(one).keys() == load_file(two).keys() and all(
        tensor.dtype == load_file(two)[name].dtype and tensor.equal(load_file(two)[name])
        for name, tensor in load_file(one).items()
    )


@pytest.mark.slow
def test_untrained_weights_come_out_as_they_went_in(start: Path, tmp_path: Path, capsys: Any) -> None:
    snapshot_of(from_pretrained(start), start, tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert "Composition after step 7" in capsys.readouterr().out
    for name in ("model.safetensors", "ae.safetensors"):
        assert same_bytes(start / name, tmp_path / "out" / name)
    for name in ("llm_config.json", "vit_config.json", "vae_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (start / name).read_bytes()
    assert json.loads((tmp_path / "out/training.json").read_text())["steps"] == 7
    for file in start.glob("expected.*"):
        shutil.copy(file, tmp_path / "out")
    comparisons = list(ParityCase(tmp_path / "out", attention="split", device="cpu").compare())
    assert len(comparisons) == 65
    assert all(c.agrees for c in comparisons)


def test_a_run_that_is_not_sharded_is_exported_too(start: Path, tmp_path: Path, capsys: Any) -> None:
    described = {"stage": "Composition", "steps": 7, "init_from": str(start), "lora": None}
    described["start"] = weights_identity(start)
    state = {f"model.{name}": 2 * p for name, p in from_pretrained(start).named_parameters() if "connector" in name}
    file = tmp_path / "run/checkpoints" / snapshot_name(7)
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": state, "scone": described}, file)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "out"))
    assert all(after[n].equal(before[n] * (2 if "connector" in n else 1)) for n in before)
    assert main(["export", str(file), str(tmp_path / "average"), "--weights", "ema"]) == 2
    assert "holds no average" in capsys.readouterr().err
    inner = tmp_path / "run.pt"  # of a sharded snapshot: its tensors are beside it
    torch.save({"scone": described}, inner)
    assert main(["export", str(inner), str(tmp_path / "inner")]) == 2
    assert "holds no weights; give the snapshot" in capsys.readouterr().err


@pytest.mark.slow
def test_bfloat16_weights_stay_bfloat16(start: Path, tmp_path: Path) -> None:
    """As published; training keeps float32 masters, of which the untrained ones round back to the same bits."""
    half = {n: t.bfloat16() for n, t in load_file(start / "model.safetensors").items()}
    save_file(half, start / "model.safetensors")
    model = from_pretrained(start)  # in float32
    with torch.no_grad():
        model.vae2llm.weight += 0.25
    path = snapshot_of(model, start, tmp_path / "run")
    assert main(["export", str(path), str(tmp_path / "out")]) == 0
    result = load_file(tmp_path / "out/model.safetensors")
    assert {t.dtype for t in result.values()} == {torch.bfloat16}
    assert [n for n in half if not result[n].equal(half[n])] == ["vae2llm.weight"]
    assert result["vae2llm.weight"].equal((half["vae2llm.weight"].float() + 0.25).bfloat16())
    assert main(["export", str(path), str(tmp_path / "full"), "--dtype", "float32"]) == 0
    assert load_file(tmp_path / "full/model.safetensors")["vae2llm.weight"].equal(model.vae2llm.weight)


def test_adapters_are_merged_and_kept_by_peft_names(start: Path, tmp_path: Path) -> None:
    config = LoRAConfig(rank=2, alpha=4.0, targets=("q_proj",))
    model = from_pretrained(start)
    add_lora(model.language_model.model.layers, config, ("generation",))
    with torch.no_grad():
        for name, parameter, value in initial_weights(model, 0):
            parameter.copy_(value if "lora_A" in name else value + 0.5)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_lora_parameter(name))
    lora = {"rank": 2, "alpha": 4.0, "targets": ["q_proj"]}
    path = snapshot_of(model, start, tmp_path / "run", lora=lora)
    assert main(["export", str(path), str(tmp_path / "out")]) == 0
    before, after = load_file(start / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    changed = [n for n in before if not after[n].equal(before[n])]
    layers = range(len(model.language_model.model.layers))
    assert set(changed) == {f"language_model.model.layers.{i}.self_attn.q_proj_moe_gen.weight" for i in layers}
    adapter = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    stem = "base_model.model.language_model.model.layers.0.self_attn.q_proj_moe_gen.lora_"
    change = 2.0 * adapter[f"{stem}B.weight"] @ adapter[f"{stem}A.weight"]
    torch.testing.assert_close(after[changed[0]], before[changed[0]] + change)
    described = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    pattern = r"language_model\.model\.layers\.\d+\.self_attn\.q_proj_moe_gen"
    modules = {name for name, module in from_pretrained(start).named_modules() if re.fullmatch(pattern, name)}
    assert {f"base_model.model.{name}.lora_{x}.weight" for name in modules for x in "AB"} == adapter.keys()
    assert (described["r"], described["lora_alpha"], described["target_modules"]) == (2, 4.0, pattern)


def test_adapters_and_weights_appear_together(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    model = from_pretrained(start)
    add_lora(model.language_model.model.layers, LoRAConfig(rank=1), ("understanding",))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_lora_parameter(name))
    lora = {"rank": 1, "alpha": 1.0, "targets": ["q_proj"]}
    path = snapshot_of(model, start, tmp_path / "run", lora=lora)

    def fail(*_: Any) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(results, "adapter_config", fail)
    assert main(["export", str(path), str(tmp_path / "out")]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_the_average_is_exported_by_choice(start: Path, tmp_path: Path) -> None:
    model = from_pretrained(start).requires_grad_(False)
    model.connector.requires_grad_(True)
    ema = EMA(model.named_parameters(), decay=0.75)
    first = model.connector.fc1.bias.detach().clone()
    for change in (1.0, 2.0):
        with torch.no_grad():
            model.connector.fc1.bias += change
        ema.update()
    path = snapshot_of(model, start, tmp_path / "run", ema)
    assert main(["export", str(path), str(tmp_path / "out"), "--weights", "ema"]) == 0
    result = load_file(tmp_path / "out/model.safetensors")["connector.fc1.bias"]
    # 0.75 (0.75 w + 0.25 (w + 1)) + 0.25 (w + 3)
    torch.testing.assert_close(result, first + 0.75 * 0.25 * 1 + 0.25 * 3)
    assert json.loads((tmp_path / "out/training.json").read_text())["weights"] == "ema"
    with pytest.raises(ValueError, match="less than 1"):
        EMAConfig(decay=1.0)


def test_a_damaged_snapshot_is_named(start: Path, tmp_path: Path, capsys: Any) -> None:
    path = snapshot_of(from_pretrained(start), start, tmp_path / "run")
    (path / "__0_0.distcp").write_bytes((path / "__0_0.distcp").read_bytes()[:2000])
    assert main(["export", str(path), str(tmp_path / "out")]) == 2
    assert "step-000007: not readable" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_mistakes_are_named(start: Path, tmp_path: Path, capsys: Any) -> None:
    path = snapshot_of(from_pretrained(start), start, tmp_path / "chain/formation")

    def complaint(*args: str) -> str:
        assert main(["export", *args]) == 2
        return capsys.readouterr().err

    out = str(tmp_path / "out")
    assert "a chain; give one of its steps, formation" in complaint(str(tmp_path / "chain"), out)
    assert "holds no average" in complaint(str(path), out, "--weights", "ema")
    assert "exists and is no exported folder" in complaint(str(path), str(start))
    assert "not a snapshot, run.pt is missing" in complaint(str(start), out)
    (start / "training.json").write_text("{}")  # so it may be the weights of a stage before
    assert "started from, and is still needed" in complaint(str(path), str(start))
    (start / "training.json").unlink()
    (tmp_path / "moved").mkdir()
    moved = start.rename(tmp_path / "moved/start")
    assert "give its present path as --start" in complaint(str(path), out)
    assert main(["export", str(path), out, "--start", str(moved)]) == 0
    (moved / "training.json").write_text("{}")
    assert "other weights than those" in complaint(str(path), out, "--start", str(moved))
