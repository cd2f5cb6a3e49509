"""Position tables of unequal sides, and models of other sizes than the presets', through folders and attention."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from model_helpers import SPECIAL
from tiny_checkpoints import TINY, tiny_model, with_sizes, write_folder
from torch import Tensor

from scone_pl.checkpoints.model import from_pretrained, read_config, save_pretrained
from scone_pl.data.packing import PackingConfig
from scone_pl.data.transforms import ResizeLimits
from scone_pl.errors import UserError
from scone_pl.model.attention import DensePlan, SplitPlan
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import AutoencoderConfig, BridgeConfig, SconeConfig
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import PackedSequence


def image(rows: int, columns: int, stride: int, seed: int = 0) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, rows * stride, columns * stride, generator=generator) * 2 - 1


def reference_features(model: Scone, pixels: Tensor, side: int) -> Tensor:
    """(rows * columns, D) connector output with positions, patch by patch and head by head in float64."""
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    config = model.config.vit
    p, own = config.patch_size, "vit_model.vision_model."
    rows, columns = pixels.shape[1] // p, pixels.shape[2] // p
    cells = [(r, c) for r in range(rows) for c in range(columns)]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    patches = [pixels[:, r * p : (r + 1) * p, c * p : (c + 1) * p].permute(1, 2, 0).flatten() for r, c in cells]
    table = weights[f"{own}embeddings.position_embedding.weight"]
    x = linear(f"{own}embeddings.patch_embedding", torch.stack(patches).double())
    x = x + torch.stack([table[r * side + c] for r, c in cells])
    for number in range(config.num_layers):
        layer = f"{own}encoder.layers.{number}."
        normed = norm(f"{layer}layer_norm1", x)
        q, k, v = (linear(f"{layer}self_attn.{name}_proj", normed) for name in "qkv")
        width = config.hidden_size // config.num_heads
        heads = []
        for h in range(config.num_heads):
            part = slice(h * width, (h + 1) * width)
            heads.append((q[:, part] @ k[:, part].T / math.sqrt(width)).softmax(-1) @ v[:, part])
        x = x + linear(f"{layer}self_attn.out_proj", torch.cat(heads, 1))
        hidden = F.gelu(linear(f"{layer}mlp.fc1", norm(f"{layer}layer_norm2", x)), approximate="tanh")
        x = x + linear(f"{layer}mlp.fc2", hidden)
    x = norm(f"{own}post_layernorm", x)
    x = linear("connector.fc2", F.gelu(linear("connector.fc1", x), approximate="tanh"))
    quarter = x.shape[1] // 4
    rates = [10000 ** (-i / quarter) for i in range(quarter)]
    positions = []
    for r, c in cells:
        of_axes = [[f(axis * rate) for rate in rates] for axis in (c, r) for f in (math.sin, math.cos)]
        positions.append([value for half in of_axes for value in half])
    return x + torch.tensor(positions, dtype=torch.float64)


@pytest.mark.parametrize(("vit_side", "connector_side"), [(10, 9), (9, 10), (10, 10), (4, 12)])
def test_both_tables_are_looked_up_by_the_connectors_side(tmp_path: Path, vit_side: int, connector_side: int) -> None:
    config = with_sizes(vit_side, connector_side)
    folder = write_folder(tmp_path / "in", config)
    assert read_config(folder) == config
    model = from_pretrained(folder)
    sequence_format = model.config.sequence_format(SPECIAL)
    assert sequence_format.vit_positions_per_side == connector_side
    largest = sequence_format.vit_largest_side
    for grid in ((2, 3), (largest, largest), (1, connector_side)):
        pixels = image(*grid, 14)
        builder = SequenceBuilder(sequence_format)
        builder.begin_sample()
        builder.add_vit(pixels, reference=0)
        pack = builder.build()
        embedded = model.embed(pack, torch.zeros(0, config.latent_token_size), torch.zeros(0)).understanding
        result = embedded[pack.understanding_row[pack.vit_index]].double()
        expected = reference_features(model, pixels, connector_side)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(("vit_side", "connector_side", "largest"), [(10, 9, 9), (9, 10, 8), (4, 12, 2), (70, 70, 70)])
def test_images_stay_within_both_tables(vit_side: int, connector_side: int, largest: int) -> None:
    sequence_format = with_sizes(vit_side, connector_side).sequence_format(SPECIAL)
    assert sequence_format.vit_largest_side == largest
    builder = SequenceBuilder(sequence_format)
    builder.begin_sample()
    builder.add_vit(image(largest, largest, 14), reference=0)
    with pytest.raises(ValueError, match=f"at most {14 * largest} pixels"):
        builder.add_vit(image(largest + 1, largest + 1, 14), reference=1)
    sizes = PackingConfig.for_inference(sequence_format)
    assert sizes.vit_resize.max_size == min(980, 14 * largest)
    sizes = dataclasses.replace(sizes, vae_resize=ResizeLimits(max_size=128, min_size=16))
    sizes.check(sequence_format)
    too_large = dataclasses.replace(sizes, vit_resize=ResizeLimits(max_size=14 * (largest + 1), min_size=14))
    with pytest.raises(UserError, match=f"set it to at most {14 * largest}"):
        too_large.check(sequence_format)


def flux(*multipliers: int, channels: int = 4) -> AutoencoderConfig:
    return AutoencoderConfig(
        base_channels=32, channel_multipliers=multipliers, num_res_blocks=1, latent_channels=channels, scale_factor=0.7
    )


def vit(patch: int, side: int, layers: int = 1) -> dict[str, object]:
    return {"vit": dataclasses.replace(TINY.vit, patch_size=patch, positions_per_side=side, num_layers=layers)}


CONFIGS: dict[str, SconeConfig] = {
    "two stages, patch 1": dataclasses.replace(TINY, autoencoder=flux(1, 2), latent_patch_size=1),
    "three stages": dataclasses.replace(TINY, autoencoder=flux(1, 1, 2, channels=3)),
    "five stages, patch 1": dataclasses.replace(TINY, autoencoder=flux(1, 1, 1, 1, 1), latent_patch_size=1),
    "ViT patch 16": dataclasses.replace(TINY, **vit(16, 7, layers=3), autoencoder=flux(2, 1)),
    "unequal tables": dataclasses.replace(TINY, **vit(16, 8), connector_positions_per_side=7, autoencoder=flux(1, 1)),
    "one decoder layer": dataclasses.replace(TINY, decoder=dataclasses.replace(TINY.decoder, num_layers=1)),
    "own theta and epsilon": dataclasses.replace(
        TINY, decoder=dataclasses.replace(TINY.decoder, rope_theta=12345.5, rms_norm_eps=3e-5, num_kv_heads=4)
    ),
    "dense, pixels": dataclasses.replace(
        TINY,
        decoder=dataclasses.replace(TINY.decoder, separate_experts=False, num_kv_heads=1),
        autoencoder=AutoencoderConfig(kind="space_to_depth", block_size=4),
        latent_patch_size=1,
    ),
}


def two_samples(model: Scone) -> PackedSequence:
    sequence_format = model.config.sequence_format(SPECIAL)
    builder = SequenceBuilder(sequence_format)
    for number in range(2):
        builder.begin_sample()
        builder.add_vae(image(2, 3, sequence_format.latent_stride, number), reference=0)
        builder.add_vit(image(3, 2, sequence_format.vit_patch_size, number), reference=0)
        builder.add_text([7 + number, 9, 11])
        builder.add_targets(image(2, 2, sequence_format.latent_stride, 5 + number), [0.3])
    return builder.build()


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_models_of_other_sizes(tmp_path: Path, name: str) -> None:
    """Saving what was loaded gives the same bytes, and split attention is dense attention."""
    config = CONFIGS[name]
    model = tiny_model(config, seed=3)
    if name == "one decoder layer":  # a head that shares the embedding's memory, as tied ones do
        model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
    save_pretrained(model, tmp_path / "first")
    assert read_config(tmp_path / "first") == config
    loaded = from_pretrained(tmp_path / "first")
    assert all(loaded.state_dict()[key].equal(tensor) for key, tensor in model.state_dict().items())
    save_pretrained(loaded, tmp_path / "second")
    files = sorted(file.name for file in (tmp_path / "first").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "second").iterdir())
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    pack = two_samples(loaded)
    latents, times = loaded.encode_images(pack), torch.full((len(pack.latent_splits),), 0.4)
    last = config.decoder.num_layers - 1
    bridge = BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=1, threshold=0.1) if last else None
    split = loaded(pack, latents, times, bridge, SplitPlan(pack))
    dense = loaded(pack, latents, times, bridge, DensePlan(pack))
    assert dense.velocity.abs().max() > 0.01
    torch.testing.assert_close(split.velocity, dense.velocity, rtol=1e-4, atol=1e-4 * dense.velocity.abs().max().item())
    decoded = loaded.autoencoder.decode(loaded.autoencoder.encode(pack.images[0][None]))
    assert decoded.shape[1:] == pack.images[0].shape
