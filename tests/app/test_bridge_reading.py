"""What the page shows is what sampling computes, and a setting of the bridge costs no forward pass."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from scone_pl.app.comparison import compare
from scone_pl.app.reading import Reading, read
from scone_pl.app.view import comparison_html, preview_html, reading_html
from scone_pl.errors import UserError
from scone_pl.model.config import BridgeConfig
from scone_pl.model.sequence import SplitKind
from scone_pl.sampling.context import Prompt, prefill
from scone_pl.sampling.pipeline import SconePipeline
from scone_pl.sampling.sampler import to_uint8
from scone_pl.sampling.settings import SamplingConfig

LAYERS = {"source_layer": 1, "first_masked_layer": 2, "last_masked_layer": 4}
MIDDLE = 0.4
BRIDGES = {
    "hard": BridgeConfig(**LAYERS, threshold=MIDDLE),
    "soft": BridgeConfig(**LAYERS, threshold=MIDDLE, mode="soft", temperature=0.2),
    "another layer": BridgeConfig(source_layer=3, first_masked_layer=4, last_masked_layer=5, threshold=MIDDLE),
    "inputs": BridgeConfig(source_layer=-1, first_masked_layer=0, last_masked_layer=5, quantile=0.4),
    "no early references": BridgeConfig(**LAYERS, threshold=MIDDLE, hide_references_early=True),
    "dropped": BridgeConfig(**LAYERS, threshold=MIDDLE, drop_blocked=True),
    "quantile": BridgeConfig(**LAYERS, quantile=0.3),
    "otsu": BridgeConfig(**LAYERS, adaptive_threshold="otsu"),
    "rounded": BridgeConfig(**LAYERS, threshold=MIDDLE, threshold_dtype="bfloat16"),
    "measured only": BridgeConfig(**LAYERS, threshold=MIDDLE, apply_mask=False),
}
SETTINGS = SamplingConfig(num_inference_steps=2, guidance_scale=1.0, image_guidance_scale=1.0)


IMAGES = [np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8) for i in range(2)]


@pytest.fixture(scope="module")
def prompt(pipeline: SconePipeline) -> Prompt:
    return pipeline.prompts([IMAGES], ["the left one"])[0]


@pytest.fixture(scope="module")
def reading(pipeline: SconePipeline, prompt: Prompt) -> Reading:
    return read(pipeline, prompt)


@pytest.mark.parametrize("name", BRIDGES)
def test_a_bridge_blocks_what_sampling_blocks_without_a_forward_pass(
    name: str, pipeline: SconePipeline, reading: Reading, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = BRIDGES[name]
    expected = prefill(pipeline.model, pipeline.sequence_format, [prompt], bridge, references=True).bridge
    assert expected is not None
    monkeypatch.setattr(type(pipeline.model), "forward", None)
    state = reading.decide(bridge)
    assert torch.allclose(state.similarity, expected.similarity, atol=1e-5)
    assert torch.equal(state.blocked, expected.blocked)
    assert 0 < int(state.blocked.sum()) < int(reading.pack.reference_tokens.sum())
    assert (state.bias is None) == (expected.bias is None)
    if state.bias is not None and expected.bias is not None:
        assert torch.allclose(state.bias, expected.bias, atol=1e-4)


def test_another_pooling_is_refused(reading: Reading) -> None:
    with pytest.raises(UserError, match=r"bridge\.pooling mean; this bridge has max"):
        reading.decide(BridgeConfig(**LAYERS, pooling="max"))
    for control in ({"oracle": True, "threshold": 0.5}, {"rotation_seed": 0}):
        with pytest.raises(UserError, match=r"leave bridge\.oracle and bridge\.rotation_seed out"):
            reading.decide(BridgeConfig(**{**LAYERS, **control}))


def test_sliders_replace_what_else_would_set_the_threshold() -> None:
    page = pytest.importorskip("scone_pl.app.page")
    for trained in (BridgeConfig(adaptive_threshold="otsu"), BridgeConfig(quantile=0.5)):
        bridge = page._bridge_of(trained, 0.3, 0, "hard", 0.1, 1, 2, 4)
        assert (bridge.threshold, bridge.quantile, bridge.adaptive_threshold) == (0.3, None, None)
        bridge = page._bridge_of(trained, 0.3, 0.8, "hard", 0.1, -1, 0, 4)
        assert (bridge.quantile, bridge.source_layer, bridge.first_masked_layer) == (0.8, -1, 0)


def test_tokens_of_references(reading: Reading) -> None:
    bridge = BRIDGES["hard"]
    blocked = reading.decide(bridge).blocked
    visible = reading.visible(bridge)
    assert [one.tokens for one in visible] == [32, 32]
    assert sum(one.tokens - one.visible for one in visible) == int(blocked.sum())
    for one, split in zip(visible, reading.pack.splits_of(SplitKind.VAE), strict=True):
        own = blocked[split.content.start : split.content.stop].view(4, 4).numpy()
        assert np.array_equal(one.weights, ~own)
    layers = reading.maps(1)
    assert layers.shape == (1 + 6, 4, 4)
    split = reading.pack.splits_of(SplitKind.VIT)[1]
    assert np.array_equal(layers[3].ravel(), reading.similarity[3, split.content.start : split.content.stop].numpy())


def test_tokens_that_a_target_reads(reading: Reading) -> None:
    left = int((~reading.decide(BRIDGES["hard"]).blocked & reading.pack.reference_tokens).sum())
    assert reading.tokens_read(None) == reading.tokens_read(BRIDGES["measured only"]) == 64
    assert reading.tokens_read(BRIDGES["hard"]) == pytest.approx((3 * 64 + 3 * left) / 6)
    assert reading.tokens_read(BRIDGES["dropped"]) == pytest.approx((2 * 64 + 4 * left) / 6)
    assert reading.tokens_read(BRIDGES["no early references"]) == pytest.approx((64 + 3 * left) / 6)
    everything = dataclasses.replace(BRIDGES["hard"], threshold=2.0)
    assert reading.tokens_read(everything) == pytest.approx(3 * 64 / 6)
    soft = BRIDGES["soft"]
    reference = reading.pack.reference_tokens
    weights = torch.sigmoid((reading.similarity[1 + 1][reference] - soft.threshold) / soft.temperature)
    assert reading.tokens_read(soft) == pytest.approx((3 * 64 + 3 * float(weights.sum())) / 6, rel=1e-5)


def test_nothing_to_read_and_layers_that_do_not_exist(pipeline: SconePipeline, reading: Reading) -> None:
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    for images, text in (([], "the left one"), ([image], "")):
        with pytest.raises(UserError, match="at least one reference image and an instruction"):
            read(pipeline, pipeline.prompts([images], [text])[0])
    with pytest.raises(UserError, match="last masked layer is 6; the last is 5"):
        reading.visible(BridgeConfig(source_layer=1, first_masked_layer=2, last_masked_layer=6))


def test_compared_images_are_those_of_the_pipeline(pipeline: SconePipeline, reading: Reading) -> None:
    bridge = BRIDGES["hard"]
    images = list(compare(pipeline, reading, SETTINGS, bridge, [5, 6]))
    assert [(one.seed, one.bridge) for one in images] == [(5, False), (5, True), (6, False), (6, True)]
    for one in images:
        settings = dataclasses.replace(SETTINGS, seed=one.seed, bridge=bridge if one.bridge else None)
        expected = pipeline.generate([reading.prompt], settings).images[0]
        assert np.array_equal(np.asarray(one.image), np.asarray(expected))
        assert one.tokens_read == reading.tokens_read(settings.bridge)
        assert one.seconds > 0
    assert len({one.image.tobytes() for one in images}) == 4
    shown = comparison_html(images[:3], 4)
    assert "3 of 4 images" in shown
    assert [shown.count(f"seed {seed}, bridge {state}</b>") for seed in (5, 6) for state in ("off", "on")] == [
        *(1, 1, 1, 0)
    ]


def test_references_are_shown_as_they_are(pipeline: SconePipeline, reading: Reading) -> None:
    """Whether an input holds pixels as uint8 or as floats in [-1, 1]."""
    output = pipeline.generate([reading.prompt], dataclasses.replace(SETTINGS, bridge=BRIDGES["hard"]))
    assert output.bridge is not None
    for image, here, of_pipeline in zip(IMAGES, reading.references, output.bridge[0], strict=True):
        assert np.array_equal(here, image)
        assert np.array_equal(of_pipeline.reference, image)
    pixels = torch.from_numpy(IMAGES[0]).permute(2, 0, 1)
    as_floats = to_uint8(pixels.double() / 127.5 - 1).int() - to_uint8(pixels).int()
    assert as_floats.abs().max() <= 1


def test_what_is_shown(reading: Reading) -> None:
    shown = reading_html(reading, BRIDGES["soft"])
    visible = reading.visible(BRIDGES["soft"])
    assert shown.count("<img ") == 2 * (2 + 1 + 6)
    assert shown.count('class="source"') == 2
    for one in visible:
        assert f"visible: {one.visible} of 32 tokens</b>, mean weight {one.weights.mean():.2f}" in shown
    from PIL import Image

    escaped = preview_html(Image.new("RGB", (8, 8)), '<script>"x"</script>')
    assert "<script>" not in escaped
