"""Quantised weights: how near they are, what they cost, and what computes with them."""

from __future__ import annotations

import pytest
import torch
from model_helpers import TWO_REFERENCES, make_pack, tiny_model
from torch import nn

from scone_pl.errors import UserError
from scone_pl.model.adapted import AdaptedLinear
from scone_pl.model.lora import LoRAConfig, LoRALinear, add_lora
from scone_pl.model.quantized import (
    QuantizableLinear,
    Quantization,
    check_quantization,
    quantize_layers,
    quantized_weights,
    weight_shapes,
)
from scone_pl.model.scone import Scone

pytest.importorskip("bitsandbytes")
KINDS = {"int8": (0.01, 8.0), "nf4": (0.1, 4.5)}
"""Kind -> largest relative error of a product with normal weights, and bits a weight."""


def quantized(linear: nn.Linear, kind: Quantization) -> QuantizableLinear:
    module = QuantizableLinear(linear)
    weight = linear.weight.detach().clone()
    module.quantize(kind)
    module.set_weight(weight)
    return module


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return ((x.float() - y.float()).norm() / y.float().norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_product_and_gradient_are_near(kind: Quantization, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(96, 130).to(dtype), torch.randn(7, 96, dtype=dtype)
    module = quantized(linear, kind)
    error, bits = KINDS[kind]
    held = module.codes.nbytes + module.scales.nbytes
    rows = 32 * 130 if kind == "int8" else 0
    assert 8 * held == bits * 96 * 130 + rows
    assert distance(module(x), linear(x)) < error
    upstream = torch.randn(7, 130, dtype=dtype)
    gradients = []
    for each in (linear, module):
        entering = x.clone().requires_grad_()
        each(entering).backward(upstream)
        gradients.append(entering.grad)
    assert distance(gradients[1], gradients[0]) < error
    exact = upstream @ module.restored(dtype)
    assert torch.equal(gradients[1], exact), "of the weight that the forward pass used"


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_dtype_leaves_codes_and_scales_as_they_are(kind: Quantization) -> None:
    module = quantized(nn.Linear(64, 8), kind)
    before = module.restored(torch.float32)
    module.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(module.restored(torch.float32), before)
    assert not [name for name in module.state_dict() if name != "bias"]


def test_rows_of_zeros_and_ones_outside_the_range_of_others() -> None:
    linear = nn.Linear(64, 3, bias=False)
    linear.weight.data = torch.stack([torch.zeros(64), torch.ones(64), 1000 * torch.ones(64)])
    for kind in KINDS:
        assert torch.allclose(quantized(linear, kind).restored(torch.float32), linear.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_all_projections_of_both_experts_and_nothing_else(kind: Quantization) -> None:
    model = tiny_model()
    shapes = weight_shapes(model)
    quantize_layers(model.language_model.model.layers, kind)
    assert weight_shapes(model) == shapes
    names = {name for name, _ in quantized_weights(model)}
    assert names == {n for n in shapes if ".layers." in n and "_proj" in n and n.endswith("weight") and "vit" not in n}
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_on_a_quantised_map_act_as_on_the_map_it_restores(kind: Quantization) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    plain = nn.Linear(64, 48)
    plain.weight.data, plain.bias.data = quantized(linear, kind).restored(torch.float32), linear.bias.data
    a, b, x = torch.randn(2, 64), torch.randn(48, 2), torch.randn(5, 64)
    found, expected = AdaptedLinear(quantized(linear, kind)), AdaptedLinear(plain)
    for module in (found, expected):
        module.add("one", a, b, 0.5, torch.float32)
        module.activate({"one": 2.0})
    assert torch.allclose(found(x), expected(x), atol=1e-5)
    back = found.plain()
    assert isinstance(back, QuantizableLinear)
    assert torch.allclose(back(x), plain(x), atol=1e-5)

    layer = nn.ModuleList([nn.ModuleDict({"q_proj": plain})])
    add_lora(layer, LoRAConfig(rank=2), ("understanding",))
    trained = layer[0]["q_proj"]
    assert isinstance(trained, LoRALinear)
    with torch.no_grad():
        trained.lora_B.weight.normal_()
    before, weight = trained(x), plain.weight.detach().clone()
    quantize_layers(layer, kind)
    trained.set_weight(weight)
    assert distance(trained(x), before) < KINDS[kind][0]
    trained(x).sum().backward()
    assert {n for n, p in trained.named_parameters() if p.grad is not None} >= {"lora_A.weight", "lora_B.weight"}


def test_an_unknown_kind_and_a_missing_library_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'fp3' is not one of int8, nf4"):
        check_quantization("fp3")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        check_quantization("nf4")
    check_quantization("int8")


@pytest.mark.parametrize("kind", KINDS)
def test_velocity_of_the_whole_network(kind: Quantization) -> None:
    model, pack = tiny_model(), make_pack(TWO_REFERENCES)
    latents, times = model.encode_images(pack), torch.full((len(pack.latent_splits),), 0.5)
    expected = velocity(model, pack, latents, times)
    stored = {name: p.detach().clone() for name, p in model.named_parameters()}
    quantize_layers(model.language_model.model.layers, kind)
    for name, module in quantized_weights(model):
        module.set_weight(stored[name])
    assert distance(velocity(model, pack, latents, times), expected) < 6 * KINDS[kind][0]


def velocity(model: Scone, pack: object, latents: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(pack, latents, times).velocity
