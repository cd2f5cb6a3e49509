"""The three stages, LoRA, resuming, predicting, exporting and layers on the second base, in the mini-world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from running import ROOT
from safetensors.torch import load_file

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.model.bases import PRESETS
from scone_pl.training.network import network_on_meta
from scone_pl.training.parts import check_parts, count_trainable
from scone_pl.worlds.shapes.base import write_base

START = "runs/second/random"
COMMON = [
    *("--config", str(ROOT / "experiments/neo/mini.yaml"), "--model.init_args.init_from", START),
    *("--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--previews.num_samples", "0"),
    *("--data.packing.token_budget", "700", "--trainer.log_every_n_steps", "1"),
]


@pytest.fixture(scope="module")
def folder(mini_world: Path) -> Path:
    """Random weights beside the shards of the mini-world."""
    write_base(mini_world / START, preset="mini_neo")
    return mini_world


def fit(output: Path, *args: str) -> dict[str, torch.Tensor]:
    assert main(["fit", *COMMON, "--output_dir", str(output), *args]) == 0
    return load_file(output / "weights/model.safetensors") if (output / "weights").exists() else {}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """First words of the names of the weights that differ, generation expert apart."""
    names = [n for n in before if not torch.equal(before[n], after[n])]
    return {"generation" if "language_model" in n and "_mot_gen" in n else n.split(".")[0] for n in names}


def test_each_stage_trains_its_parts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    fit(tmp_path, "--trainer.max_steps", "1")
    weights = [load_file(START + "/model.safetensors")]
    weights += [
        load_file(tmp_path / f"{s}/weights/model.safetensors") for s in ("composition", "formation", "guidance")
    ]
    everything = {"language_model", "generation", "vision_model", "fm_modules"}
    assert changed(weights[0], weights[1]) == everything
    assert changed(weights[1], weights[2]) == {"language_model", "vision_model"}
    assert changed(weights[2], weights[3]) == {"language_model", "generation"}
    exported = tmp_path / "guidance/weights"
    assert json.loads((exported / "config.json").read_text())["model_type"] == "neo_chat"
    assert json.loads((exported / "training.json").read_text())["bridge"]["mode"] == "soft"


def test_questions_alone_train_the_understanding_expert(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    questions = ["--data.train", "[{path: data_shards/mini/questions}]", "--chain", "null", "--trainer.max_steps", "1"]
    trained = fit(tmp_path, *questions)
    assert changed(load_file(START + "/model.safetensors"), trained) == {"language_model", "vision_model"}


@pytest.mark.slow
def test_an_interrupted_run_with_adapters_ends_like_a_whole_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    args = ["--chain", "null", "--model.init_args.lora", "{rank: 2}", "--model.init_args.trainable"]
    args += ["[understanding, generation]", "--model.init_args.optimizer.decay_steps", "0", "--trainer.max_steps"]
    whole = fit(tmp_path / "whole", *args, "2")
    fit(tmp_path / "parts", *args, "1")
    resumed = fit(tmp_path / "parts", *args, "2")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert changed(load_file(START + "/model.safetensors"), whole) == {"language_model", "generation"}


def test_other_parts_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    args = ["--chain", "null", "--trainer.max_steps", "1", "--model.init_args.trainable", "[connector]"]
    assert main(["fit", *COMMON, "--output_dir", str(tmp_path), *args]) == 2
    assert "connector, which this base model lacks; its parts: understanding, generation, patch_embedder" in (
        capsys.readouterr().err
    )


def test_layers_reads_the_understanding_expert_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    resize = "{vae_resize: {max_size: 16, min_size: 16}, vit_resize: {max_size: 16, min_size: 16}}"
    args = ["--checkpoint", START, "--data", "data_shards/mini/multi_candidate", "--samples", "3"]
    assert main(["layers", *args, "--packing", resize, "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out/layers.json").read_text())
    assert set(report["experts"]) == {"inputs", "understanding"}
    assert len(report["experts"]["understanding"]["auroc"]) == 6
    assert "suggested" in report


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_recipes_at_8b(name: str) -> None:
    recipe = yaml.safe_load((ROOT / f"experiments/neo/{name}.yaml").read_text())
    config, common = PRESETS["neo_u15_8b"](), recipe["model"]["init_args"]
    billions = []
    for step in recipe["chain"]:
        settings = common | step.get("model", {}).get("init_args", {})
        check_parts(settings["trainable"], config)
        assert settings.get("bridge", {}).get("last_masked_layer", 0) < config.decoder.num_layers
        billions.append(sum(count_trainable(network_on_meta(config, settings["trainable"])).values()) / 1e9)
    assert billions == pytest.approx([17.497, 17.497] if name == "stage1" else [9.366, 17.452], abs=1e-3)
    with pytest.raises(UserError, match="connector"):
        check_parts(["connector"], config)
