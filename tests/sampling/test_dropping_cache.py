"""Sampling from caches without dropped tokens, against float64 passes over everything with a mask for each layer."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from layer_masks import LayerMasks
from test_cache import GUIDED, MODEL, PROMPTS, SEQUENCE_FORMAT, prompt

from scone_pl import flow
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import BridgeConfig
from scone_pl.sampling.context import Prompt, prefill
from scone_pl.sampling.guidance import RULES
from scone_pl.sampling.sampler import initial_noise, sample

guide = RULES["two_conditions"].guide

DROP = BridgeConfig(source_layer=1, first_masked_layer=2, last_masked_layer=2, threshold=0.1, drop_blocked=True)
EXACT = copy.deepcopy(MODEL).double()
# One more of a layout that is there: three side by side lose different numbers of tokens.
ALL = [*PROMPTS, prompt(7, [((2, 3), (3, 2))], 4, (12, 16)), prompt(8, [((2, 3), (3, 2))], 4, (8, 8))]


@torch.no_grad()
def exact_velocity(
    one: Prompt, bridge: BridgeConfig, latents: torch.Tensor, t: float, *, references: bool = True, text: bool = True
) -> torch.Tensor:
    """Of one guidance branch; what the whole context blocks is blocked in the one without instruction too."""
    packs = {}
    for with_text in (True, text):
        builder = SequenceBuilder(SEQUENCE_FORMAT)
        builder.begin_sample()
        for i, (vae, vit) in enumerate(one.references if references else ()):
            builder.add_vae(vae, reference=i)
            builder.add_vit(vit, reference=i)
        if with_text and one.text_ids is not None:
            builder.add_text(list(one.text_ids))
        builder.add_targets(torch.zeros(3, *one.size), [0.0])
        pack = builder.build()
        packs[with_text] = dataclasses.replace(pack, vit_patches=pack.vit_patches.double())
    whole, pack = packs[True], packs[text]

    def tokens(shown: object) -> torch.Tensor:
        filled = EXACT.encode_images(shown).double()
        return filled.index_copy(0, shown.target_in_latents, latents)

    times = torch.zeros(len(pack.latent_splits), dtype=torch.float64)
    times[-1] = t
    measuring = dataclasses.replace(bridge, drop_blocked=False, apply_mask=False)
    blocked = EXACT(whole, tokens(whole), times, measuring).bridge.blocked
    shown = torch.zeros(len(pack), dtype=torch.bool)
    shown[pack.reference_tokens] = blocked[whole.reference_tokens]
    return EXACT(pack, tokens(pack), times, plan=LayerMasks(pack, bridge, shown)).velocity


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"threshold": -2.0},
        pytest.param({"threshold": 2.0}, marks=pytest.mark.slow),
        {"hide_references_early": True},
        {"quantile": 0.5, "source_layer": -1},
        pytest.param({"source_layer": 0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_equals_passes_with_masks(settings: dict[str, Any]) -> None:
    bridge = dataclasses.replace(DROP, **settings)
    config = dataclasses.replace(GUIDED, bridge=bridge)
    noise = [initial_noise(p, MODEL, SEQUENCE_FORMAT, torch.Generator().manual_seed(i)) for i, p in enumerate(ALL)]
    found = sample(MODEL, SEQUENCE_FORMAT, ALL, config, noise)
    times = flow.time_grid(2, 3.0)
    for one, start, result in zip(ALL, noise, found, strict=True):
        latents = start.double()
        for i in range(2):
            t = times[i].item()
            velocity = guide(
                GUIDED,
                exact_velocity(one, bridge, latents, t),
                exact_velocity(one, bridge, latents, t, text=False),
                exact_velocity(one, bridge, latents, t, references=False),
            )
            latents = flow.euler_step(latents, velocity, times[i].double(), times[i + 1].double())
        torch.testing.assert_close(result.tokens.double(), latents, rtol=0, atol=2e-4 * latents.abs().max().item())
    counts = [sum(int(b.sum()) for b in r.blocked) for r in found]
    if settings == {}:
        assert len({counts[0], counts[1], counts[5]}) > 1, "side by side, with different numbers of blocked tokens"


def test_caches_shrink_by_what_is_dropped() -> None:
    """To the last byte, for prompts side by side that lose equally many."""
    sizes = {}
    for name, bridge in {"whole": None, "dropped": dataclasses.replace(DROP, threshold=2.0)}.items():
        found = prefill(MODEL, SEQUENCE_FORMAT, sorted(PROMPTS, key=lambda p: p.layout), bridge, references=True)
        sizes[name] = sum(cache.nbytes for cache in found.caches)
    blocked = int(found.bridge.blocked.sum())
    decoder = MODEL.config.decoder
    of_token = 2 * decoder.num_kv_heads * decoder.head_dim * 4
    assert blocked > 0
    assert sizes["whole"] - sizes["dropped"] == blocked * of_token * (decoder.num_layers - 1 - DROP.source_layer)
