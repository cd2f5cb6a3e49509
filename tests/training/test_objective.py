"""What a stage minimises: weights, noise, threshold, and the gradient of a whole step."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from golden_step import CPU, GOLDEN, OBJECTIVES, gradients, make_batch, make_model, step_loss
from torch import Tensor

from scone_pl.model.config import BridgeConfig
from scone_pl.training import losses
from scone_pl.training.losses import AlignmentConfig
from scone_pl.training.objective import Objective, PackLosses


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_of_a_step_is_the_recorded_one(name: str) -> None:
    """Of every parameter, in norm and in direction; a parameter that stops to train would be missing."""
    expected, result = json.loads(GOLDEN.read_text())[name], gradients(OBJECTIVES[name])
    assert result.keys() == expected.keys()
    for key, (norm, product) in expected.items():
        assert result[key][0] == pytest.approx(norm, rel=1e-3, abs=1e-6), key
        assert result[key][1] == pytest.approx(product, rel=1e-3, abs=1e-3 * norm + 1e-6), key


def test_gradient_is_that_of_the_loss() -> None:
    """Along itself, against central differences."""
    model, batch, objective = make_model(), make_batch(), OBJECTIVES["soft"]
    step_loss(model, objective, batch).backward()
    trained = [p for p in model.parameters() if p.grad is not None]
    norm = torch.stack([p.grad.double().square().sum() for p in trained]).sum().sqrt().float()
    step = 2e-3
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for p in trained:
                p += sign * step * p.grad / norm
            values.append(step_loss(model, objective, batch).item())
            for p in trained:
                p -= sign * step * p.grad / norm
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(norm.item(), rel=1e-2)


def test_every_part_has_its_weight() -> None:
    """Sums over a pack become means over all tokens of a step; 3 packs, 40 targets, 8 labels."""
    objective = Objective(text_loss_weight=0.5, alignment=AlignmentConfig(weight=3.0))
    pack = PackLosses(squared_error=torch.tensor(20.0), cross_entropy=torch.tensor(4.0), alignment=torch.tensor(0.25))
    step = objective.step_losses(pack, targets=40, labels=8, packs=3)
    assert step.named() == {"loss": 1.5 + 0.5 * 1.5 + 3 * 0.25, "flow": 1.5, "text": 1.5, "alignment": 0.25}
    without = objective.step_losses(dataclasses.replace(pack, alignment=None), targets=40, labels=8, packs=3)
    assert without.named() == {"loss": 2.25, "flow": 1.5, "text": 1.5}
    empty = PackLosses(squared_error=torch.tensor(0.0), cross_entropy=torch.tensor(0.0))
    assert objective.step_losses(empty, targets=0, labels=0, packs=2).total == 0


@pytest.fixture
def noises(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Clean latents and noise of all forward passes."""
    seen: list[tuple[Tensor, Tensor]] = []
    original = losses.flow_matching

    def spy(model, pack, clean, noise, **settings):
        seen.append((clean, noise))
        return original(model, pack, clean, noise, **settings)

    monkeypatch.setattr(losses, "flow_matching", spy)
    return seen


def test_noise_and_posterior_follow_the_seed_of_the_batch(
    noises: list[tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They differ from step to step, and repeat when a step is made again."""
    model, objective = make_model(), Objective()
    encode = model.encode_images

    def sampling(pack, generator, *, sample):
        """As an autoencoder with a posterior of unit variance."""
        mean = encode(pack)
        return mean + torch.randn(mean.shape, generator=generator) if sample else mean

    monkeypatch.setattr(model, "encode_images", sampling)
    for seed, sample in ((1, True), (1, True), (2, True), (1, False), (2, False)):
        objective.pack_losses(model, make_batch(seed), CPU, sample_posterior=sample)
    (clean, noise), again, other, mean, other_mean = noises
    assert again[0].equal(clean)
    assert again[1].equal(noise)
    assert not other[0].isclose(clean).any()
    assert not other[1].isclose(noise).any()
    assert mean[0].equal(other_mean[0]), "in validation the posterior's mean is taken"
    drawn = clean - mean[0]
    assert not drawn.isclose(noise).any(), "the posterior's draw is not the noise that is predicted"
    for draw in (noise, drawn):
        assert draw.mean().abs() < 0.2
        assert draw.std() == pytest.approx(1, abs=0.2)
    assert len(set(noise.flatten().tolist())) == noise.numel(), "every value of every token has its own"


@pytest.mark.parametrize(
    "bridge",
    [
        BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=2, threshold=0.3),
        BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=2, quantile=0.5),
    ],
    ids=["threshold", "quantile"],
)
def test_alignment_is_measured_from_the_threshold_of_the_bridge(bridge: BridgeConfig) -> None:
    objective = Objective(bridge=bridge, alignment=AlignmentConfig(weight=1.0, temperature=0.2))
    batch = make_batch()
    result = objective.pack_losses(make_model(), batch, CPU, sample_posterior=False)
    pack, state = batch.sequence, result.bridge
    (start,) = [s.content.start for s in pack.splits if s.sample == pack.num_samples - 1 and s.kind.name == "VIT"]
    similarity = state.similarity[start : start + 6]
    threshold = bridge.threshold if bridge.quantile is None else similarity.quantile(bridge.quantile)
    target = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])  # the fourth token's label is unknown
    logits = ((similarity - threshold) / 0.2)[[0, 1, 2, 4, 5]]
    assert result.alignment.item() == pytest.approx(F.binary_cross_entropy_with_logits(logits, target).item(), rel=1e-5)
    assert Objective(bridge=bridge).pack_losses(make_model(), batch, CPU, sample_posterior=False).alignment is None
