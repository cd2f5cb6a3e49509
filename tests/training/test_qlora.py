"""Adapters on quantised weights: what trains, what is exported, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scone_pl.__main__ import main
from scone_pl.model.lora import merged

pytest.importorskip("bitsandbytes")
FIT = [
    *("fit", "--config", "experiments/mini/stage1.yaml", "--chain", "null", "--trainer.logger", "false"),
    *("--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0", "--previews.num_samples", "0"),
    *("--data.packing.token_budget", "600", "--model.init_args.init_from", "runs/mini/base"),
    *("--model.init_args.trainable", "[understanding, generation]", "--model.init_args.quantization", "nf4"),
    *("--model.init_args.sharding.compute_dtype", "bfloat16"),
]
LORA = ["--model.init_args.lora", "{rank: 4, alpha: 8}"]


def fit(folder: Path, steps: int) -> dict[str, torch.Tensor]:
    assert main([*FIT, *LORA, "--trainer.max_steps", str(steps), "--output_dir", str(folder)]) == 0
    return load_file(folder / "weights/model.safetensors")


@pytest.mark.slow
def test_adapters_train_and_are_merged_into_the_original_weights(
    mini_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mini_world)
    found = fit(tmp_path / "run", 2)
    start = load_file("runs/mini/base/model.safetensors")
    adapter = load_file(tmp_path / "run/weights/adapter/adapter_model.safetensors")
    name = "language_model.model.layers.2.mlp_moe_gen.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    assert b.abs().sum() > 0
    assert torch.equal(found[f"{name}.weight"], merged(start[f"{name}.weight"], a, b, 2.0))
    same = [n for n in start if not n.endswith("_proj.weight") and "_moe_gen.weight" not in n]
    assert all(torch.equal(found[n], start[n]) for n in same)


@pytest.mark.slow
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    mini_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mini_world)
    whole = fit(tmp_path / "whole", 4)
    fit(tmp_path / "parts", 2)
    resumed = fit(tmp_path / "parts", 4)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_without_adapters_nothing_could_train(
    mini_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(mini_world)
    assert main([*FIT, "--trainer.max_steps", "1", "--output_dir", str(tmp_path / "run")]) == 2
    assert "quantised weights do not train; add model.init_args.lora" in capsys.readouterr().err
