"""The bridge against a loop that follows docs/specification.md 5 word by word, and what must not have a mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_helpers import NO_TEXT, ONE_REFERENCE, TWO_REFERENCES, make_pack, tiny_model

from scone_pl.errors import UserError
from scone_pl.model.bridge import Bridge, Similarity, thresholds
from scone_pl.model.bridge.similarity import rotated
from scone_pl.model.config import BridgeConfig
from scone_pl.model.sequence import PackedSequence, SplitKind
from scone_pl.training.losses import flow_matching

CONFIG_088 = BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=2)
CONFIG = BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=2, threshold=0.1)


def test_the_release_compares_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under it 0.88 acts as 0.87695, halfway between two bfloat16 numbers: docs/specification.md 10"""
    pack = make_pack(TWO_REFERENCES)
    similarity = torch.linspace(0.86, 0.89, len(pack))
    monkeypatch.setattr(Similarity, "__call__", lambda self, states: similarity)
    exact, rounded = CONFIG_088, dataclasses.replace(CONFIG_088, threshold_dtype="bfloat16")
    blocked = {}
    for config in (exact, rounded):
        blocked[config.threshold_dtype] = Bridge(config, pack)(torch.empty(0)).blocked
    of_references = pack.reference_tokens
    assert blocked["float32"].equal((similarity < 0.88) & of_references)
    assert blocked["bfloat16"].equal((similarity <= 0.876953125) & of_references)
    assert 0 < blocked["bfloat16"].sum() < blocked["float32"].sum()
    for other in ({"mode": "soft"}, {"quantile": 0.5}):
        with pytest.raises(ValueError, match=r"threshold_dtype bfloat16 needs"):
            BridgeConfig(threshold_dtype="bfloat16", **other)


POOLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": torch.mean,
    "max": torch.max,
    "attention": lambda cosines: (cosines * torch.softmax(10 * cosines, 0)).sum(),
}


def similarity_by_loop(pack: PackedSequence, states: torch.Tensor, pooling: str = "mean") -> torch.Tensor:
    """`states` (L, D) in sequence order."""
    result = torch.ones(len(pack))
    for splits in pack.by_sample:
        text = [s for s in splits if s.kind == SplitKind.TEXT]
        vae = {s.image: s for s in splits if s.kind == SplitKind.VAE}
        for split in (s for s in splits if s.kind == SplitKind.VIT):
            if not text:
                continue
            words = states[text[0].start : text[0].stop]
            for i in split.content:
                cosines = [F.cosine_similarity(states[i], word, dim=0) for word in words]
                result[i] = POOLINGS[pooling](torch.stack(cosines))
            if split.image in vae:
                other = vae[split.image]
                grid = result[split.start + 1 : split.stop - 1].view(1, 1, *split.grid)
                resized = F.interpolate(grid, size=other.grid, mode="bilinear", align_corners=False)
                result[other.start + 1 : other.stop - 1] = resized.flatten()
    return result


@pytest.mark.parametrize(
    "samples",
    [
        (TWO_REFERENCES,),
        (ONE_REFERENCE, TWO_REFERENCES, ONE_REFERENCE),
        (ONE_REFERENCE, {**TWO_REFERENCES, "text": None}),
        ({**ONE_REFERENCE, "references": [((3, 2), None)]}, TWO_REFERENCES),
        ({**ONE_REFERENCE, "references": [(None, (2, 3))]}, TWO_REFERENCES),
        ({"text": 4, "targets": [(2, 2)]}, ONE_REFERENCE),
    ],
)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_similarity_equals_the_loop(samples: tuple[dict[str, object], ...], pooling: Any) -> None:
    pack = make_pack(*samples)
    states = torch.randn(len(pack), 16, generator=torch.Generator().manual_seed(1))
    similarity = Bridge(dataclasses.replace(CONFIG, pooling=pooling), pack).similarity(states[pack.understanding_index])
    torch.testing.assert_close(similarity, similarity_by_loop(pack, states, pooling), rtol=1e-5, atol=1e-6)


def test_the_similarity_by_names_is_the_largest_of_their_means() -> None:
    names = (((0, 2), (2, 3)), ((1, 4),), ())
    pack = dataclasses.replace(make_pack(TWO_REFERENCES, ONE_REFERENCE, NO_TEXT), names=names)
    states = torch.randn(len(pack), 16, generator=torch.Generator().manual_seed(5))
    config = dataclasses.replace(CONFIG, pooling="names")
    similarity = Bridge(config, pack).similarity(states[pack.understanding_index])
    for split in pack.splits_of(SplitKind.VIT):
        words = [i for s in pack.by_sample[split.sample] for tokens in s.instruction for i in tokens][1:-1]
        for i in split.content:
            means = [F.cosine_similarity(states[i], states[words[a:b]]).mean().item() for a, b in names[split.sample]]
            assert similarity[i] == pytest.approx(max(means, default=1.0), abs=1e-5)
    unnamed = dataclasses.replace(pack, names=(names[0], (), ()))
    with pytest.raises(UserError, match=r"s1: bridge\.pooling names needs `names` in the sample's metadata"):
        Bridge(config, unnamed).similarity(states[pack.understanding_index])


