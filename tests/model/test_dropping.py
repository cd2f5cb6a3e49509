"""Tokens that leave the network, against float64 passes over everything with a mask for each layer."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from layer_masks import LayerMasks
from model_helpers import (
    NO_TEXT,
    ONE_REFERENCE,
    SEQUENCE_FORMAT,
    SEVERAL_TARGETS,
    TEXT_ONLY,
    TEXT_TO_IMAGE,
    TWO_REFERENCES,
    add_sample,
    make_pack,
    noisy_inputs,
    random_image,
    tiny_model,
)

from scone_pl.model.bridge import Remaining
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import BridgeConfig
from scone_pl.model.network import NetworkOutput
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import PackedSequence

DROP = BridgeConfig(source_layer=1, first_masked_layer=2, last_masked_layer=2, threshold=0.2, drop_blocked=True)


def answered() -> PackedSequence:
    """An instruction, an answer to be predicted, two targets; beside a sample of the same layout."""
    builder = SequenceBuilder(SEQUENCE_FORMAT)
    for seed in (0, 5):
        add_sample(builder, references=TWO_REFERENCES["references"], text=3, seed=seed)
        builder.add_text([7 + seed, 8, 9], loss=True)
        builder.add_targets(random_image(2, 3, seed), [0.1, -0.4])
    return builder.build()


PACKS = {
    "one": make_pack(TWO_REFERENCES),
    "equal layouts": make_pack(TWO_REFERENCES, TWO_REFERENCES, TWO_REFERENCES),
    "all kinds": make_pack(
        TEXT_ONLY, ONE_REFERENCE, ONE_REFERENCE, TEXT_TO_IMAGE, NO_TEXT, SEVERAL_TARGETS, SEVERAL_TARGETS
    ),
    "half references": make_pack(
        {**ONE_REFERENCE, "references": [((3, 2), None), ((2, 2), (2, 2))]}, {**ONE_REFERENCE, "references": []}
    ),
    "long text": make_pack(*2 * [{**ONE_REFERENCE, "text": 300}]),
    "answers": answered(),
    "no references": make_pack(TEXT_TO_IMAGE),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "threshold": {},
    "early": {"hide_references_early": True},
    "nothing": {"threshold": -2.0},
    "everything": {"threshold": 2.0},
    "quantile": {"quantile": 0.5},
    "source 0, masked 3": {"source_layer": 0, "first_masked_layer": 3, "last_masked_layer": 3},
}


def quick(pack: str, attention: str, settings: str) -> bool:
    """Whether `make test` has this case: every pack, and every setting with all kinds of splits."""
    return settings == "threshold" or (pack in ("all kinds", "answers") and attention == "split")


def in_float64(model: Scone, pack: PackedSequence) -> tuple[PackedSequence, torch.Tensor, torch.Tensor]:
    """`model` turns too; pack, latents and timesteps of a training pass."""
    latents, times = noisy_inputs(model, pack)
    model.double()
    return dataclasses.replace(pack, vit_patches=pack.vit_patches.double()), latents.double(), times.double()


def gradients(model: Scone, output: NetworkOutput) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (output.velocity.square().sum() + output.text_logits.square().sum()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("pack", "attention", "settings"),
    [
        pytest.param(pack, kind, settings, marks=[] if quick(pack, kind, settings) else pytest.mark.slow)
        for pack, kind, settings in itertools.product(PACKS, ("split", "dense"), SETTINGS)
    ],
)
def test_equals_masks_in_every_later_layer(pack: str, attention: str, settings: str) -> None:
    compare(PACKS[pack], attention, dataclasses.replace(DROP, **SETTINGS[settings]))


def compare(pack: PackedSequence, attention: str, bridge: BridgeConfig) -> None:
    model = tiny_model()
    inputs = in_float64(model, pack)
    model.attention = attention
    ours = model(*inputs, bridge)
    blocked = ours.bridge.blocked
    reference = model(*inputs, plan=LayerMasks(pack, bridge, blocked))
    torch.testing.assert_close(ours.velocity, reference.velocity, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.text_logits, reference.text_logits, rtol=1e-6, atol=1e-7)
    ours_hidden, hidden = (torch.cat(output.hidden)[pack.merge_index] for output in (ours, reference))
    assert not ours_hidden[blocked].any()
    torch.testing.assert_close(ours_hidden[~blocked], hidden[~blocked], rtol=1e-6, atol=1e-6)
    results, expected = gradients(model, ours), gradients(model, reference)
    assert results.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(results[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_it_is_more_than_a_mask() -> None:
    """And there are samples of equal layout that lose different numbers of tokens."""
    model, pack = tiny_model(), PACKS["equal layouts"]
    inputs = noisy_inputs(model, pack)
    with torch.no_grad():
        dropped = model(pack, *inputs, DROP)
        masked = model(pack, *inputs, dataclasses.replace(DROP, last_masked_layer=3, drop_blocked=False))
    assert (dropped.velocity - masked.velocity).abs().max() > 1e-3
    remaining = dropped.bridge.remaining
    assert remaining.present is not None
    assert len({sum(s.length for s in splits) for splits in remaining.pack.by_sample}) == 1
    counts = torch.bincount(pack.sample_of_token[dropped.bridge.blocked], minlength=3).tolist()
    assert len(set(counts)) > 1
    assert min(counts) > 0


def test_an_image_may_lose_all_its_tokens_but_its_frame() -> None:
    pack = PACKS["equal layouts"]
    blocked = torch.zeros(len(pack), dtype=torch.bool)
    for split in pack.by_sample[1][:2]:
        blocked[split.start + 1 : split.stop - 1] = True
    blocked[torch.tensor(pack.by_sample[0][3].content)] = True
    remaining = Remaining(pack, blocked)
    lengths = [s.length for s in remaining.pack.by_sample[0]]
    assert lengths == [s.length for s in pack.by_sample[0]], "filled up to the longest of the three"
    alone = Remaining(make_pack(TWO_REFERENCES), blocked[pack.sample_of_token == 0])
    assert [s.length for s in alone.pack.splits] == [*lengths[:3], 2, *lengths[4:]]
    assert alone.present is None
    model = tiny_model()
    inputs = in_float64(model, pack)
    x = model.embed(*inputs)
    back = remaining.restore(remaining.take(x))
    kept = torch.cat(x)[pack.merge_index].masked_fill(blocked[:, None], 0)
    assert torch.cat(back)[pack.merge_index].equal(kept)


@torch.no_grad()
def test_flex_attention_drops_alike() -> None:
    model, pack = tiny_model(), PACKS["all kinds"]
    inputs = noisy_inputs(model, pack)
    results = {}
    for name in ("flex", "split"):
        model.attention = name
        results[name] = model(pack, *inputs, DROP).velocity
    torch.testing.assert_close(results["flex"], results["split"], rtol=1e-4, atol=1e-5)


def test_recomputation_changes_no_gradient() -> None:
    results = []
    for checkpointing in (False, True):
        model, pack = tiny_model().train(), PACKS["equal layouts"]
        model.language_model.model.activation_checkpointing = checkpointing
        results.append(gradients(model, model(pack, *noisy_inputs(model, pack), DROP)))
    for name, gradient in results[0].items():
        assert gradient.equal(results[1][name]), name


@pytest.mark.parametrize("settings", [{"mode": "soft"}, {"apply_mask": False}])
def test_only_a_hard_mask_can_drop(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"bridge\.drop_blocked needs bridge\.mode hard and bridge\.apply_mask true"):
        dataclasses.replace(DROP, **settings)
