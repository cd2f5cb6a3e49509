"""Every bridge, on every backend, at the head dimensions in use: a step's gradients against dense masks in float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from model_helpers import ONE_REFERENCE, SEVERAL_TARGETS, TWO_REFERENCES, make_pack, noisy_inputs, tiny_model
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module

from scone_pl.model.config import BridgeConfig

BASE = BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=1, threshold=0.1, temperature=0.2)
BASE_UNMASKED = dataclasses.replace(BASE, apply_mask=False)
BRIDGES: dict[str, dict[str, Any]] = {
    "hard": {},
    "soft": {"mode": "soft"},
    "quantile": {"quantile": 0.4},
    "soft quantile": {"mode": "soft", "quantile": 0.4},
    "dropped": {"drop_blocked": True},
    "early": {"hide_references_early": True},
    "soft early": {"mode": "soft", "hide_references_early": True},
}
SIZES = {32: (64, 2, 1), 64: (128, 2, 2), 128: (128, 1, 1)}
"""Head dimension -> hidden size, query heads, key/value heads. The mini models', the usual one, the 7B decoder's."""
QUICK = (("soft", 128),)
"""Besides all bridges at the smallest size."""


@pytest.fixture(autouse=True)
def flex_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention's own backward is refused on the CPU, where it has no kernel; its definition runs there too."""
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)


def step(attention: str, head_dim: int, bridge: BridgeConfig) -> dict[str, Tensor]:
    """Velocity, similarity and all gradients in float64."""
    hidden, heads, kv_heads = SIZES[head_dim]
    model = tiny_model(hidden_size=hidden, num_heads=heads, num_kv_heads=kv_heads, num_layers=3).double()
    model.attention = attention
    pack = make_pack(TWO_REFERENCES, TWO_REFERENCES, ONE_REFERENCE, SEVERAL_TARGETS)
    pack = dataclasses.replace(
        pack, vit_patches=pack.vit_patches.double(), images=tuple(image.double() for image in pack.images)
    )
    latents, times = noisy_inputs(model, pack)
    inputs = pack, latents.double(), times.double()
    with torch.no_grad():
        measured = model(*inputs, BASE_UNMASKED).bridge
    assert measured is not None
    # Between two values, so that rounding decides nothing.
    middle = measured.similarity[pack.reference_tokens].sort().values.unfold(0, 2, 1).mean(1).quantile(0.45).item()
    output = model(*inputs, dataclasses.replace(bridge, threshold=middle))
    output.velocity.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert output.bridge is not None
    fraction = output.bridge.blocked[pack.reference_tokens].double().mean()
    assert 0.1 < fraction < 0.9, "some reference tokens are blocked and some are not"
    return {"velocity": output.velocity.detach(), **gradients}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize(
    ("name", "head_dim"),
    [
        pytest.param(name, size, marks=[] if size == 32 or (name, size) in QUICK else pytest.mark.slow)
        for name in BRIDGES
        for size in SIZES
    ],
)
def test_backends_agree_with_dense_masks(name: str, head_dim: int) -> None:
    bridge = dataclasses.replace(BASE, **BRIDGES[name])
    expected = step("dense", head_dim, bridge)
    tolerance = 1e-9 * max(value.abs().max().item() for value in expected.values())
    for attention in ("split", "flex"):
        results = step(attention, head_dim, bridge)
        assert results.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(results[key], value, rtol=1e-6, atol=tolerance, msg=key)


def test_only_a_soft_bridge_gives_its_source_states_a_gradient_of_the_mask() -> None:
    """The last state that the bridge reads is behind layer 0; its MLP learns from the mask in soft mode alone."""
    name = "language_model.model.layers.0.mlp.down_proj.weight"
    plain = {mode: step("split", 32, dataclasses.replace(BASE, mode=mode)) for mode in ("hard", "soft")}
    steeper = {
        mode: step("split", 32, dataclasses.replace(BASE, mode=mode, temperature=0.05)) for mode in ("hard", "soft")
    }
    assert plain["hard"][name].equal(steeper["hard"][name])
    assert not plain["soft"][name].allclose(steeper["soft"][name], rtol=1e-3)
