"""Predicted bytes of weights, gradients and optimizer against those of a model that trains, sharded and whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from measuring import allocated_peak
from model_helpers import EVERYTHING, TWO_REFERENCES, make_pack, tiny_model
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from scone_pl.estimate.activations import step_activations
from scone_pl.estimate.memory import rank_memory
from scone_pl.estimate.state import Network, Plan
from scone_pl.model.config import bagel_7b
from scone_pl.model.lora import LoRAConfig, add_lora
from scone_pl.model.scone import Scone
from scone_pl.training.ema import EMA
from scone_pl.training.gradients import local_shard
from scone_pl.training.losses import flow_matching, text_cross_entropy
from scone_pl.training.parts import Part, set_trainable
from scone_pl.training.sharding import ShardingConfig, freeze_dtype, shard

STAGES: dict[str, tuple[Part, ...]] = {
    "composition": ("understanding", "generation", "connector", "latent_projections"),
    "formation": ("understanding", "connector"),
    "guidance": ("understanding", "generation"),
}


@pytest.fixture
def rank_of_four() -> Iterator[None]:
    """This process as rank 0 of 4 whose collectives do nothing: sizes are all that matters."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes on this rank."""
    return sum(local_shard(t).numel() * t.element_size() for t in tensors)


def trained_model(
    trained: tuple[Part, ...], sharding: ShardingConfig | None, lora: LoRAConfig | None = None
) -> tuple[Scone, torch.optim.AdamW]:
    """A tiny model after one optimizer step."""
    model = tiny_model().train()
    if lora is not None:
        add_lora(model.language_model.model.layers, lora, trained)
    set_trainable(model, trained, lora=lora is not None)
    if sharding is not None:
        mesh = init_device_mesh("cpu", (4, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
        freeze_dtype(model, sharding)
        shard(model, mesh, sharding)
    pack = make_pack(*EVERYTHING)
    clean = model.encode_images(pack)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    result = flow_matching(model, pack, clean, torch.ones_like(clean))
    (result.squared_error.mean() + text_cross_entropy(result.output, pack)).backward()
    optimizer.step()
    return model, optimizer


def check(
    model: Scone, optimizer: torch.optim.AdamW, trained: tuple[Part, ...], plan: Plan, lora: LoRAConfig | None = None
) -> None:
    """Every number of `RankState`, to the byte."""
    state = Network.of(model.config, trained, lora).state(plan)
    named = dict(model.named_parameters())
    autoencoder = [n for n in named if n.startswith("autoencoder.")]
    assert state.weights == held(p for n, p in named.items() if n not in autoencoder)
    assert state.autoencoder == held(named[n] for n in autoencoder)
    assert state.gradients == held(p.grad for p in named.values() if p.grad is not None)
    assert state.optimizer == held(t for s in optimizer.state.values() for t in s.values() if t.ndim)
    assert state.buffers == held(model.buffers())


@pytest.mark.parametrize("stage", STAGES)
def test_whole_model(stage: str) -> None:
    check(*trained_model(STAGES[stage], None), STAGES[stage], Plan("whole", compute="float32"))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
def test_sharded_over_four_ranks(stage: str, replicas: int, compute: Any, rank_of_four: None) -> None:
    config = ShardingConfig(replicas=replicas, compute_dtype=compute)
    plan = Plan("sharded", 4, replicas, compute)
    check(*trained_model(STAGES[stage], config), STAGES[stage], plan)


def test_lora(rank_of_four: None) -> None:
    lora, sharding = LoRAConfig(rank=3, targets=("q_proj", "down_proj")), ShardingConfig()
    model, optimizer = trained_model(STAGES["composition"], sharding, lora)
    check(model, optimizer, STAGES["composition"], Plan("sharded", 4), lora)
    network = Network.of(model.config, STAGES["composition"], lora)
    state = network.state(Plan("sharded", 4), ema=True)
    average = EMA(model.named_parameters(), 0.9).average
    assert state.ema == held(average.values())
    counts = network.count(trained=True)
    assert counts["generation"] == 4 * 3 * (32 + 32 + 48 + 32)
    assert network.count()["generation"] > 10 * counts["generation"]


@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
def test_what_fsdp_gathers_stays_below_the_estimate(compute: Any, rank_of_four: None) -> None:
    """Allocations of forward and backward on the CPU, where nothing overlaps; on CUDA the next layer comes early."""
    trained = STAGES["guidance"]
    model = tiny_model(num_layers=6, hidden_size=256, intermediate_size=1024, vocab_size=64).train()
    set_trainable(model, trained)
    model.language_model.model.activation_checkpointing = True
    sharding = ShardingConfig(compute_dtype=compute)
    freeze_dtype(model, sharding)
    shard(model, init_device_mesh("cpu", (4, 1), mesh_dim_names=("data_parallel", "tensor_parallel")), sharding)
    pack = make_pack(TWO_REFERENCES)
    clean = model.encode_images(pack)

    def step() -> None:
        result = flow_matching(model, pack, clean, torch.ones_like(clean))
        (result.squared_error.mean() + text_cross_entropy(result.output, pack)).backward()

    step()
    model.zero_grad()
    peak = allocated_peak(step)
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[compute]
    activations = step_activations(model.config, pack, trained, dtype=dtype)
    plan = Plan("sharded", 4, compute=compute)
    memory = rank_memory(Network.of(model.config, trained), plan, activations, 0)
    estimated = memory.state.gradients + memory.gathered + activations.peak
    assert 0.5 * estimated < peak < estimated


def test_the_published_model() -> None:
    """docs/specification.md 2: about 14.6 B parameters, 29 GB in bf16; the parts from its table of sizes."""
    network = Network.of(bagel_7b(), STAGES["guidance"])
    counts = network.count()
    hidden, kv, inner, layers, words = 3584, 4 * 128, 18944, 28, 152064
    attention = 2 * hidden**2 + 2 * hidden * kv + hidden + 2 * kv + 2 * 128
    expert = layers * (attention + 3 * hidden * inner + 2 * hidden) + hidden
    assert counts["generation"] == expert
    assert counts["understanding"] == expert + 2 * words * hidden
    assert counts["connector"] == 1152 * hidden + hidden + hidden**2 + hidden
    assert counts["latent_projections"] == 64 * hidden + hidden + hidden * 64 + 64
    assert counts["time_embedder"] == 256 * hidden + hidden + hidden**2 + hidden
    assert 400e6 < counts["vit"] < 405e6
    assert 83e6 < counts["autoencoder"] < 85e6
    total = sum(counts.values())
    assert 14.6e9 < total < 14.7e9
    assert 29e9 < 2 * total < 29.5e9
    state = network.state(Plan("sharded", 8))
    trained = counts["understanding"] + counts["generation"]
    assert state.optimizer == pytest.approx(8 * trained / 8, rel=1e-4)
    assert state.gradients == pytest.approx(4 * trained / 8, rel=1e-4)
    layer, vocabulary, root = network.units()
    assert vocabulary.weights == vocabulary.trained == words * hidden
    assert root.weights < 0.1e9, "no matrix of the vocabulary stays gathered"
    assert layer.weights * layers + 2 * vocabulary.weights + root.weights + counts["autoencoder"] == pytest.approx(
        total - 26 * 15.2e6, rel=2e-3
    ), "all but the ViT's layers"
