"""Dynamic attention rebalancing against its formulas, by loops in float64, and against passes without a cache."""

import dataclasses
import math

import pytest
import torch
from pipeline_helpers import BRIDGE, dense_velocity, image, tiny_model

from scone_pl import flow
from scone_pl.errors import UserError
from scone_pl.model.attention import DensePlan
from scone_pl.model.sequence import SpecialTokens
from scone_pl.sampling.rebalancing import rebalanced
from scone_pl.sampling.sampler import Prompt, initial_noise, sample
from scone_pl.sampling.settings import AttentionRebalancingConfig, SamplingConfig

MODEL = tiny_model(3)
SEQUENCE_FORMAT = MODEL.config.sequence_format(SpecialTokens(0, 1, 2, 3))
STRONG = AttentionRebalancingConfig(strength=0.5, high=0.6, low=0.4)
CONFIG = SamplingConfig(
    num_inference_steps=1, guidance_scale=1.0, image_guidance_scale=1.0, attention_rebalancing=STRONG
)


def factors_by_loops(q, references, config):
    """q (H, T, E) and references (K, R, E) -> R factors, in float64, from the formulas."""
    heads, total, size = q.shape
    count = min(config.num_queries, total)
    received = [0.0] * references.shape[1]
    for head in range(heads):
        keys = references[head * references.shape[0] // heads].double()
        for i in range(count):
            logits = [float(q[head, i * total // count].double() @ key) / math.sqrt(size) for key in keys]
            top = max(logits)
            weights = [math.exp(logit - top) for logit in logits]
            received = [r + w / sum(weights) for r, w in zip(received, weights, strict=True)]
    least, most = min(received), max(received)
    shares = [0.5 if most == least else (r - least) / (most - least) for r in received]
    up, down = 1 + config.strength, 1 - config.strength
    return [up if s >= config.high else down if s <= config.low else 1.0 for s in shares]


@pytest.mark.parametrize("num_queries", [3, 64])
def test_equals_the_formulas(num_queries):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 7, 8, generator=generator)
    keys = torch.randn(2, 2, 11, 8, generator=generator)
    config = AttentionRebalancingConfig(num_queries=num_queries, high=0.5)
    found = rebalanced(q, keys, 6, config)
    for prompt in range(2):
        expected = factors_by_loops(q[prompt], keys[prompt, :, :6], config)
        assert {0.85, 1.15} <= set(expected)
        torch.testing.assert_close(
            found[prompt, :, :6], keys[prompt, :, :6] * torch.tensor(expected)[:, None], rtol=1e-6, atol=0
        )
    assert torch.equal(found[:, :, 6:], keys[:, :, 6:]), "what is no reference keeps its keys"


def test_tokens_that_receive_the_same_keep_their_keys():
    keys = torch.ones(1, 2, 5, 8)
    q = torch.randn(1, 4, 3, 8)
    assert torch.equal(rebalanced(q, keys, 5, STRONG), keys)
    assert rebalanced(q, keys, 0, STRONG) is keys
    assert rebalanced(q, keys, 5, AttentionRebalancingConfig(strength=0.0)) is keys


def prompt(seed, references, text):
    pairs = tuple((image(*vae, seed + i), image(*vit, seed + 50 + i)) for i, (vae, vit) in enumerate(references))
    return Prompt(pairs, tuple(5 + (seed + 7 * i) % 200 for i in range(text)), (12, 16))


class RebalancedDense(DensePlan):
    """Attention of all tokens at once; target queries see keys that the loops above have scaled."""

    def __call__(self, q, k, v, layer):
        plain = super().__call__(q, k, v, layer)
        reference = self.pack.reference_tokens
        targets = [s for s in self.pack.splits if s.kind.name == "TARGET"]
        rows = slice(targets[-1].start, targets[-1].stop)
        scaled = k.clone()
        factors = factors_by_loops(q[rows].transpose(0, 1), k[reference].transpose(0, 1), STRONG)
        scaled[reference] *= torch.tensor(factors)[:, None, None]
        plain[rows] = super().__call__(q, scaled, v, layer)[rows]
        return plain


@torch.no_grad()
def test_equals_passes_without_a_cache():
    """Two prompts of one layout side by side, one of two references, and one without any."""
    prompts = [
        prompt(0, [((2, 3), (3, 2))], 4),
        prompt(1, [((2, 3), (3, 2))], 4),
        prompt(3, [((2, 2), (2, 2)), ((3, 3), (2, 2))], 5),
        prompt(5, [], 3),
    ]
    noise = [initial_noise(p, MODEL, SEQUENCE_FORMAT, torch.Generator().manual_seed(i)) for i, p in enumerate(prompts)]
    found = sample(MODEL, SEQUENCE_FORMAT, prompts, CONFIG, noise)
    off = sample(MODEL, SEQUENCE_FORMAT, prompts, dataclasses.replace(CONFIG, attention_rebalancing=None), noise)
    times = flow.time_grid(1, CONFIG.timestep_shift)
    for one, latents, result, plain in zip(prompts, noise, found, off, strict=True):
        plan = RebalancedDense if one.references else DensePlan
        velocity = dense_velocity(MODEL, SEQUENCE_FORMAT, one, latents, times[0].item(), plan=plan)
        expected = flow.euler_step(latents, velocity, times[0], times[1])
        torch.testing.assert_close(result.tokens, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))
        changed = float((result.tokens - plain.tokens).abs().max() / plain.tokens.abs().max())
        assert (changed > 0.01) == bool(one.references)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strength": 2.0}, "attention_rebalancing.strength"),
        ({"low": 0.8}, "it must be less than attention_rebalancing.high"),
        ({"num_queries": 0}, "attention_rebalancing.num_queries"),
        ({"gamma": 0.15}, "attention_rebalancing has no gamma; choose from high, low, num_queries, strength"),
        (0.15, "attention_rebalancing is 0.15; it must be null or a mapping"),
    ],
)
def test_wrong_settings_are_named(given, message):
    with pytest.raises(UserError, match=message):
        SamplingConfig(attention_rebalancing=given)
    with pytest.raises(UserError, match="leave one of them out"):
        SamplingConfig(attention_rebalancing={}, bridge=BRIDGE)
