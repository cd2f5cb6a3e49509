"""Adapters start as nothing, train as the formula says, and merge into plain weights."""

from __future__ import annotations

import pytest
import torch
from model_helpers import tiny_model

from scone_pl.model.lora import LoRAConfig, LoRALinear, add_lora, initial_weights, is_lora_parameter, merged
from scone_pl.model.scone import Scone
from scone_pl.training.parts import part_of, set_trainable


def adapted(config: LoRAConfig, experts: tuple[str, ...] = ("understanding", "generation")) -> Scone:
    model = tiny_model()
    add_lora(model.language_model.model.layers, config, experts)
    with torch.no_grad():
        for _, parameter, value in initial_weights(model, seed=3):
            parameter.copy_(value)
    return model


def test_a_fresh_adapter_changes_nothing_and_a_trained_one_merges() -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 4).double()
    plain = torch.nn.Linear(6, 4).double()
    plain.load_state_dict(base.state_dict())
    layer = LoRALinear(base, LoRAConfig(rank=2, alpha=6.0))
    x = torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        layer.lora_B.weight.zero_()
    assert layer(x).equal(plain(x))
    with torch.no_grad():
        layer.lora_B.weight.normal_()
    whole = plain.weight + 3.0 * layer.lora_B.weight @ layer.lora_A.weight
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, whole, plain.bias))
    result = merged(layer.weight, layer.lora_A.weight, layer.lora_B.weight, layer.scale)
    torch.testing.assert_close(result, whole.float())


@pytest.mark.parametrize("expert", ["understanding", "generation"])
def test_only_the_experts_that_train_get_adapters(expert: str) -> None:
    before = set(tiny_model().state_dict())
    model = adapted(LoRAConfig(rank=2, targets=("q_proj", "down_proj")), (expert,))
    assert before < set(model.state_dict()), "published names stay"
    added = [n for n, _ in model.named_parameters() if is_lora_parameter(n)]
    layers = model.config.decoder.num_layers
    assert len(added) == layers * 2 * 2
    assert {part_of(n) for n in added} == {expert}
    set_trainable(model, (expert, "connector"), lora=True)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == set(added) | {n for n in before if n.startswith("connector.")}


def test_first_values_depend_on_name_and_seed_alone() -> None:
    one, two = adapted(LoRAConfig(rank=4)), adapted(LoRAConfig(rank=4))
    first = {n: p for n, p in one.named_parameters() if is_lora_parameter(n)}
    for name, parameter in two.named_parameters():
        if is_lora_parameter(name):
            assert parameter.equal(first[name])
    a = [p for n, p in first.items() if n.endswith("lora_A.weight")]
    assert all(p.abs().max() <= 1 / p.shape[1] ** 0.5 and p.std() > 0.2 / p.shape[1] ** 0.5 for p in a)
    assert not a[0].equal(a[1])


def test_senseless_adapters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lora\.rank is 0"):
        LoRAConfig(rank=0)
