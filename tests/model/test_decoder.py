"""Who may influence whom in the decoder, and what recomputation must not change."""

from __future__ import annotations

import pytest
import torch
from model_helpers import (
    EVERYTHING,
    ONE_REFERENCE,
    SEQUENCE_FORMAT,
    TWO_REFERENCES,
    add_sample,
    make_pack,
    noisy_inputs,
    random_image,
    tiny_model,
)

from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import BridgeConfig
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import PackedSequence, SplitKind

BRIDGE = BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=2, threshold=0.05)
EARLY = BridgeConfig(
    source_layer=0, first_masked_layer=1, last_masked_layer=2, threshold=0.05, hide_references_early=True
)


def in_order(model: Scone, pack: PackedSequence, bridge: BridgeConfig | None, seed: int) -> torch.Tensor:
    """Final states (L, D) in sequence order; `seed` changes the targets' noise alone."""
    latents, times = noisy_inputs(model, pack, seed)
    hidden = model(pack, latents, times, bridge).hidden
    return torch.cat(hidden)[pack.merge_index]


@pytest.mark.parametrize("bridge", [None, BRIDGE, EARLY])
@torch.no_grad()
def test_nothing_depends_on_a_target_but_itself(bridge: BridgeConfig | None) -> None:
    model, pack = tiny_model(), make_pack(*EVERYTHING)
    changed = (in_order(model, pack, bridge, 1) - in_order(model, pack, bridge, 2)).abs().amax(1)
    in_target = pack.per_split([s.kind == SplitKind.TARGET for s in pack.splits]).bool()
    assert changed[~in_target].max() == 0
    assert changed[in_target].min() > 1e-4


@pytest.mark.parametrize("bridge", [None, BRIDGE, EARLY])
@torch.no_grad()
def test_each_of_several_targets_is_as_if_alone(bridge: BridgeConfig | None) -> None:
    """Noise levels of one image share a context and a position."""
    model, logits = tiny_model(), [0.3, -0.4, 1.0]

    def pack_of(logits: list[float]) -> PackedSequence:
        builder = SequenceBuilder(SEQUENCE_FORMAT)
        add_sample(builder, **{**TWO_REFERENCES, "targets": []})
        builder.add_targets(random_image(3, 4, 5), logits)
        return builder.build()

    pack = pack_of(logits)
    latents, times = noisy_inputs(model, pack)
    sizes = [len(s.content) for s in pack.latent_splits]
    per_split = latents.split(sizes)
    together = model(pack, latents, times, bridge).velocity.split(sizes[2:])
    for number, logit in enumerate(logits):
        own = torch.cat([*per_split[:2], per_split[2 + number]])
        velocity = model(pack_of([logit]), own, times[[0, 1, 2 + number]], bridge).velocity
        torch.testing.assert_close(together[number], velocity, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_blocked_reference_still_reaches_text_but_no_target() -> None:
    """With everything blocked from layer 0 on, pixels of references leave the velocity alone, not the text."""
    model = tiny_model(num_layers=3)
    all_blocked = BridgeConfig(
        source_layer=0, first_masked_layer=1, last_masked_layer=2, threshold=1.5, hide_references_early=True
    )
    pack = make_pack({**ONE_REFERENCE, "text": None})
    latents, times = noisy_inputs(model, pack)
    other = latents.clone()
    other[: len(pack.splits[0].content)] += 1
    # Without an instruction there is no mask in layers 1 and 2 (docs/specification.md 5), so the reference is seen.
    assert not model(pack, latents, times, all_blocked).velocity.equal(model(pack, other, times, all_blocked).velocity)
    pack = make_pack(ONE_REFERENCE)
    latents, times = noisy_inputs(model, pack)
    other = latents.clone()
    other[: len(pack.splits[0].content)] += 1
    first, second = (model(pack, x, times, all_blocked) for x in (latents, other))
    words = pack.understanding_row[pack.instruction_index]
    assert (first.hidden.understanding[words] - second.hidden.understanding[words]).abs().max() > 1e-3
    # What remains reaches the target through text and frame tokens, which are no reference tokens.
    through_text = (first.velocity - second.velocity).abs().max()
    seen = (model(pack, latents, times).velocity - model(pack, other, times).velocity).abs().max()
    assert through_text < seen


@pytest.mark.parametrize("bridge", [BRIDGE, EARLY])
def test_recomputation_changes_no_gradient_with_the_bridge(bridge: BridgeConfig) -> None:
    """Also of a loss on the similarity itself."""
    gradients = []
    for checkpointing in (False, True):
        model, pack = tiny_model().train(), make_pack(TWO_REFERENCES, TWO_REFERENCES, ONE_REFERENCE)
        model.language_model.model.activation_checkpointing = checkpointing
        output = model(pack, *noisy_inputs(model, pack), bridge, similarity_grad=True)
        assert output.bridge is not None
        assert 0 < output.bridge.blocked.sum() < pack.reference_tokens.sum()
        (output.velocity.square().mean() + output.bridge.similarity.sum()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient.equal(gradients[1][name]), name


@pytest.mark.parametrize(
    ("training", "kept", "expected"),
    [(False, 0, [1, 1, 1, 1]), (True, 0, [2, 2, 2, 2]), (True, 3, [2, 1, 1, 1]), (True, 9, [1, 1, 1, 1])],
)
def test_which_layers_are_recomputed(training: bool, kept: int, expected: list[int]) -> None:
    model, pack = tiny_model().train(training), make_pack(ONE_REFERENCE)
    model.language_model.model.activation_checkpointing = True
    model.language_model.model.layers_kept = kept
    calls = [0] * len(model.language_model.model.layers)

    def count(layer: torch.nn.Module, *_: object) -> None:
        calls[layer.layer] += 1

    for layer in model.language_model.model.layers:
        layer.register_forward_pre_hook(count)
    model(pack, *noisy_inputs(model, pack)).velocity.sum().backward()
    assert calls == expected
