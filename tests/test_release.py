"""The baseline of the benchmarks computes what scone_pl computes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent / "model"))
from model_helpers import EVERYTHING, SEQUENCE_FORMAT, make_pack, noisy_inputs, random_image, tiny_model

from benchmarks import release
from scone_pl.model.attention import ATTENTION_BACKENDS
from scone_pl.model.config import BridgeConfig
from scone_pl.sampling.context import Prompt
from scone_pl.sampling.sampler import sample
from scone_pl.sampling.settings import SamplingConfig


@pytest.mark.parametrize("mode", ["off", "hard", "soft"])
def test_a_step(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTENTION_BACKENDS, "release", release.ReleasePlan)
    model, pack = tiny_model(), make_pack(*EVERYTHING)
    bridge = None
    if mode != "off":
        bridge = BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=2, threshold=0.1, mode=mode)
    inputs, results = noisy_inputs(model, pack), []
    for attention in ("split", "release"):
        model.attention = attention
        model.zero_grad()
        if attention == "release":
            with release.release_layers():
                velocity = model(pack, *inputs, bridge).velocity
        else:
            velocity = model(pack, *inputs, bridge).velocity
        velocity.square().sum().backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        results.append([velocity, *gradients])
    ours, theirs = results
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=1e-5 * b.abs().max().item() + 1e-5)


def test_sampling() -> None:
    model = tiny_model()
    references = tuple((random_image(3, 3, i), random_image(2, 3, 10 + i)) for i in range(2))
    prompt = Prompt(references, (5, 6, 7), (12, 12))
    config = SamplingConfig(num_inference_steps=3)
    noise = torch.randn(9, model.config.latent_token_size, generator=torch.Generator().manual_seed(0))
    expected = sample(model, SEQUENCE_FORMAT, [prompt], config, [noise])[0].tokens
    *_, latents = release.sample(model, SEQUENCE_FORMAT, prompt, noise, config)
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-4)
