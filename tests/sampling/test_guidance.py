"""Guidance against docs/specification.md 7's formulas, spelled out per token and value."""

from __future__ import annotations

import math
from itertools import combinations
from typing import get_args

import pytest
import torch

from scone_pl.errors import UserError
from scone_pl.sampling.guidance import RULES
from scone_pl.sampling.sampler import SampledLatents, check_finite
from scone_pl.sampling.settings import Rescale, SamplingConfig

guide, guided_at = RULES["two_conditions"].guide, RULES["two_conditions"].guided_at

TOKENS, VALUES = 5, 3


def length(rows: list[list[float]]) -> float:
    return math.sqrt(sum(x * x for row in rows for x in row))


def scaled(rows: list[list[float]], like: list[list[float]], smallest: float) -> list[list[float]]:
    """`rows` times clamp(|like| / |rows|, smallest, 1)."""
    factor = min(max(length(like) / (length(rows) + 1e-8), smallest), 1.0)
    return [[factor * x for x in row] for row in rows]


def by_the_formulas(
    config: SamplingConfig, full: list[list[float]], no_text: list[list[float]], no_image: list[list[float]] | None
) -> list[list[float]]:
    guided = []
    for v, without_text, index in zip(full, no_text, range(TOKENS), strict=True):
        token = [n + config.guidance_scale * (x - n) for x, n in zip(v, without_text, strict=True)]
        if config.guidance_rescale == "text_channel":
            token = scaled([token], [v], config.guidance_rescale_min)[0]
        if no_image is not None:
            token = [n + config.image_guidance_scale * (x - n) for x, n in zip(token, no_image[index], strict=True)]
        if config.guidance_rescale == "channel":
            token = scaled([token], [v], config.guidance_rescale_min)[0]
        guided.append(token)
    return scaled(guided, full, config.guidance_rescale_min) if config.guidance_rescale == "global" else guided


@pytest.mark.parametrize("rescale", ["global", "channel", "text_channel"])
@pytest.mark.parametrize("rescale_min", [0.0, 0.4])
@pytest.mark.parametrize("with_image", [False, True])
def test_guide_follows_the_formulas(rescale: Rescale, rescale_min: float, with_image: bool) -> None:
    config = SamplingConfig(
        guidance_scale=3.0,
        image_guidance_scale=1.5,
        guidance_rescale=rescale,
        guidance_rescale_min=rescale_min,
    )
    generator = torch.Generator().manual_seed(1)
    # Tokens whose guided velocity is much longer, about as long and shorter: every end of the clamp is met.
    spread = torch.tensor([0.02, 0.1, 0.3, 1.0, 3.0]).double()[:, None]
    full = torch.randn(2, TOKENS, VALUES, generator=generator, dtype=torch.float64)
    no_text = full - spread * torch.randn(full.shape, generator=generator, dtype=torch.float64)
    no_text[:, 0] = 1.2 * full[:, 0]  # guided is shorter than `full`: it must not be made longer
    no_image = full + spread * torch.randn(full.shape, generator=generator, dtype=torch.float64)
    found = guide(config, full, no_text, no_image if with_image else None)
    for i in range(2):
        image = no_image[i].tolist() if with_image else None
        expected = by_the_formulas(config, full[i].tolist(), no_text[i].tolist(), image)
        torch.testing.assert_close(found[i], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_modes_of_rescaling_differ() -> None:
    full, no_text, no_image = torch.randn(3, 1, TOKENS, VALUES, generator=torch.Generator().manual_seed(0)).unbind()
    results = [guide(SamplingConfig(guidance_rescale=mode), full, no_text, no_image) for mode in get_args(Rescale)]
    for a, b in combinations(results, 2):
        assert (a - b).abs().max() > 0.01


def test_rescaling_never_lengthens_and_keeps_the_direction() -> None:
    full, no_text = torch.randn(2, 3, TOKENS, VALUES, generator=torch.Generator().manual_seed(0)).unbind()
    free = no_text + 4 * (full - no_text)
    cases: dict[Rescale, tuple[int, ...]] = {"global": (1, 2), "channel": (2,)}
    for mode, dims in cases.items():
        guided = guide(SamplingConfig(guidance_rescale=mode), full, no_text, None)
        limit = torch.linalg.vector_norm(full, dim=dims)
        assert bool((torch.linalg.vector_norm(guided, dim=dims) <= limit + 1e-5).all())
        cosine = torch.cosine_similarity(guided.flatten(1), free.flatten(1)) if mode == "global" else None
        if cosine is not None:
            torch.testing.assert_close(cosine, torch.ones(3))


def test_when_guidance_acts() -> None:
    config = SamplingConfig(guidance_interval=(0.4, 0.9))
    times = torch.tensor([0.4, 0.41, 0.9, 0.91])
    assert [guided_at(config, t) for t in times] == [False, True, True, False]
    assert guided_at(SamplingConfig(), torch.tensor(1.0))
    off = SamplingConfig(guidance_scale=1.0, image_guidance_scale=1.0)
    assert not guided_at(off, torch.tensor(0.5))
    assert not off.needs_image_branch
    assert SamplingConfig(image_guidance_scale=1.5).needs_image_branch


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_image(value):
    tokens = torch.zeros(4, 3)
    check_finite(SampledLatents(tokens, (2, 2)), "x.png")
    tokens[1, 2] = value
    with pytest.raises(UserError, match=r"^x\.png: sampling gave values that are not finite"):
        check_finite(SampledLatents(tokens, (2, 2)), "x.png")
