"""The network of U1 and U1.5: pixels enter through patch embedders and leave through a head that predicts the image.

Time runs from 1 (noise) to 0 here, the published code's from 0 to 1; both are the same flow. With noise of standard
deviation s the velocity is (z - x) / max(t, smallest t), x being the predicted image.

Shapes: N target tokens, P values of a token (row, column, channel), D hidden size, B images of one size, h x w tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scone_pl.model.embeddings import TimestepEmbedder
from scone_pl.model.experts import ByExpert
from scone_pl.model.indices import to_device
from scone_pl.model.neo.config import NeoConfig
from scone_pl.model.network import LanguageModel, Network
from scone_pl.model.sequence import PackedSequence
from scone_pl.model.vae import as_float, build_autoencoder, latents_to_tokens, tokens_to_latents

if TYPE_CHECKING:
    from scone_pl.model.flops import StepFlops, TokenCounts

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALLEST_TIME_SAMPLING = 0.02
"""Smallest t that the velocity is divided by in sampling; the published function's default, not the config's."""
INITIAL_IMAGE = 0.5
"""Of a noisy token, what random weights predict as its image."""
Grid = tuple[int, int]


class _Convolutions(nn.Module):
    """Both convolutions, under their published prefix."""

    def __init__(self, config: NeoConfig) -> None:
        super().__init__()
        channels, patch = config.embedder_channels, config.patch_size
        self.patch_embedding = nn.Conv2d(3, channels, patch, stride=patch)
        self.dense_embedding = nn.Conv2d(channels, config.decoder.hidden_size, 2, stride=2)


class PatchEmbedder(nn.Module):
    """Patches to channels, which turn by the patch's column and row, then 2 x 2 patches to a token."""

    def __init__(self, config: NeoConfig) -> None:
        super().__init__()
        self.theta = config.rope_theta_patches
        self.embeddings = _Convolutions(config)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h * w, D), rows first."""
        x = F.gelu(self.embeddings.patch_embedding(images.to(self.embeddings.patch_embedding.weight.dtype)))
        x = _turn(x.permute(0, 2, 3, 1), self.theta).permute(0, 3, 1, 2)
        return self.embeddings.dense_embedding(x).flatten(2).transpose(1, 2)

    def initialize_linear(self) -> Tensor | None:
        """For random weights of small patches: an orthogonal map of the pixels, the other channels aside.

        gelu(x) - gelu(-x) = x, so two channels carry one value of a patch. They are the slowest to turn by column.

        Returns:
            (D, values of a token as `latents_to_tokens` orders them), or None if there are too few channels.
        """
        first, second = self.embeddings.patch_embedding, self.embeddings.dense_embedding
        values, side = first.weight[0].numel(), first.kernel_size[0]
        if 8 * values > first.out_channels or 4 * values > second.out_channels:
            return None
        slow = first.out_channels // 2 - 2 * values
        up, down = (slice(slow + sign, first.out_channels // 2, 2) for sign in (0, 1))
        one_each = torch.eye(values).view(values, *first.weight.shape[1:])
        first.weight[up], first.weight[down] = one_each, -one_each
        cast(Tensor, first.bias)[slow : first.out_channels // 2] = 0
        basis = nn.init.orthogonal_(torch.empty(second.out_channels, 4 * values))
        # (D, row, y, column, x, channel) -> (D, values, row, column)
        by_patch = basis.view(-1, 2, side, 2, side, 3).permute(0, 5, 2, 4, 1, 3).reshape(-1, values, 2, 2)
        second.weight[:, up], second.weight[:, down] = by_patch, -by_patch
        return basis


def _initialize_inverse(head: nn.Sequential, basis: Tensor) -> None:
    """Makes the mlp head, if wide enough, predict a fraction of what `basis` (D, P) has made a state of."""
    first, last = cast(nn.Linear, head[0]), cast(nn.Linear, head[2])
    values = basis.shape[1]
    if 2 * values <= first.out_features:
        first.weight[:values], first.weight[values : 2 * values] = basis.T, -basis.T
        last.weight.zero_()
        last.weight[:, :values] = INITIAL_IMAGE * torch.eye(values)
        last.weight[:, values : 2 * values] = -INITIAL_IMAGE * torch.eye(values)


def _turn(x: Tensor, theta: float) -> Tensor:
    """(B, rows, columns, C): the first half of C turns by column, the second by row, in pairs of neighbours."""
    rows, columns, half = x.shape[1], x.shape[2], x.shape[3] // 2
    frequencies = theta ** -(torch.arange(0, half, 2, dtype=torch.float32, device=x.device) / half)
    by_column = torch.arange(columns, device=x.device)[None, :, None] * frequencies
    by_row = torch.arange(rows, device=x.device)[:, None, None] * frequencies
    size = (rows, columns, half // 2)
    angles = torch.cat([by_column.expand(size), by_row.expand(size)], dim=-1)  # (rows, columns, C / 2)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1)
    return turned.flatten(-2).to(x.dtype)


class ConvolutionalHead(nn.Module):
    """U1.5's: a map of states, enlarged and convolved to pixels."""

    def __init__(self, config: NeoConfig) -> None:
        super().__init__()
        width = config.head_width
        self.conv1 = nn.Conv2d(config.decoder.hidden_size // 4, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width // 4, 3 * 8 * 8, 3, padding=1)

    def forward(self, states: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 3, H, W)."""
        x = F.gelu(self.conv1(F.pixel_shuffle(states, 2)))
        return F.pixel_shuffle(self.conv2(F.pixel_shuffle(x, 2)), 8)


class Neo(Network):
    """SenseNova-U1 (`head` mlp) or U1.5 (convolutional)."""

    config: NeoConfig
    reference_expert = "understanding"
    predicts_image = True

    def __init__(self, config: NeoConfig) -> None:
        super().__init__(config)
        hidden = config.decoder.hidden_size
        self.language_model = LanguageModel(config.decoder)
        self.vision_model = PatchEmbedder(config)
        head: nn.Module = ConvolutionalHead(config)
        if config.head == "mlp":
            width = config.head_width
            head = nn.Sequential(nn.Linear(hidden, width), nn.GELU(), nn.Linear(width, config.latent_token_size))
        self.fm_modules = nn.ModuleDict(
            {
                "vision_model_mot_gen": PatchEmbedder(config),
                "timestep_embedder": TimestepEmbedder(hidden),
                "noise_scale_embedder": TimestepEmbedder(hidden),
                "fm_head": head,
            }
        )
        self.autoencoder = build_autoencoder(config.autoencoder).requires_grad_(False)

    # ------------------------------------------------------------------ in
    def embed(self, pack: PackedSequence, latents: Tensor, timesteps: Tensor, *, sampling: bool = False) -> ByExpert:
        words = self.language_model.model.embed_tokens(pack.text_ids)
        row = pack.understanding_row
        understanding = words.new_zeros(len(pack.understanding_index), words.shape[1])
        understanding = understanding.index_copy(0, row[pack.text_index], words)
        if len(pack.vit_index):
            features = self.embed_references(pack)
            understanding = understanding.index_copy(0, row[pack.vit_index], features.to(words.dtype))
        elif self.runs_towers_always:
            blank = words.new_zeros(1, 3, *(2 * [self.config.latent_patch_size]))
            understanding = understanding + 0 * self.vision_model(blank).sum()
        if not len(pack.latent_index) and not self.runs_towers_always:
            return ByExpert(understanding, words.new_zeros(0, words.shape[1]))
        generation = self.embed_pixels(pack, latents)
        generation = generation + pack.expand_latent_splits(self.embed_time(timesteps))
        scales = self.noise_scales([len(s.content) for s in pack.latent_splits], sampling=sampling)
        return ByExpert(understanding, generation + pack.expand_latent_splits(self.embed_noise_scale(scales)))

    def embed_references(self, pack: PackedSequence) -> Tensor:
        """(V, D) of all references."""
        patches = as_float(pack.vit_patches)
        mean, std = (patches.new_tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))

        def of_images(images: Tensor) -> Tensor:
            return self.vision_model(((images + 1) / 2 - mean) / std)

        return self._by_image(patches, pack.vit_grids, of_images)

    def embed_pixels(self, pack: PackedSequence, latents: Tensor) -> Tensor:
        """(N, D) of the noisy pixels alone."""
        embedder = self.fm_modules["vision_model_mot_gen"]
        return self._by_image(latents, _grids(pack), embedder)

    def embed_time(self, timesteps: Tensor) -> Tensor:
        """(images, D)."""
        return cast(Tensor, self.fm_modules["timestep_embedder"](1 - timesteps))

    def embed_noise_scale(self, scales: Tensor) -> Tensor:
        """(images, D)."""
        scales = to_device(scales, self.device) / self.config.noise_scale_max
        return cast(Tensor, self.fm_modules["noise_scale_embedder"](scales))

    def _by_image(self, tokens: Tensor, grids: Sequence[Grid], of_images: Callable[[Tensor], Tensor]) -> Tensor:
        """Applies `of_images` (B, 3, H, W) -> (B, h * w, D) to images of tokens (sum of h * w, P), by size."""
        side = self.config.latent_patch_size

        def of_tokens(same: Tensor, grid: Grid) -> Tensor:
            return of_images(tokens_to_latents(same, grid, side))

        return _by_grid(tokens, grids, of_tokens)

    # ------------------------------------------------------------------ out
    def predict_image(self, states: Tensor, pack: PackedSequence) -> Tensor:
        """(targets, D) -> (targets, P): the predicted clean pixels."""
        head, side = self.fm_modules["fm_head"], self.config.latent_patch_size
        if self.config.head == "mlp":
            return cast(Tensor, head(states))

        def of_tokens(same: Tensor, grid: Grid) -> Tensor:
            return latents_to_tokens(head(same.transpose(1, 2).unflatten(2, grid)), side)

        return _by_grid(states, _grids(pack), of_tokens)

    def read_velocity(
        self, states: Tensor, pack: PackedSequence, latents: Tensor, timesteps: Tensor, *, sampling: bool = False
    ) -> Tensor:
        if not len(states) and not self.runs_towers_always:
            return latents.new_zeros(0, self.config.latent_token_size)
        image = self.predict_image(states, pack).float()
        times = timesteps.float().clamp(min=SMALLEST_TIME_SAMPLING if sampling else self.config.smallest_time)
        return (latents.float() - image) / pack.expand_latent_splits(times)[:, None]

    def velocity_target(self, pack: PackedSequence, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        share = timesteps / timesteps.clamp(min=self.config.smallest_time)
        return (noise - clean) * pack.expand_latent_splits(share)[:, None]

    def noise_scales(self, tokens: Sequence[int], *, sampling: bool = False) -> Tensor:
        scales = self.config.noise_scale * (torch.tensor(tokens) / self.config.noise_scale_tokens).sqrt()
        return scales.clamp(max=self.config.noise_scale_max) if sampling else scales

    # ------------------------------------------------------------------ the rest of the interface
    def initialize_ends(self) -> None:
        cast(TimestepEmbedder, self.fm_modules["timestep_embedder"]).spread_times()
        noisy = cast(PatchEmbedder, self.fm_modules["vision_model_mot_gen"])
        noisy.load_state_dict(self.vision_model.state_dict())
        basis = noisy.initialize_linear()
        mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
        # Both embedders make the same token of the same pixels, though references come normalised.
        patches, seen = (e.embeddings.patch_embedding for e in (noisy, self.vision_model))
        self.vision_model.load_state_dict(noisy.state_dict())
        seen.weight.copy_(patches.weight * 2 * std)
        cast(Tensor, seen.bias).copy_(cast(Tensor, patches.bias) + (patches.weight * (2 * mean - 1)).sum((1, 2, 3)))
        if basis is not None and self.config.head == "mlp":
            _initialize_inverse(cast(nn.Sequential, self.fm_modules["fm_head"]), basis)

    @property
    def input_weight(self) -> Tensor:
        embedder = cast(PatchEmbedder, self.fm_modules["vision_model_mot_gen"])
        return embedder.embeddings.dense_embedding.weight

    @property
    def towers(self) -> list[nn.Module]:
        return [self.vision_model]

    @property
    def layers_to_shard(self) -> list[nn.Module]:
        return list(self.language_model.model.layers)

    @classmethod
    def input_flops(  # type: ignore[override] # a network is asked with its own config
        cls, config: NeoConfig, flops: StepFlops, counts: TokenCounts, trained: frozenset[str]
    ) -> tuple[bool, bool]:
        references, pixels, times = (
            part in trained for part in ("patch_embedder", "pixel_projections", "time_embedder")
        )
        hidden, channels = config.decoder.hidden_size, config.embedder_channels
        for tokens, trains in ((counts.vit, references), (counts.generation, pixels)):
            patch = (3 * config.patch_size**2, channels)
            flops.linear("ends", 4 * tokens, patch, grad_input=False, grad_weight=trains)
            flops.linear("ends", tokens, (4 * channels, hidden), grad_input=trains, grad_weight=trains)
        for _ in ("time", "noise scale"):
            flops.linear("ends", counts.latent_splits, (256, hidden), grad_input=False, grad_weight=times)
            flops.linear("ends", counts.latent_splits, (hidden, hidden), grad_input=times, grad_weight=times)
        return references, pixels or times

    @classmethod
    def output_flops(  # type: ignore[override] # a network is asked with its own config
        cls, config: NeoConfig, flops: StepFlops, counts: TokenCounts, trained: frozenset[str]
    ) -> None:
        hidden, width, trains = config.decoder.hidden_size, config.head_width, "pixel_projections" in trained
        # Tokens, or positions after an enlargement, and their maps; a 3 x 3 convolution reads 9 positions.
        maps = [(1, (hidden, width)), (1, (width, config.latent_token_size))]
        if config.head == "convolutional":
            maps = [(4, (9 * hidden // 4, width)), (16, (9 * width // 4, 192))]
        for times, sizes in maps:
            flops.linear("ends", times * counts.targets, sizes, grad_input=True, grad_weight=trains)


def _grids(pack: PackedSequence) -> list[Grid]:
    return [split.grid for split in pack.latent_splits if split.grid is not None]


def _by_grid(tokens: Tensor, grids: Sequence[Grid], function: Callable[[Tensor, Grid], Tensor]) -> Tensor:
    """`function` of all images of one size together: (B, h * w, ...) and (h, w) -> (B, h * w, ...).

    Args:
        tokens: (sum of h * w, ...), image after image.
        grids: of the images.
        function: of images of one size.
    """
    parts = tokens.split([rows * columns for rows, columns in grids])
    results: dict[int, Tensor] = {}
    for grid in dict.fromkeys(grids):
        members = [i for i, other in enumerate(grids) if other == grid]
        results |= zip(members, function(torch.stack([parts[i] for i in members]), grid).unbind(0), strict=True)
    if not results:  # a blank image, so that all ranks of a sharded model use the same weights
        return function(tokens.new_zeros(1, 1, *tokens.shape[1:]), (1, 1))[0, :0]
    return torch.cat([results[i] for i in range(len(grids))])
