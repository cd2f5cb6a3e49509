"""Autoencoders: exact where they must be, and every image by itself."""

from __future__ import annotations

import math

import pytest
import torch
from model_helpers import random_image

from scone_pl.model.config import AutoencoderConfig, bagel_7b
from scone_pl.model.scone import Scone
from scone_pl.model.vae import Autoencoder, build_autoencoder, latents_to_tokens, tokens_to_latents

SMALL_FLUX = AutoencoderConfig(
    base_channels=32, channel_multipliers=(1, 2, 2), num_res_blocks=1, latent_channels=4, shift_factor=0.2
)
BLOCKS = AutoencoderConfig(kind="space_to_depth", block_size=4)


def small_flux() -> Autoencoder:
    torch.manual_seed(0)
    return build_autoencoder(SMALL_FLUX).eval()


def test_space_to_depth_is_exact() -> None:
    autoencoder = build_autoencoder(BLOCKS)
    images = torch.stack([random_image(2, 3, seed) for seed in range(2)])
    latents = autoencoder.encode(images)
    assert latents.shape == (2, BLOCKS.channels, 2, 3)
    assert autoencoder.decode(latents).equal(images)
    # Channel-major, then the row and the column in the block.
    assert latents[1, 2 * 16 + 1 * 4 + 3, 1, 2] == images[1, 2, 1 * 4 + 1, 2 * 4 + 3]
    assert list(autoencoder.parameters()) == []


