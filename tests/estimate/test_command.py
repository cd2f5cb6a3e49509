"""`python -m scone_pl estimate` on the recipes themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.cli.stages import stages
from scone_pl.estimate.memory import encode_bytes
from scone_pl.estimate.settings import recipe_of
from scone_pl.estimate.speed import pack_flops
from scone_pl.estimate.state import Network
from scone_pl.estimate.workload import typical_pack
from scone_pl.gpus import GPUS, peak_of, read_gpus

STAGE1, STAGE2 = (str(ROOT / f"experiments/{name}.yaml") for name in ("stage1", "stage2"))
RECIPES = ("stage1", "stage2", "mini/stage1", "mini/stage2", "photos/stages")
FORMATION = {"understanding", "connector"}
GUIDANCE = {"understanding", "generation"}
COMPOSITION = {"understanding", "generation", "connector", "latent_projections"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["scone_pl"])


def estimate(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """What --json prints."""
    assert main(["estimate", *args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_stage_two_without_weights(capsys: pytest.CaptureFixture[str]) -> None:
    result = estimate(capsys, "--config", STAGE2, "--devices", "2,8,32", "--gpu", "h100", "a100-40", "--mfu", "0.2")
    assert result["model"].startswith("preset bagel_7b")
    assert 14.6e9 < sum(result["parameters"].values()) < 14.7e9
    formation, guidance = result["stages"]
    assert (set(formation["trains"]), set(guidance["trains"])) == (FORMATION, GUIDANCE)
    for stage in (formation, guidance):
        assert (stage["steps"], stage["tokens"], stage["activation_checkpointing"]) == (1000, 26496, True)
        assert stage["trained_parameters"] == sum(result["parameters"][part] for part in stage["trains"])
        assert [c["plan"]["name"] for c in stage["cases"]] == ["full shard"] * 3 + ["4 x 8 hybrid"]
    eight = guidance["cases"][1]
    assert eight["gpus"]["h100"]["fits"]
    assert not eight["gpus"]["a100-40"]["fits"]
    assert not guidance["cases"][0]["gpus"]["h100"]["fits"]
    assert "8 GPUs" in guidance["advice"]["h100"]
    assert "LoRA" in guidance["advice"]["h100"]
    sizes = eight["bytes"]
    trained = guidance["trained_parameters"]
    assert sizes["optimizer"] == pytest.approx(trained, rel=1e-3), "8 bytes over 8 ranks"
    state = sum(sizes[name] for name in ("weights", "autoencoder", "gradients", "optimizer", "buffers"))
    assert state + sizes["activations"] < sizes["peak"] < sizes["needed"]
    hybrid, full = guidance["cases"][3], guidance["cases"][2]
    assert hybrid["bytes"]["weights"] == sizes["weights"] > full["bytes"]["weights"]
    flops, time = guidance["flops"], eight["gpus"]["h100"]
    assert time["step_seconds"] == pytest.approx(flops["total"] / (989e12 * 0.2))
    assert time["hours"] == pytest.approx(1000 * time["step_seconds"] / 3600)
    assert time["cost"] == pytest.approx(time["hours"] * 8 * GPUS["h100"].price)
    assert full["gpus"]["h100"]["hours"] == pytest.approx(time["hours"] / 4), "the same tokens on 4 times the GPUs"
    assert flops["total"] == sum(flops["forward"].values()) + sum(flops["backward"].values())
    assert 0 < flops["recomputed"] < flops["total"] / 2
    assert formation["flops"]["backward"]["generation"] < guidance["flops"]["backward"]["generation"]


@pytest.mark.parametrize("name", ["full", "half", "latents"])
def test_latents_and_the_autoencoder_s_precision(name: str) -> None:
    """Latents computed before cost nothing in a step; half the precision takes half the memory and the same FLOPs."""
    changes = {
        "full": [],
        "half": ["--model.init_args.autoencoder_dtype", "bfloat16"],
        "latents": ["--data.latents", "true"],
    }
    recipe = recipe_of(
        stages(["fit", "--config", str(ROOT / "experiments/icons/stage1.yaml"), *changes[name]]), "icons"
    )
    stage = recipe.stages[0]
    counted = pack_flops(recipe.config, stage, typical_pack(recipe.config, stage.packing)).encode
    assert (counted == 0) == (name == "latents")
    memory = Network.of(recipe.config, stage.trained)
    weights = memory.state(stage.plan, autoencoder_dtype=stage.autoencoder_dtype).autoencoder
    full = memory.state(stage.plan).autoencoder
    assert weights == (full // 2 if name == "half" else full) > 0
    encode = encode_bytes(recipe.config, 32, stage.autoencoder_dtype) / encode_bytes(recipe.config, 32)
    assert 0.4 < encode < 0.7 if name == "half" else encode == 1


@pytest.mark.slow
def test_overrides_and_a_folder_s_own_sizes(bagel_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["--model.init_args.init_from", str(bagel_folder)]
    args = ["--config", STAGE1, *start, "--chain", "null", "--data.packing.token_budget", "12000"]
    args += ["--trainer.accumulate_grad_batches", "3", "--model.init_args.activation_checkpointing", "false"]
    result = estimate(capsys, *args, "--devices", "8")
    assert result["model"] == str(bagel_folder)
    (stage,) = result["stages"]
    assert set(stage["trains"]) == COMPOSITION
    assert (stage["tokens"], stage["packs_a_step"], stage["steps"]) == (12000, 3, 6000)
    assert not stage["activation_checkpointing"]
    assert "activation_checkpointing true" in stage["advice"]["h100"]
    seconds = stage["cases"][0]["gpus"]["h100"]["step_seconds"]
    assert seconds == pytest.approx(3 * stage["flops"]["total"] / (989e12 * 0.4))


@pytest.mark.slow
def test_lora_and_the_average(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--config", STAGE2, "--chain", "null", "--devices", "1", "--model.init_args.ema.decay", "0.99"]
    full = estimate(capsys, *args)["stages"][0]
    assert "LoRA (model.init_args.lora {rank: 16})" in full["advice"]["h100"]
    (case,) = full["cases"]
    assert case["bytes"]["ema"] == case["bytes"]["gradients"] == 4 * full["trained_parameters"]
    adapters = estimate(capsys, *args, "--model.init_args.lora", "{rank: 8}")["stages"][0]
    assert adapters["cases"][0]["gpus"]["h100"]["fits"]
    connector, widths = 16.98e6, 2 * 3584 + 2 * (3584 + 512) + 2 * 3584 + 3 * (3584 + 18944)
    assert adapters["trained_parameters"] == pytest.approx(connector + 28 * 8 * widths, rel=1e-3)
    assert adapters["flops"]["total"] < full["flops"]["total"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_without_their_weights(recipe: str) -> None:
    result = recipe_of(stages(["fit", "--config", str(ROOT / f"experiments/{recipe}.yaml")]))
    assert all(stage.steps > 0 and stage.trained for stage in result.stages)
    preset = {"mini": "preset mini,", "photos": "preset mini_photo,"}.get(recipe.split("/")[0], "preset bagel_7b,")
    assert result.source.startswith(preset)


@pytest.mark.slow
def test_a_laptop_s_recipe_and_the_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["estimate", "--config", str(ROOT / "experiments/mini/stage1.yaml"), "--devices", "1,2"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "preset mini, as experiments/mini/base_weights is not there",
        "understanding",
        "refined",
        "whole",
        "fits:",
        "list val",
    ):
        assert text in printed
    assert "does not fit" not in printed


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--devices", "0"], "--devices 0: give numbers of GPUs"),
        (["--devices", "a,b"], "--devices a,b: give numbers of GPUs"),
        (["--gpu", "h1000"], "--gpu h1000: one of h100, "),
        (["--mfu", "40"], "--mfu is 40"),
        (["--mfu", "x"], "mfu: Expected a float"),
        (["--references", "0"], "--references is 0; it must be a whole number"),
        (["--gpu_file", "none.yaml"], "--gpu_file none.yaml: no such file"),
        (["--trainer.max_stepz", "3"], "--trainer.max_stepz"),
    ],
)
def test_mistakes_are_one_line(args: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--config", STAGE2, *args]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert expected in lines[0]


def test_own_gpus(tmp_path: Path) -> None:
    file = tmp_path / "gpus.yaml"
    file.write_text("h100: {price: 2.5}\nmine: {name: My GPU, tflops: 100, memory_gib: 16, price: 0.1}\n")
    table = read_gpus(file)
    assert (table["h100"].price, table["h100"].tflops) == (2.5, GPUS["h100"].tflops)
    assert table["mine"].name == "My GPU"
    file.write_text("mine: {tflops: 100}\n")
    with pytest.raises(ValueError, match="mine needs tflops, memory_gib and price"):
        read_gpus(file)
    file.write_text("h100: {prize: 1}\n")
    with pytest.raises(ValueError, match="h100 needs"):
        read_gpus(file)


def test_peaks_of_known_devices() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of("NVIDIA GeForce RTX 4090") == 165e12
    assert peak_of("NVIDIA H100 PCIe") is None
    assert peak_of("Quadro P400") is None
