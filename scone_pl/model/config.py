"""Sizes of the network as dataclasses, with presets: `bagel_7b`, `mini` and its variants.

A checkpoint folder decides its own sizes (see `checkpoints.model`); the presets describe the published model and
the laptop-sized ones, so that each can be built without a folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal

from scone_pl.model.bridge_config import BridgeConfig as BridgeConfig
from scone_pl.model.sequence import SequenceFormat, SpecialTokens

if TYPE_CHECKING:
    from scone_pl.model.network import Network


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The mixture-of-transformers decoder (docs/specification.md 2, first row)."""

    vocab_size: int
    """Rows of the token embedding and of the language head."""
    hidden_size: int
    """Width of the residual stream."""
    intermediate_size: int
    """Width of the gated MLP of each expert."""
    num_layers: int
    """Decoder layers; each holds an understanding and a generation expert, unless `separate_experts` is false."""
    num_heads: int
    """Query heads; the head dimension is `hidden_size / num_heads`."""
    num_kv_heads: int
    """Key/value heads (grouped-query attention)."""
    rope_theta: float = 1e6
    """Base of the rotary position embedding (Qwen2.5)."""
    rms_norm_eps: float = 1e-6
    """Epsilon of every RMSNorm."""
    max_position_embeddings: int = 32768
    """Longest position the language model was trained on; kept for the published `llm_config.json`."""
    generation_mark: str = "_moe_gen"
    """Suffix of the generation expert's modules, one of `experts.GENERATION_MARKS`."""
    qkv_bias: bool = True
    """Whether the maps to queries, keys and values have biases (Qwen2.5: yes; Qwen3: no)."""
    rope_theta_grid: float | None = None
    """Base of the rotary embedding by row and by column, for which each head then keeps its second half, with norms of
    its own; None = all of a head turns by one position."""
    separate_experts: bool = True
    """False, beyond the paper: a dense decoder, in which text, ViT and latent tokens share all weights and no
    `*_moe_gen` exists (key of the same name in `llm_config.json`). True: BAGEL's two experts (specification 2)."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be divisible by num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be divisible by num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head dimension {self.head_dim} must be even for rotary positions")
        if self.rope_theta_grid is not None and self.head_dim % 8:
            raise ValueError(f"head dimension {self.head_dim} must be divisible by 8 for positions of three axes")
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} must be divisible by 4 for sin-cos positions")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The SigLIP vision transformer over packed patches (docs/specification.md 2)."""

    hidden_size: int
    """Width of the residual stream."""
    intermediate_size: int
    """Width of the MLP."""
    num_layers: int
    """Layers that run. SigLIP so400m has 27, of which BAGEL runs 26 (its feature layer is the second-last)."""
    num_heads: int
    """Attention heads."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    positions_per_side: int = 70
    """Side of SigLIP's table of learned positions; see `SconeConfig.connector_positions_per_side`."""
    layer_norm_eps: float = 1e-6
    """Epsilon of every LayerNorm."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"ViT hidden_size {self.hidden_size} must be divisible by num_heads {self.num_heads}")


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The FLUX autoencoder (docs/specification.md 2), or an exact space-to-depth for mini models."""

    kind: Literal["flux", "space_to_depth"] = "flux"
    """`flux`: the published convolutional autoencoder. `space_to_depth`: pixels as latents, nothing learned."""
    base_channels: int = 128
    """Channels of the first stage (flux)."""
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Channels of each stage over `base_channels` (flux); one downsampling by 2 between two stages."""
    num_res_blocks: int = 2
    """Residual blocks a stage (flux)."""
    latent_channels: int = 16
    """Channels of a latent (flux)."""
    norm_groups: int = 32
    """Groups of its group norms (flux); fewer for narrow ones."""
    scale_factor: float = 0.3611
    """Latent = scale_factor * (z - shift_factor)."""
    shift_factor: float = 0.1159
    """See `scale_factor`."""
    block_size: int = 2
    """Side in pixels of the block that becomes one latent position (space_to_depth)."""

    def __post_init__(self) -> None:
        if self.kind == "flux" and any(
            self.base_channels * m % self.norm_groups for m in (1, *self.channel_multipliers)
        ):
            raise ValueError(
                f"the autoencoder's channels, {self.base_channels} times {list(self.channel_multipliers)}, must be "
                f"divisible by {self.norm_groups} for its group norms"
            )

    @property
    def downsample(self) -> int:
        """Pixels a side for one latent position."""
        return 2 ** (len(self.channel_multipliers) - 1) if self.kind == "flux" else self.block_size

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.latent_channels if self.kind == "flux" else 3 * self.block_size**2


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(ABC):
    """Sizes of a base model's network: what all of them have."""

    PARTS: ClassVar[Mapping[str, str]]
    """Prefix of a parameter's name -> part that may train (`training.parts`), beside the two experts."""

    decoder: DecoderConfig
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    latent_patch_size: int = 2
    """Latent positions a side that make one token (BAGEL: 2, so a token is 16 x 16 pixels)."""

    @property
    @abstractmethod
    def network(self) -> type[Network]:
        """The class of the network."""

    @abstractmethod
    def sequence_format(self, special: SpecialTokens) -> SequenceFormat:
        """What a `SequenceBuilder` needs of this model."""

    @abstractmethod
    def with_canvas(self, side: int) -> NetworkConfig:
        """The same model for square images of `side` pixels, as far as its tables of positions depend on it."""

    @property
    def guidance(self) -> str:
        """Name of its guidance rule, a key of `sampling.guidance.RULES`."""
        return "two_conditions"

    @property
    def latent_token_size(self) -> int:
        """Values of one latent token."""
        return self.latent_patch_size**2 * self.autoencoder.channels

    @property
    def latent_stride(self) -> int:
        """Pixels a side for one latent token; image sizes are multiples of it."""
        return self.latent_patch_size * self.autoencoder.downsample

    def build(self) -> Network:
        """The network, with weights as torch initialises them."""
        return self.network(self)


