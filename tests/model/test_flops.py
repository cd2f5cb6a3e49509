"""Counted FLOPs against torch's counter, which sees every linear map of a real step."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import pytest
import torch
from model_helpers import (
    EVERYTHING,
    SEQUENCE_FORMAT,
    TWO_REFERENCES,
    make_pack,
    random_blocked,
    random_image,
    tiny_model,
)
from torch.utils.flop_counter import FlopCounterMode

from scone_pl.model.attention import dense_mask
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import BridgeConfig
from scone_pl.model.flops import TRAINED, count_tokens, spared_pairs, step_flops
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import PackedSequence
from scone_pl.training.losses import flow_matching, text_cross_entropy
from scone_pl.training.parts import Part, set_trainable


def labelled_pack() -> PackedSequence:
    """Everything that a pack may hold, words to predict included."""
    builder = SequenceBuilder(SEQUENCE_FORMAT)
    builder.begin_sample()
    builder.add_vae(random_image(3, 4, 0), reference=0)
    builder.add_vit(random_image(4, 3, 1), reference=0)
    builder.add_vit(random_image(2, 5, 2), reference=1)
    builder.add_text([5, 6, 7])
    builder.add_text([8, 9, 10], loss=True)
    builder.add_targets(random_image(3, 3, 3), [0.2, -0.3])
    return builder.build()


def of_linear_maps(counter: FlopCounterMode) -> int:
    """Without batched products, which are the attention of small samples on the CPU; fused attention is not seen."""
    return sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "bmm" not in str(op))


def counted_by_torch(model: Scone, pack: PackedSequence) -> tuple[int, int]:
    """FLOPs of forward and backward in linear maps."""
    clean = model.encode_images(pack)
    with FlopCounterMode(display=False) as forward:
        result = flow_matching(model, pack, clean, torch.ones_like(clean))
        loss = result.squared_error.mean() + text_cross_entropy(result.output, pack)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return of_linear_maps(forward), of_linear_maps(backward)


@pytest.mark.parametrize(
    "trained",
    [
        TRAINED,
        (*TRAINED, "vit"),
        ("understanding", "connector"),
        ("generation",),
        ("understanding", "generation", "connector"),
    ],
)
@pytest.mark.parametrize("separate_experts", [True, False], ids=["experts", "dense"])
def test_linear_maps(trained: Collection[Part], separate_experts: bool) -> None:
    model, pack = tiny_model(separate_experts=separate_experts).train(), labelled_pack()
    set_trainable(model, trained)
    counts = count_tokens(pack, 4)
    without_attention = dataclasses.replace(counts, pairs=(0,) * 4, vit_pairs=0)
    flops = step_flops(model.config, without_attention, trained)
    forward, backward = counted_by_torch(model, pack)
    assert sum(flops.forward.values()) == forward
    assert sum(flops.backward.values()) == backward
    assert flops.recomputed < forward


def test_attention() -> None:
    """2 products forward and 4 backward, each of 2 FLOPs a pair and channel."""
    pack, config = make_pack(*EVERYTHING), tiny_model().config
    counts = count_tokens(pack, 4)
    width, pairs = 32, int(dense_mask(pack).sum())
    flops = step_flops(config, counts)
    assert flops.forward["attention"] == 4 * 2 * 2 * pairs * width
    assert flops.backward["attention"] == 2 * flops.forward["attention"]
    vit_pairs = sum((rows * columns) ** 2 for rows, columns in pack.vit_grids)
    without = step_flops(config, dataclasses.replace(counts, vit_pairs=0))
    assert flops.forward["vit"] - without.forward["vit"] == 2 * 2 * vit_pairs * 16
    assert flops.backward["vit"] == 0, "the ViT is frozen and nothing before it trains"


def test_the_bridge_counts_per_layer() -> None:
    pack = make_pack(TWO_REFERENCES, *EVERYTHING)
    blocked = random_blocked(pack, 0, 0.5)
    bridge = BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=2)
    plain, late, early = (int(dense_mask(pack, b).sum()) for b in (None, blocked, pack.reference_tokens))
    assert early < late < plain
    assert count_tokens(pack, 4).pairs == (plain,) * 4
    assert count_tokens(pack, 4, bridge, blocked).pairs == (plain, late, late, plain)
    hiding = dataclasses.replace(bridge, hide_references_early=True)
    assert count_tokens(pack, 4, hiding, blocked).pairs == (early, late, late, plain)
    measuring = dataclasses.replace(bridge, apply_mask=False)
    assert count_tokens(pack, 4, measuring, blocked).pairs == (plain,) * 4


def test_dropped_tokens_cost_nothing_behind_the_source_layer() -> None:
    """Neither attention nor, by torch's count, any linear map."""
    pack = make_pack(TWO_REFERENCES, *EVERYTHING)
    bridge = BridgeConfig(source_layer=0, first_masked_layer=3, last_masked_layer=3, threshold=0.1, drop_blocked=True)
    bridge = dataclasses.replace(bridge, hide_references_early=True)
    model = tiny_model().train()
    set_trainable(model, TRAINED)
    clean = model.encode_images(pack)
    with FlopCounterMode(display=False) as counter:
        output = flow_matching(model, pack, clean, torch.ones_like(clean), bridge=bridge).output
    blocked = output.bridge.blocked
    assert 0 < blocked[pack.latent_index].sum() < blocked.sum() < pack.reference_tokens.sum()
    counts = count_tokens(pack, 4, bridge, blocked)
    mask = dense_mask(pack)
    remaining = int((mask & ~blocked & ~blocked[:, None]).sum())
    assert counts.pairs == (int(dense_mask(pack, pack.reference_tokens).sum()), remaining, remaining, remaining)
    without_attention = dataclasses.replace(counts, pairs=(0,) * 4, vit_pairs=0)
    assert sum(step_flops(model.config, without_attention).forward.values()) == of_linear_maps(counter)


@pytest.mark.parametrize(
    "changes", [{}, {"hide_references_early": True}, {"apply_mask": False}, {"mode": "soft"}, {"last_masked_layer": 3}]
)
def test_spared_pairs_are_the_difference(changes: dict[str, object]) -> None:
    pack = make_pack(TWO_REFERENCES, *EVERYTHING)
    blocked = random_blocked(pack, 0, 0.5)
    bridge = BridgeConfig(**({"source_layer": 0, "first_masked_layer": 1, "last_masked_layer": 2} | changes))
    with_bridge, without = (sum(count_tokens(pack, 4, *b).pairs) for b in ((bridge, blocked), ()))
    assert int(spared_pairs(pack, blocked, 4, bridge)) == without - with_bridge
