"""Autoencoders: images to latents and back.

`FluxAutoencoder` is the published one (FLUX layout, key names included); `SpaceToDepth` has pixels as latents, for
mini models. Both have one interface, `Autoencoder`.

Shapes: B images of one size, C latent channels, h x w latent positions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from scone_pl.model import compiled
from scone_pl.model.config import AutoencoderConfig
from scone_pl.model.tiling import in_tiles


class Autoencoder(nn.Module):
    """Images in [-1, 1] <-> latents at the scale that the flow works in."""

    tile: int | None = None
    """Side in pixels of the tiles by which images are encoded and decoded (`tiling.py`); None = each as a whole."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def moments(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, M, h, w): what is known of the posterior, such as its means and log-variances."""

    @abstractmethod
    def latents(self, moments: Tensor, generator: torch.Generator | None = None, *, sample: bool = False) -> Tensor:
        """(B, M, h, w) -> (B, C, h, w): the mean of the posterior or, with `sample`, a draw from it."""

    def encode(self, images: Tensor, generator: torch.Generator | None = None, *, sample: bool = False) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w), see `latents`."""
        return self.latents(self.moments(images), generator, sample=sample)

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W), not clamped."""

    def encode_each(
        self,
        images: Sequence[Tensor],
        generator: torch.Generator | None = None,
        *,
        sample: bool = False,
        encoded: bool = False,
    ) -> list[Tensor]:
        """Encodes images (3, H, W), of mixed sizes, in [-1, 1] or uint8, into (C, h, w), each as if alone.

        With `encoded` they are `moments` (M, h, w) instead; draws from the posterior are the same.

        Images of equal sizes go through as one batch, never padded: GroupNorm and the mid attention would see the
        padding (docs/specification.md 3).
        """
        by_size: dict[torch.Size, list[int]] = {}
        for i, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(i)
        latents: list[Tensor] = [torch.empty(0)] * len(images)
        for shape, members in by_size.items():
            # Pixels bound the activations: at 128 base channels one 1024 x 1024 image already takes 0.5 GB a layer.
            pixels = shape[-1] * shape[-2] * (self.config.downsample**2 if encoded else 1)
            batch = max(1, 2**20 // pixels)
            for start in range(0, len(members), batch):
                chunk = members[start : start + batch]
                stacked = torch.stack([images[i] for i in chunk])
                moments = stacked if encoded else self.moments(as_float(stacked))
                for i, latent in zip(chunk, self.latents(moments, generator, sample=sample), strict=True):
                    latents[i] = latent
        return latents


class SpaceToDepth(Autoencoder):
    """Every `block_size` x `block_size` block of pixels is one latent position. Exact, and has no weights."""

    def moments(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images, self.config.block_size)

    def latents(self, moments: Tensor, generator: torch.Generator | None = None, *, sample: bool = False) -> Tensor:
        return moments

    def decode(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(latents, self.config.block_size)


class NormSiLU(nn.Module):
    """Base of modules that normalise and activate."""

    compiled = False
    """See `compiled.set_compiled`."""

    def norm_silu(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """SiLU(norm(x)) of (B, D, h, w)."""
        return compiled.group_norm_silu(x, norm) if self.compiled else F.silu(norm(x))


class ResnetBlock(NormSiLU):
    """Norm, SiLU, convolution, twice, around a residual."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm1 = _group_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _group_norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm_silu(self.norm1, x))
        h = self.conv2(self.norm_silu(self.norm2, h))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions of a feature map."""

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm = _group_norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        # Contiguous, or the fused kernels decline and scores of all pairs of positions are held in memory.
        q, k, v = (rearrange(f(normed), "b c h w -> b 1 (h w) c").contiguous() for f in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(attended, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halves both sides; padded on the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles both sides by repeating, then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Mid(nn.Module):
    """The narrowest stage: block, attention, block."""

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttentionBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(NormSiLU):
    """Image -> mean and log-variance of the latent posterior."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multipliers]
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList()
        channels = config.base_channels
        for level, width in enumerate(widths):
            stage = nn.Module()
            stage.block = nn.ModuleList()
            for _ in range(config.num_res_blocks):
                stage.block.append(ResnetBlock(channels, width, config.norm_groups))
                channels = width
            if level < len(widths) - 1:
                stage.downsample = Downsample(width)
            self.down.append(stage)
        self.mid = Mid(channels, config.norm_groups)
        self.norm_out = _group_norm(channels, config.norm_groups)
        self.conv_out = nn.Conv2d(channels, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        stage: Any  # a bare `nn.Module` with submodules
        for stage in self.down:
            for block in stage.block:
                h = block(h)
            if hasattr(stage, "downsample"):
                h = stage.downsample(h)
        return self.conv_out(self.norm_silu(self.norm_out, self.mid(h)))


class Decoder(NormSiLU):
    """Latent -> image."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multipliers]
        channels = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.mid = Mid(channels, config.norm_groups)
        stages = []
        for level in reversed(range(len(widths))):
            stage = nn.Module()
            stage.block = nn.ModuleList()
            for _ in range(config.num_res_blocks + 1):
                stage.block.append(ResnetBlock(channels, widths[level], config.norm_groups))
                channels = widths[level]
            if level > 0:
                stage.upsample = Upsample(channels)
            stages.append(stage)
        self.up = nn.ModuleList(reversed(stages))  # `up.0` is the widest resolution, run last
        self.norm_out = _group_norm(channels, config.norm_groups)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        stage: Any  # a bare `nn.Module` with submodules
        for stage in reversed(self.up):
            for block in stage.block:
                h = block(h)
            if hasattr(stage, "upsample"):
                h = stage.upsample(h)
        return self.conv_out(self.norm_silu(self.norm_out, h))


class FluxAutoencoder(Autoencoder):
    """The FLUX autoencoder: latent = scale_factor * (z - shift_factor)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def moments(self, images: Tensor) -> Tensor:
        images = images.to(self.encoder.conv_in.weight.dtype)
        return self.encoder(images) if self.tile is None else in_tiles(self.encoder, images, self.tile)

    def latents(self, moments: Tensor, generator: torch.Generator | None = None, *, sample: bool = False) -> Tensor:
        mean, log_variance = moments.chunk(2, dim=1)
        z = mean
        if sample:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            z = mean + torch.exp(0.5 * log_variance) * noise
        return self.config.scale_factor * (z - self.config.shift_factor)

    def decode(self, latents: Tensor) -> Tensor:
        z = latents / self.config.scale_factor + self.config.shift_factor
        z = z.to(self.decoder.conv_in.weight.dtype)
        return self.decoder(z) if self.tile is None else in_tiles(self.decoder, z, self.tile // self.config.downsample)


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """The autoencoder that `config.kind` names."""
    return FluxAutoencoder(config) if config.kind == "flux" else SpaceToDepth(config)


def as_float(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1]: uint8 ones are normalised, ((x / 255) - 0.5) / 0.5 to the last bit; others are unchanged."""
    if pixels.dtype != torch.uint8:
        return pixels
    # A tensor: on CUDA torch would multiply by the reciprocal of a number.
    return pixels.float() / torch.full((), 127.5, device=pixels.device) - 1


def latents_to_tokens(latents: Tensor, patch_size: int) -> Tensor:
    """(..., C, h, w) -> (..., tokens, patch_size^2 C): row-major, each (row in patch, column in patch, channel)."""
    return rearrange(latents, "... c (h p) (w q) -> ... (h w) (p q c)", p=patch_size, q=patch_size)


def tokens_to_latents(tokens: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """(..., rows * columns, patch_size^2 C) -> (..., C, h, w), the inverse of `latents_to_tokens`."""
    return rearrange(tokens, "... (h w) (p q c) -> ... c (h p) (w q)", h=grid[0], p=patch_size, q=patch_size)


def _group_norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)