@dataclass(frozen=True, kw_only=True)
class SconeConfig(NetworkConfig):
    """BAGEL-7B-MoT's network."""

    PARTS = MappingProxyType(
        {
            "connector": "connector",
            "vae2llm": "latent_projections",
            "llm2vae": "latent_projections",
            "time_embedder": "time_embedder",
            "vit_model": "vit",
        }
    )

    vit: ViTConfig
    latent_positions_per_side: int = 64
    """Side of the sin-cos position table of latent tokens (BAGEL: 64, so images up to 1024 x 1024)."""

    connector_positions_per_side: int | None = None
    """Side of the sin-cos position table that is added to the connector's output; None = that of the ViT's own table.
    Both are looked up by `row * side + column` with this side, as in the release (BAGEL: 70 and 70)."""

    @property
    def vit_positions_per_side(self) -> int:
        """Side by which ViT positions are looked up."""
        return self.connector_positions_per_side or self.vit.positions_per_side

    @property
    def network(self) -> type[Network]:
        from scone_pl.model.scone import Scone

        return Scone

    def with_canvas(self, side: int) -> SconeConfig:
        sides = side // self.latent_stride
        return replace(self, latent_positions_per_side=sides, vit=replace(self.vit, positions_per_side=sides))

    def sequence_format(self, special: SpecialTokens) -> SequenceFormat:
        return SequenceFormat(
            special=special,
            latent_stride=self.latent_stride,
            latent_positions_per_side=self.latent_positions_per_side,
            vit_patch_size=self.vit.patch_size,
            vit_positions_per_side=self.vit_positions_per_side,
            vit_positions=self.vit.positions_per_side**2,
        )


def bagel_7b() -> SconeConfig:
    """The published BAGEL-7B-MoT, about 14.6 B parameters (docs/specification.md 2)."""
    return SconeConfig(
        decoder=DecoderConfig(
            vocab_size=152064,
            hidden_size=3584,
            intermediate_size=18944,
            num_layers=28,
            num_heads=28,
            num_kv_heads=4,
        ),
        vit=ViTConfig(hidden_size=1152, intermediate_size=4304, num_layers=26, num_heads=16),
    )