def test_the_threshold_is_strict_and_only_references_are_blocked() -> None:
    pack = make_pack(TWO_REFERENCES)
    states = torch.randn(len(pack), 16, generator=torch.Generator().manual_seed(2))[pack.understanding_index]
    similarity = Bridge(CONFIG, pack).similarity(states)
    value = similarity[pack.vit_index].sort().values[3].item()
    state = Bridge(dataclasses.replace(CONFIG, threshold=value), pack)(states)
    assert state.blocked.equal(similarity < value)
    assert not state.blocked[similarity == value].any()
    assert not state.blocked[~pack.reference_tokens].any()
    assert state.blocked.sum() >= 3


def velocity(bridge: BridgeConfig | None, attention: str = "split", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    pack, model = make_pack(TWO_REFERENCES, ONE_REFERENCE), tiny_model().to(dtype)
    model.attention = attention
    pack = dataclasses.replace(pack, vit_patches=pack.vit_patches.to(dtype))
    clean = model.encode_images(pack).to(dtype)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    return flow_matching(model, pack, clean, noise, bridge=bridge).output.velocity


def test_hiding_changes_velocities_and_measuring_does_not() -> None:
    with torch.no_grad():
        plain = velocity(None)
        assert velocity(dataclasses.replace(CONFIG, apply_mask=False)).equal(plain)
        assert velocity(dataclasses.replace(CONFIG, threshold=-1.5)).equal(plain)  # nothing is below it
        everything = velocity(dataclasses.replace(CONFIG, threshold=1.5))
        early = velocity(dataclasses.replace(CONFIG, threshold=-1.5, hide_references_early=True))
        for other in (everything, early):
            assert (other - plain).abs().max() > 1e-3


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("attention", ["split", "flex"])
def test_backends_hide_alike(attention: str, early: bool) -> None:
    config = dataclasses.replace(CONFIG, threshold=0.0, hide_references_early=early)
    with torch.no_grad():
        torch.testing.assert_close(velocity(config, attention), velocity(config, "dense"), rtol=1e-4, atol=1e-5)


def labelled(pack: PackedSequence) -> PackedSequence:
    """The target subjects fill the left half of every reference."""
    splits = (
        dataclasses.replace(s, targets=((0.0, 0.0, 0.5, 1.0),) if s.image is not None else None) for s in pack.splits
    )
    return dataclasses.replace(pack, splits=tuple(splits))


ORACLE = BridgeConfig(oracle=True, first_masked_layer=0, last_masked_layer=1)


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_an_oracle_hides_what_no_target_box_holds_from_any_layer_on(mode: Any) -> None:
    pack, model = labelled(make_pack(TWO_REFERENCES, NO_TEXT, TWO_REFERENCES)), tiny_model()
    clean = model.encode_images(pack)
    found, state = {}, None
    for attention in ("split", "dense"):
        model.attention = attention
        output = flow_matching(model, pack, clean, clean, bridge=dataclasses.replace(ORACLE, mode=mode)).output
        state = output.bridge
        output.velocity.sum().backward()  # a soft bias without a graph of its own passes gradients to all else
        found[attention] = output.velocity.detach()
    torch.testing.assert_close(found["split"], found["dense"], rtol=1e-4, atol=1e-5)
    assert state is not None
    for split in pack.splits_of(SplitKind.VIT, SplitKind.VAE):
        columns = split.grid[1] if split.grid else 0
        right = (torch.arange(len(split.content)) % columns + 0.5) / columns >= 0.5
        assert state.blocked[split.content.start : split.content.stop].equal(right & (split.sample != 1))
    assert not state.blocked[~pack.reference_tokens].any()
    assert state.similarity.unique().tolist() == [0.0, 1.0]


def test_an_oracle_drops_and_needs_boxes() -> None:
    pack, model = labelled(make_pack(ONE_REFERENCE, NO_TEXT)), tiny_model()
    clean = model.encode_images(pack)
    dropping = dataclasses.replace(CONFIG, oracle=True, drop_blocked=True)
    remaining = flow_matching(model, pack, clean, clean, bridge=dropping).output.bridge
    assert remaining is not None
    assert remaining.remaining is not None
    assert len(remaining.remaining.pack) == len(pack) - remaining.blocked.sum()
    plain = make_pack(NO_TEXT, ONE_REFERENCE)
    with pytest.raises(UserError, match=r"s1: bridge\.oracle needs to know the target subjects"):
        flow_matching(model, plain, model.encode_images(plain), model.encode_images(plain), bridge=ORACLE)


@pytest.mark.parametrize(
    "other",
    [
        {"quantile": 0.5}, {"adaptive_threshold": "gap"}, {"pooling": "max"}, {"rotation_seed": 1}, {"threshold": 0.0},
        {"threshold_dtype": "bfloat16"}, {"apply_mask": False}, {"hide_references_early": True},
        {"drop_blocked": True},
    ],
)  # fmt: skip
def test_an_oracle_refuses_what_is_of_a_similarity_or_comes_too_early(other: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"bridge\.oracle|source_layer < first_masked_layer"):
        dataclasses.replace(ORACLE, **other)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_rotation_is_of_the_words_alone_and_as_fixed_as_its_seed(pooling: Any) -> None:
    pack = make_pack(TWO_REFERENCES, ONE_REFERENCE)
    states = torch.randn(len(pack), 16, generator=torch.Generator().manual_seed(4))

    def similarity(seed: int | None) -> torch.Tensor:
        config = dataclasses.replace(CONFIG, pooling=pooling, rotation_seed=seed)
        return Bridge(config, pack).similarity(states[pack.understanding_index])

    turned = states.clone()
    turned[pack.instruction_index] = rotated(states[pack.instruction_index], 7)
    torch.testing.assert_close(similarity(7), similarity_by_loop(pack, turned, pooling), rtol=1e-5, atol=1e-6)
    assert similarity(7).equal(similarity(7))
    assert not similarity(7).allclose(similarity(8))
    one, other = states[:3], states[3:6]
    torch.testing.assert_close(rotated(one, 7) @ rotated(other, 7).T, one @ other.T)
    assert (F.cosine_similarity(one, rotated(one, 7)) < 0.9).all()


SOFT = dataclasses.replace(CONFIG, mode="soft", temperature=0.2, threshold=0.1)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(
    "variant",
    [
        {"mode": "soft"},
        {"quantile": 0.4},
        {"mode": "soft", "quantile": 0.4},
        {"source_layer": -1, "first_masked_layer": 0, "threshold": 0.0},
    ],
)
def test_variants_agree_with_a_dense_float64_reference(variant: dict[str, Any], early: bool) -> None:
    config = dataclasses.replace(CONFIG, temperature=0.2, **variant, hide_references_early=early)
    with torch.no_grad():
        exact = velocity(config, "dense", torch.float64)
        torch.testing.assert_close(velocity(config, "split", torch.float64), exact, rtol=1e-5, atol=1e-6)
        for attention in ("split", "flex"):
            torch.testing.assert_close(velocity(config, attention).double(), exact, rtol=1e-4, atol=1e-5)
        assert (velocity(None, dtype=torch.float64) - exact).abs().max() > 1e-3


def test_the_soft_bias_is_the_equation_and_passes_a_gradient() -> None:
    pack = make_pack(ONE_REFERENCE, {**TWO_REFERENCES, "text": None})
    states = torch.randn(len(pack), 16, generator=torch.Generator().manual_seed(2))[pack.understanding_index]
    state = Bridge(SOFT, pack)(states.requires_grad_())
    assert state.bias is not None
    guided = pack.reference_tokens & (pack.sample_of_token == 0)
    expected = torch.log(torch.sigmoid((state.similarity - 0.1) / 0.2))
    torch.testing.assert_close(state.bias[guided], expected[guided])
    assert not state.bias[~guided].any()
    state.bias.sum().backward()
    assert states.grad is not None
    assert states.grad.abs().sum() > 0

    model = tiny_model()
    clean = model.encode_images(pack)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    slopes = {}
    for name in ("split", "dense"):
        model.attention = name
        model.zero_grad()
        flow_matching(model, pack, clean, noise, bridge=SOFT).squared_error.sum().backward()
        slopes[name] = model.connector.fc1.weight.grad.clone()
    torch.testing.assert_close(slopes["split"], slopes["dense"], rtol=1e-3, atol=1e-5)


def test_an_extremely_steep_soft_mask_is_the_hard_one() -> None:
    with torch.no_grad():
        steep = velocity(dataclasses.replace(SOFT, temperature=1e-5))
        torch.testing.assert_close(steep, velocity(CONFIG), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantile", [0.5, 0.2])
def test_a_quantile_blocks_its_fraction_of_every_image(quantile: float) -> None:
    pack = make_pack(TWO_REFERENCES, ONE_REFERENCE)
    states = torch.randn(len(pack), 16, generator=torch.Generator().manual_seed(2))[pack.understanding_index]
    blocked = Bridge(dataclasses.replace(CONFIG, quantile=quantile, threshold=9.0), pack)(states).blocked
    for split in pack.splits_of(SplitKind.VIT):
        tokens = blocked[split.start + 1 : split.stop - 1]
        assert abs(int(tokens.sum()) - quantile * len(tokens)) < 1


def test_an_adaptive_threshold_separates_two_clusters_of_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = make_pack(TWO_REFERENCES, ONE_REFERENCE)
    similarity, high = torch.ones(len(pack)), torch.zeros(len(pack), dtype=torch.bool)
    for number, split in enumerate(pack.splits_of(SplitKind.VIT)):
        tokens = torch.tensor(list(split.content))
        noise = 0.02 * torch.rand(len(tokens), generator=torch.Generator().manual_seed(number))
        high[tokens] = torch.arange(len(tokens)) >= len(tokens) - 2
        similarity[tokens] = 0.1 * number + noise + 0.3 * high[tokens]  # no threshold serves all images
    monkeypatch.setattr(Similarity, "__call__", lambda self, states: similarity)
    vit = pack.vit_index
    for rule in ("otsu", "gap"):
        blocked = Bridge(dataclasses.replace(CONFIG, adaptive_threshold=rule), pack)(torch.empty(0)).blocked
        assert blocked[vit].equal(~high[vit])
    values = torch.tensor([[0.0, *[0.6] * 10, *[0.9] * 10]])  # 1 * 20 * 0.75^2 = 11.3 is less than 11 * 10 * 0.35^2
    assert thresholds.otsu(values).item() == pytest.approx(0.75)
    assert thresholds.gap(torch.tensor([[0.0, 0.3, 0.35, 0.9]])).item() == pytest.approx(0.625)
    assert thresholds.otsu(torch.tensor([[0.5]])).item() == 0.5
    with pytest.raises(ValueError, match="leave one out"):
        BridgeConfig(quantile=0.5, adaptive_threshold="gap")


def test_similarity_keeps_its_graph_only_on_request() -> None:
    pack, model = make_pack(ONE_REFERENCE), tiny_model()
    clean = model.encode_images(pack)
    for requested in (False, True):
        result = flow_matching(model, pack, clean, clean, bridge=CONFIG, similarity_grad=requested)
        assert result.output.bridge is not None
        assert result.output.bridge.similarity.requires_grad == requested


def test_source_layer_minus_1_reads_what_enters_the_decoder() -> None:
    pack, model = make_pack(TWO_REFERENCES, ONE_REFERENCE), tiny_model()
    entered: list[torch.Tensor] = []
    model.language_model.model.layers[0].register_forward_pre_hook(lambda _, given: entered.append(given[0].detach()))
    clean = model.encode_images(pack)
    result = flow_matching(model, pack, clean, clean, bridge=dataclasses.replace(CONFIG, source_layer=-1))
    assert result.output.bridge is not None
    states = torch.zeros(len(pack), entered[0].shape[1])
    states[pack.understanding_index] = entered[0]
    expected = similarity_by_loop(pack, states)
    torch.testing.assert_close(result.output.bridge.similarity, expected, rtol=1e-5, atol=1e-6)
    assert BridgeConfig(source_layer=-1, first_masked_layer=0, hide_references_early=True).without_effect == (
        "hide_references_early",
    )
    with pytest.raises(UserError, match=r"bridge.source_layer"):
        BridgeConfig(source_layer=-2)


def test_the_first_and_the_last_masked_layer_are_masked() -> None:
    config = BridgeConfig(source_layer=1, first_masked_layer=3, last_masked_layer=5, hide_references_early=True)
    assert [layer for layer in range(8) if config.masks_layer(layer)] == [3, 4, 5]
    assert [layer for layer in range(8) if config.hides_references_in(layer)] == [0, 1]
    assert [layer for layer in range(28) if BridgeConfig().masks_layer(layer)] == list(range(9, 16))


def test_layers_must_be_in_order_and_exist() -> None:
    with pytest.raises(ValueError, match="source_layer < first_masked_layer"):
        BridgeConfig(source_layer=9)
    pack, model = make_pack(ONE_REFERENCE), tiny_model()
    clean = model.encode_images(pack)
    with pytest.raises(ValueError, match=r"last_masked_layer is 15 but the decoder's last layer is 3"):
        flow_matching(model, pack, clean, clean, bridge=BridgeConfig())
