"""Hybrid sharding computes the same, and a rank that loads a model needs little more memory than for its own shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from model_helpers import tiny_config, tiny_model
from running import run_script
from safetensors.torch import load_file, save_file

from scone_pl.checkpoints.model import config_files
from scone_pl.errors import UserError
from scone_pl.model.scone import Scone
from scone_pl.training.parts import set_trainable
from scone_pl.training.sharding import ShardingConfig, check_launcher, freeze_dtype

SCRIPT = Path(__file__).parent / "sharded_run.py"


@pytest.mark.slow
def test_two_copies_of_two_parts_are_one(tmp_path: Path) -> None:
    (alone,) = run_alone(tmp_path)
    together = run_script(SCRIPT, 4, "hybrid", str(tmp_path), "2")
    for result in together:
        assert result["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert result["norm"] == pytest.approx(alone["norm"], rel=1e-5)
        assert result["restored"]
        assert 0.4 < result["held"] < 0.6, "a copy is held by two ranks"


def run_alone(folder: Path) -> list[dict[str, float]]:
    """The same in this process."""
    from sharded_run import hybrid

    return [hybrid(folder, 1)]


BIG = {"hidden_size": 1024, "intermediate_size": 8192, "num_layers": 8, "num_heads": 8, "num_kv_heads": 4}


@pytest.mark.slow
def test_a_rank_reads_its_share(tmp_path: Path) -> None:
    """1.9 GB of float32 weights on two ranks, from 0.9 GB of bfloat16 files that an index names."""
    config = tiny_config(**BIG)
    torch.manual_seed(0)
    with torch.device("meta"):
        tensors = Scone(config).state_dict()
    names = [name for name in tensors if not name.startswith("autoencoder.")]
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    value = torch.randn(1 << 20).bfloat16()
    for file in sorted(set(files.values())):
        content = {
            n: value.repeat(1 + tensors[n].numel() // len(value))[: tensors[n].numel()].view(tensors[n].shape)
            for n in names
            if files[n] == file
        }
        save_file(content, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    for name, content in config_files(config).items():
        (tmp_path / name).write_text(json.dumps(content))
    save_file({}, tmp_path / "ae.safetensors")

    result = run_script(SCRIPT, 2, "load", str(tmp_path))
    layer = "language_model.model.layers.0.mlp.gate_proj.weight"
    stored = load_file(tmp_path / files[layer])[layer]
    for rank in result:
        assert rank["total"] > 1.8e9
        assert rank["held"] == pytest.approx(rank["total"] / 2, rel=0.02)
        # The whole file, or a whole model, would be 0.9 GB more.
        assert rank["peak"] < rank["held"] + 0.2e9
        assert rank["sum"] == pytest.approx(stored.double().sum().item(), rel=1e-9)


def test_frozen_weights_are_kept_as_they_compute() -> None:
    model = tiny_model()
    set_trainable(model, ("understanding", "connector"))
    freeze_dtype(model, ShardingConfig(compute_dtype="bfloat16"))
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    assert kinds["connector.fc1.weight"] == torch.float32
    assert kinds["language_model.model.layers.0.mlp.up_proj.weight"] == torch.float32
    assert kinds["language_model.model.layers.0.mlp_moe_gen.up_proj.weight"] == torch.bfloat16
    assert kinds["vit_model.vision_model.post_layernorm.weight"] == torch.bfloat16
    with pytest.raises(ValueError, match="replicas is 0"):
        ShardingConfig(replicas=0)


def test_several_machines_need_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_RANK", raising=False)
    check_launcher(1, LightningEnvironment())
    with pytest.raises(UserError, match=r"trainer.num_nodes 2: .* srun or torchrun"):
        check_launcher(2, LightningEnvironment())
    check_launcher(2, TorchElasticEnvironment())
    monkeypatch.setenv("NODE_RANK", "0")
    check_launcher(2, LightningEnvironment())