def bagel_7b_dense() -> SconeConfig:
    """`bagel_7b` without separate experts: about 8 B parameters (experiments/ablations/no_experts.yaml)."""
    return _dense(bagel_7b())


def mini(vocab_size: int = 64) -> SconeConfig:
    """A model for the mini-world: 16 x 16 canvas, 4 x 4 pixel tokens, trained in minutes on two cores.

    Its autoencoder is a space-to-depth: latents are pixels, so decoding is exact. The ViT is wide: SigLIP's features
    separate shapes, random ones do so only if there are many.
    """
    return SconeConfig(
        decoder=DecoderConfig(
            vocab_size=vocab_size,
            hidden_size=64,
            intermediate_size=192,
            num_layers=6,
            num_heads=2,
            num_kv_heads=2,
        ),
        vit=ViTConfig(
            hidden_size=128,
            intermediate_size=512,
            num_layers=1,
            num_heads=2,
            patch_size=4,
            positions_per_side=4,
        ),
        autoencoder=AutoencoderConfig(kind="space_to_depth"),
        latent_positions_per_side=4,
    )


def mini_dense(vocab_size: int = 64) -> SconeConfig:
    """`mini` without separate experts, so half the decoder's layer weights."""
    return _dense(mini(vocab_size))


def _dense(config: SconeConfig) -> SconeConfig:
    return replace(config, decoder=replace(config.decoder, separate_experts=False))


def mini_photo(vocab_size: int = 260) -> SconeConfig:
    """A mini-sized decoder for photographs at the real resolutions: 16-pixel latent tokens, 14-pixel ViT tokens.

    Its autoencoder is a space-to-depth as well, of 8 x 8 pixels like the real one's positions.
    """
    return SconeConfig(
        decoder=DecoderConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=384,
            num_layers=8,
            num_heads=4,
            num_kv_heads=2,
        ),
        vit=ViTConfig(hidden_size=96, intermediate_size=192, num_layers=2, num_heads=4),
        autoencoder=AutoencoderConfig(kind="space_to_depth", block_size=8),
    )


def icons(vocab_size: int = 1024) -> SconeConfig:
    """A model for world 2 (worlds/icons): 32 x 32 canvas, 8 x 8 latent tokens, 6 x 6 ViT tokens.

    Its autoencoder is a narrow one of FLUX's kind, trained on the world's images.
    """
    return SconeConfig(
        decoder=DecoderConfig(
            vocab_size=vocab_size,
            hidden_size=96,
            intermediate_size=256,
            num_layers=6,
            num_heads=3,
            num_kv_heads=3,
        ),
        vit=ViTConfig(
            hidden_size=96, intermediate_size=256, num_layers=2, num_heads=3, patch_size=5, positions_per_side=6
        ),
        autoencoder=AutoencoderConfig(
            base_channels=16,
            channel_multipliers=(1, 2, 2),
            num_res_blocks=1,
            latent_channels=4,
            norm_groups=4,
            scale_factor=1.0,
            shift_factor=0.0,
        ),
        latent_patch_size=1,
        latent_positions_per_side=8,
    )


def icons_large(vocab_size: int = 1024) -> SconeConfig:
    """`icons` one size up: 64 x 64 canvas, 16 x 16 latent tokens, 9 x 9 ViT tokens, twice as wide, with the same layers
    and the same autoencoder.
    """
    small = icons(vocab_size)
    return replace(
        small,
        decoder=replace(small.decoder, hidden_size=192, intermediate_size=512, num_heads=6, num_kv_heads=6),
        vit=replace(small.vit, hidden_size=192, intermediate_size=512, num_heads=6, patch_size=7, positions_per_side=9),
        latent_positions_per_side=16,
    )


PRESETS: dict[str, Callable[..., SconeConfig]] = {
    "bagel_7b": bagel_7b,
    "bagel_7b_dense": bagel_7b_dense,
    "mini": mini,
    "mini_dense": mini_dense,
    "mini_photo": mini_photo,
    "icons": icons,
    "icons_large": icons_large,
}
"""By name."""
