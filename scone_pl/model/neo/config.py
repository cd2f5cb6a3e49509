"""Sizes of SenseNova-U1 and U1.5, with presets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal

from scone_pl.model.config import AutoencoderConfig, DecoderConfig, NetworkConfig
from scone_pl.model.neo.layout import ChatLayout, ChatTemplate
from scone_pl.model.sequence import SequenceFormat, SpecialTokens

if TYPE_CHECKING:
    from scone_pl.model.network import Network

POSITIONS = 10_000
"""Rows and columns that an image may have (`max_position_embeddings_hw`); no table holds them."""


@dataclass(frozen=True, kw_only=True)
class NeoConfig(NetworkConfig):
    """U1's network, or U1.5's (`head`)."""

    PARTS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "vision_model": "patch_embedder",
            "fm_modules.vision_model_mot_gen": "pixel_projections",
            "fm_modules.fm_head": "pixel_projections",
            "fm_modules.timestep_embedder": "time_embedder",
            "fm_modules.noise_scale_embedder": "time_embedder",
        }
    )

    autoencoder: AutoencoderConfig = field(
        default_factory=lambda: AutoencoderConfig(kind="space_to_depth", block_size=1)
    )
    latent_patch_size: int = 32
    """Side of a token in pixels: two patches of a patch embedder."""
    embedder_channels: int
    """Channels between the two convolutions of a patch embedder."""
    head: Literal["mlp", "convolutional"]
    """mlp: U1. convolutional: U1.5, whose tokens are 32 x 32 pixels."""
    head_width: int
    """Width inside of the head."""
    rope_theta_patches: float = 1e4
    """Base of the rotary embedding in the patch embedders."""
    noise_scale: float = 1.0
    """Standard deviation of the noise of an image of `noise_scale_tokens` tokens; it grows with the root of them."""
    noise_scale_tokens: int = 64
    noise_scale_max: float = 16.0
    """Its maximum in sampling, and what the embedded scale is relative to (U1: 8)."""
    smallest_time: float = 0.05
    """Smallest t that the velocity is divided by in training (`t_eps`)."""
    noise_logit_mean: float = 0.8
    """Of t in training, in this project's direction: 1 = noise (published `P_mean`: -0.8)."""
    noise_logit_std: float = 0.8
    system_message_sha256: str | None = None
    """Of the system message that every prompt begins with; None = of the published one."""

    def __post_init__(self) -> None:
        if self.latent_patch_size % 2:
            raise ValueError(f"a token of {self.latent_patch_size} pixels a side is not two patches")
        if self.embedder_channels % 4:
            raise ValueError(f"{self.embedder_channels} channels of the patch embedder must be divisible by 4")
        if self.head == "convolutional" and self.latent_patch_size != 32:
            raise ValueError(f"the convolutional head makes tokens of 32 pixels a side, not {self.latent_patch_size}")

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.latent_patch_size // 2

    @property
    def network(self) -> type[Network]:
        from scone_pl.model.neo.network import Neo

        return Neo

    @property
    def guidance(self) -> str:
        return "three_contexts"

    def with_canvas(self, side: int) -> NeoConfig:
        return self

    def sequence_format(self, special: SpecialTokens) -> SequenceFormat:
        template = special if isinstance(special, ChatTemplate) else ChatTemplate.of_typical_length()
        return SequenceFormat(
            special=template,
            latent_stride=self.latent_patch_size,
            latent_positions_per_side=POSITIONS,
            vit_patch_size=self.latent_patch_size,
            vit_positions_per_side=POSITIONS,
            layout=ChatLayout(template, (self.noise_logit_mean, self.noise_logit_std)),
        )


def _decoder(**sizes: int) -> DecoderConfig:
    return DecoderConfig(
        rope_theta=5e6,
        rope_theta_grid=1e4,
        qkv_bias=False,
        generation_mark="_mot_gen",
        max_position_embeddings=262144,
        **sizes,  # type: ignore[arg-type]  # sizes read from JSON
    )


def neo_u15_8b() -> NeoConfig:
    """The published U1.5-8B-MoT: 17.5 B parameters."""
    decoder = _decoder(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_layers=42,
        num_heads=32,
        num_kv_heads=8,
    )
    return NeoConfig(decoder=decoder, embedder_channels=1024, head="convolutional", head_width=1024)


def neo_u1_8b() -> NeoConfig:
    """The published U1-8B-MoT: 17.6 B parameters."""
    return replace(neo_u15_8b(), head="mlp", head_width=4096, noise_scale_max=8.0)


def mini_neo(vocab_size: int = 64) -> NeoConfig:
    """U1 for the mini-world: tokens of 4 x 4 pixels, as in the preset `mini`; about as many parameters."""
    decoder = _decoder(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=192,
        num_layers=6,
        num_heads=2,
        num_kv_heads=2,
    )
    return NeoConfig(
        decoder=decoder,
        embedder_channels=128,
        head="mlp",
        head_width=192,
        latent_patch_size=4,
        noise_scale_tokens=16,
        noise_scale_max=8.0,
        system_message_sha256=hashlib.sha256(b"").hexdigest(),
    )


NEO_PRESETS: dict[str, Callable[..., NeoConfig]] = {
    "neo_u15_8b": neo_u15_8b,
    "neo_u1_8b": neo_u1_8b,
    "mini_neo": mini_neo,
}
