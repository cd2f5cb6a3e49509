"""Attention over caches by slices, against passes over everything with a dense mask."""

import dataclasses
from functools import partial

import pytest
import torch
from largest import Largest
from pipeline_helpers import BRIDGE, dense_velocity, image, tiny_model

from scone_pl import flow
from scone_pl.model.config import BridgeConfig
from scone_pl.model.sequence import SpecialTokens
from scone_pl.sampling.cache import ContextCache, ContextSpan, RecordingPlan
from scone_pl.sampling.guidance import RULES
from scone_pl.sampling.sampler import Prompt, initial_noise, sample
from scone_pl.sampling.settings import SamplingConfig

guide = RULES["two_conditions"].guide

MODEL = tiny_model(3)
SEQUENCE_FORMAT = MODEL.config.sequence_format(SpecialTokens(0, 1, 2, 3))
dense = partial(dense_velocity, MODEL, SEQUENCE_FORMAT)
GUIDED = SamplingConfig(num_inference_steps=2, guidance_scale=3.0, image_guidance_scale=2.0)


def prompt(seed, references, text, size):
    pairs = tuple((image(*vae, seed + i), image(*vit, seed + 50 + i)) for i, (vae, vit) in enumerate(references))
    ids = None if text is None else tuple(5 + (seed + 7 * i) % 200 for i in range(text))
    return Prompt(
        pairs, ids, size, targets=(((0.0, 0.1 * (seed % 3), 0.6, 1.0),), ((0.5, 0.0, 1.0, 0.5),))[: len(pairs)]
    )


PROMPTS = [
    prompt(0, [((2, 3), (3, 2))], 4, (12, 16)),
    prompt(1, [((2, 3), (3, 2))], 4, (12, 16)),  # the same layout, other tokens blocked
    prompt(2, [], 3, (8, 8)),
    prompt(3, [((2, 2), (2, 2)), ((3, 3), (2, 2))], 5, (12, 16)),
    prompt(4, [((2, 2), (2, 2))], None, (8, 8)),
    prompt(5, [((2, 2), (2, 2))], 0, (8, 8)),  # an empty instruction: begin and end alone
    prompt(6, [], 0, (8, 8)),
]


VARIANTS = [{"mode": "soft", "temperature": 0.1}, {"quantile": 0.5}, {"mode": "soft", "quantile": 0.3}]
ORACLES = [
    {"oracle": True, "threshold": 0.5, "first_masked_layer": 0, "last_masked_layer": 1, "source_layer": 9},
    {"oracle": True, "threshold": 0.5, "mode": "soft"},
]


@pytest.mark.parametrize(
    ("threshold", "early"),
    [
        *((threshold, False) for threshold in (-2.0, 0.0, 0.2, *VARIANTS, *ORACLES)),
        *(pytest.param(threshold, False, marks=pytest.mark.slow) for threshold in (None, 2.0)),
        *((threshold, True) for threshold in (0.2, *VARIANTS)),
        *(pytest.param(threshold, True, marks=pytest.mark.slow) for threshold in (-2.0, 0.0, 2.0)),
    ],
)
def test_equals_dense_passes(threshold, early):
    bridge = None
    if threshold is not None:
        variant = threshold if isinstance(threshold, dict) else {"threshold": threshold}
        bridge = dataclasses.replace(BRIDGE, **variant, hide_references_early=early)
    config = dataclasses.replace(GUIDED, bridge=bridge)
    noise = [initial_noise(p, MODEL, SEQUENCE_FORMAT, torch.Generator().manual_seed(i)) for i, p in enumerate(PROMPTS)]
    found = sample(MODEL, SEQUENCE_FORMAT, PROMPTS, config, noise)
    times = flow.time_grid(2, 3.0)
    for one, latents, result in zip(PROMPTS, noise, found, strict=True):
        for i in range(2):
            t = times[i].item()
            velocity = guide(
                GUIDED,
                dense(one, latents, t, bridge=bridge),
                dense(one, latents, t, bridge=bridge, text=False),
                dense(one, latents, t, references=False),
            )
            latents = flow.euler_step(latents, velocity, times[i], times[i + 1])
        assert torch.allclose(result.tokens, latents, atol=2e-4 * latents.abs().max())
    if threshold == 0.2:
        shares = [b.float().mean().item() for r in found for b in r.blocked]
        assert len(set(shares)) > 2, "prompts side by side with different numbers of blocked tokens"


@pytest.mark.parametrize("mode", ["hard", "soft"])
@torch.no_grad()
def test_a_target_over_its_cache_holds_no_square(mode):
    """Two prompts of 2,000 context tokens that lose different ones, and targets of 1,000: one mask row a prompt."""
    length, own, heads, size = 2000, 1000, 4, 8
    span = ContextSpan(start=0, num_prompts=2, length=length, text_length=10)
    reference = (torch.arange(2 * length) % length) < length - 10
    blocked = reference & (torch.rand(2 * length, generator=torch.Generator().manual_seed(0)) < 0.5)
    bias = torch.where(blocked, -3.0, 0.0) if mode == "soft" else None
    record = RecordingPlan(None)
    record.keys[3], record.values[3] = (torch.randn(2 * length, 2, size) for _ in range(2))
    bridge = BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=3, mode=mode)
    q, k, v = (torch.randn(2 * own, n, size) for n in (heads, 2, 2))
    with Largest() as largest:
        cache = ContextCache(span, own, reference, blocked, bridge, bias)
        cache.fill(record, 3)
        found = cache.attend(q, k, v, 3, with_text=True)
    assert found.shape == q.shape
    assert cache._mask is not None, "this case needs a mask"
    assert largest.elements <= 2 * (length + own) * heads * size