@pytest.mark.parametrize("patch_size", [1, 2])
def test_tokens_and_latents_are_inverse(patch_size: int) -> None:
    latents = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    tokens = latents_to_tokens(latents, patch_size)
    grid = (4 // patch_size, 6 // patch_size)
    assert tokens.shape == (2, math.prod(grid), 5 * patch_size**2)
    assert tokens_to_latents(tokens, grid, patch_size).equal(latents)
    if patch_size == 2:
        # Token (1, 2) of a grid of three columns; row 1, column 0 in its patch, channel 3 (docs/specification.md 2).
        assert tokens[0, 1 * 3 + 2, (1 * 2 + 0) * 5 + 3] == latents[0, 3, 2 * 1 + 1, 2 * 2 + 0]


@pytest.mark.parametrize("config", [SMALL_FLUX, BLOCKS])
@torch.no_grad()
def test_mixed_sizes_are_encoded_as_if_alone(config: AutoencoderConfig) -> None:
    torch.manual_seed(0)
    autoencoder = build_autoencoder(config).eval()
    images = [random_image(*grid, seed) for seed, grid in enumerate([(4, 4), (2, 6), (4, 4), (6, 2), (2, 6)])]
    result = autoencoder.encode_each(images)
    for image, latent in zip(images, result, strict=True):
        torch.testing.assert_close(latent, autoencoder.encode(image[None])[0], rtol=1e-4, atol=1e-5)
    assert autoencoder.encode_each([]) == []


@torch.no_grad()
def test_large_images_are_not_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels bound a batch's activations."""
    autoencoder = build_autoencoder(AutoencoderConfig(kind="space_to_depth", block_size=16))
    batches = []
    latents = type(autoencoder).latents
    monkeypatch.setattr(
        type(autoencoder), "latents", lambda self, x, *a, **k: (batches.append(len(x)), latents(self, x, *a, **k))[1]
    )
    images = [torch.zeros(3, 512, 512)] * 5 + [torch.zeros(3, 1024, 1024)] * 2
    autoencoder.encode_each(images)
    assert batches == [4, 1, 1, 1]
    autoencoder.encode_each([autoencoder.moments(image[None])[0] for image in images], encoded=True)
    assert batches == 2 * [4, 1, 1, 1], "batches, and so draws, are the same for what is encoded already"


@torch.no_grad()
def test_flux_scales_shifts_and_samples() -> None:
    autoencoder, image = small_flux(), random_image(4, 4, 0)[None]
    mean, log_variance = autoencoder.encoder(image).chunk(2, dim=1)
    torch.testing.assert_close(autoencoder.encode(image), SMALL_FLUX.scale_factor * (mean - SMALL_FLUX.shift_factor))
    draws = [autoencoder.encode(image, torch.Generator().manual_seed(seed), sample=True) for seed in (1, 1, 2)]
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    drawn = mean + (log_variance / 2).exp() * noise
    torch.testing.assert_close(draws[0], SMALL_FLUX.scale_factor * (drawn - SMALL_FLUX.shift_factor))
    latents = draws[0]
    z = latents / SMALL_FLUX.scale_factor + SMALL_FLUX.shift_factor
    decoded = autoencoder.decode(latents)
    torch.testing.assert_close(decoded, autoencoder.decoder(z))
    assert decoded.shape == image.shape


@torch.no_grad()
def test_bfloat16_changes_latents_by_a_few_percent() -> None:
    autoencoder, image = small_flux(), random_image(4, 4, 0)[None]
    exact = autoencoder.encode(image)
    rounded = autoencoder.to(torch.bfloat16).encode(image).float()
    assert 1e-4 < (rounded - exact).std() / exact.std() < 0.05


def test_published_parameter_counts() -> None:
    """Every part of BAGEL-7B-MoT, term by term."""
    with torch.device("meta"):
        model = Scone(bagel_7b())

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    hidden, mlp, kv, vocab, vit, vit_mlp = 3584, 18944, 4 * 128, 152064, 1152, 4304
    expert = 2 * hidden * hidden + hidden + 2 * linear(hidden, kv) + 2 * 128 + 3 * hidden * mlp + 2 * hidden
    vit_layer = 4 * linear(vit, vit) + linear(vit, vit_mlp) + linear(vit_mlp, vit) + 4 * vit
    expected = {
        "language_model": 28 * 2 * expert + 2 * vocab * hidden + 2 * hidden,
        "vit_model": linear(3 * 14 * 14, vit) + 70 * 70 * vit + 26 * vit_layer + 2 * vit,
        "connector": linear(vit, hidden) + linear(hidden, hidden),
        "vae2llm": linear(64, hidden),
        "llm2vae": linear(hidden, 64),
        "time_embedder": linear(256, hidden) + linear(hidden, hidden),
        "autoencoder": autoencoder_parameters(),
    }
    result = dict.fromkeys(expected, 0)
    for name, parameter in model.named_parameters():
        result[name.split(".")[0]] += parameter.numel()
    assert result == expected
    assert sum(result.values()) == 14_658_838_147, "14.6 B without the autoencoder (docs/specification.md 2)"


def autoencoder_parameters(base: int = 128, latent: int = 16) -> int:
    """Of the FLUX layout: multipliers 1, 2, 4, 4, two blocks a stage (three in the decoder)."""

    def conv(inputs: int, outputs: int, side: int = 3) -> int:
        return inputs * outputs * side**2 + outputs

    def block(inputs: int, outputs: int) -> int:
        shortcut = conv(inputs, outputs, 1) if inputs != outputs else 0
        return 2 * inputs + 2 * outputs + conv(inputs, outputs) + conv(outputs, outputs) + shortcut

    a, b, c = base, 2 * base, 4 * base
    middle = 2 * block(c, c) + 2 * c + 4 * conv(c, c, 1)
    encoder = conv(3, a) + 2 * block(a, a) + block(a, b) + block(b, b) + block(b, c) + 3 * block(c, c)
    encoder += conv(a, a) + conv(b, b) + conv(c, c) + middle + 2 * c + conv(c, 2 * latent)
    decoder = conv(latent, c) + middle + 6 * block(c, c) + block(c, b) + 2 * block(b, b) + block(b, a) + 2 * block(a, a)
    decoder += 2 * conv(c, c) + conv(b, b) + 2 * a + conv(a, 3)
    return encoder + decoder
