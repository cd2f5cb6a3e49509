"""What every base model's network is: it embeds a packed sequence, runs the decoder, and reads velocities from it.

A base model is a network (here), a prompt layout (`layout.py`), a folder format (`checkpoints/`) and a guidance rule
(`sampling/guidance.py`); `bases.py` lists them. Everything else asks the network's interface or the pack.

Shapes: L tokens = U understanding + N latent tokens, D hidden size, P values of a latent token.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from scone_pl import flow
from scone_pl.model.attention import ATTENTION_BACKENDS, AttentionPlan
from scone_pl.model.bridge import Bridge, BridgeState
from scone_pl.model.config import BridgeConfig, DecoderConfig, NetworkConfig
from scone_pl.model.decoder import Decoder
from scone_pl.model.experts import ByExpert, Routing
from scone_pl.model.sequence import PackedSequence
from scone_pl.model.vae import Autoencoder, latents_to_tokens, tokens_to_latents

if TYPE_CHECKING:
    from scone_pl.model.flops import StepFlops, TokenCounts


@dataclass(frozen=True)
class NetworkOutput:
    """Output of a forward pass."""

    hidden: ByExpert
    """Final-normed states, (U, D) and (N, D)."""
    velocity: Tensor
    """(target tokens, P): predicted noise - x0, in sequence order."""
    bridge: BridgeState | None
    text_logits: Tensor
    """(labels, vocabulary): at the tokens of `PackedSequence.label_index` only."""


class LanguageModel(nn.Module):
    """Gives the decoder and the head their published key prefixes."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class Network(nn.Module):
    """Base of the networks. Module names are the published keys.

    The autoencoder is frozen: it is not trained, and has a file of its own if it has weights.
    """

    config: NetworkConfig
    reference_expert: Literal["understanding", "generation"] = "generation"
    """Whose keys and values noisy tokens read the pixels of references from."""
    predicts_image = False
    """Whether the head predicts the clean image, not the velocity."""
    language_model: LanguageModel
    autoencoder: Autoencoder

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = "split"
        """Name of the attention backend, a key of `ATTENTION_BACKENDS`."""
        self.runs_towers_always = False
        """Run image towers for packs without their tokens too: under FSDP every rank must gather the same weights."""

    # ------------------------------------------------------------------ what a base model defines
    @abstractmethod
    def embed(self, pack: PackedSequence, latents: Tensor, timesteps: Tensor, *, sampling: bool = False) -> ByExpert:
        """Tokens -> hidden states.

        Args:
            pack: the sequence.
            latents: (N, P) latent tokens, clean or noisy, in sequence order.
            timesteps: (latent splits,) t in [0, 1]; 0 for clean references.
            sampling: as in `forward`.
        """

    @abstractmethod
    def read_velocity(
        self, states: Tensor, pack: PackedSequence, latents: Tensor, timesteps: Tensor, *, sampling: bool = False
    ) -> Tensor:
        """(targets, P): the velocity at target tokens, from their final-normed `states` (targets, D)."""

    @abstractmethod
    def initialize_ends(self) -> None:
        """For random weights: what is in no decoder layer, beyond variance-preserving maps; without a graph."""

    @property
    @abstractmethod
    def input_weight(self) -> Tensor:
        """A weight that noisy latents enter through: its device and dtype are the network's."""

    @property
    @abstractmethod
    def towers(self) -> list[nn.Module]:
        """What references pass through before the decoder: an offload may bring each only while it runs."""

    @property
    @abstractmethod
    def layers_to_shard(self) -> list[nn.Module]:
        """Modules that FSDP gathers one at a time."""

    @classmethod
    @abstractmethod
    def input_flops(
        cls, config: NetworkConfig, flops: StepFlops, counts: TokenCounts, trained: frozenset[str]
    ) -> tuple[bool, bool]:
        """Adds what runs before the decoder; whether anything there trains, by expert whose tokens it makes."""

    @classmethod
    @abstractmethod
    def output_flops(
        cls, config: NetworkConfig, flops: StepFlops, counts: TokenCounts, trained: frozenset[str]
    ) -> None:
        """Adds what reads the velocity."""

    def noise_scales(self, tokens: Sequence[int], *, sampling: bool = False) -> Tensor | None:
        """(images,): the standard deviation of the noise of images of that many `tokens`; None = 1 for all."""
        return None

    def velocity_target(self, pack: PackedSequence, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(N, P): what `velocity` should be.

        Args:
            pack: the sequence.
            clean: (N, P).
            noise: (N, P), scaled.
            timesteps: (latent splits,).
        """
        return flow.velocity_target(clean, noise)

    # ------------------------------------------------------------------ what they share
    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.input_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.input_weight.dtype

    def forward(
        self,
        pack: PackedSequence,
        latents: Tensor,
        timesteps: Tensor,
        bridge: BridgeConfig | None = None,
        plan: AttentionPlan | None = None,
        *,
        similarity_grad: bool = False,
        sampling: bool = False,
    ) -> NetworkOutput:
        """One pass over a pack.

        Args:
            pack: the sequence.
            latents: as in `embed`.
            timesteps: as in `embed`.
            bridge: hide reference tokens from target queries; None = the bridge is off.
            plan: attention other than the backend's plan of the pack (cached contexts).
            similarity_grad: keep the graph of the bridge's similarity, for a loss on it.
            sampling: the pass is a step of sampling, in which some bases have other limits than in training.
        """
        routing = Routing(pack)
        plan = plan or ATTENTION_BACKENDS[self.attention](pack)  # type: ignore[call-arg]  # classes of one signature
        x = self.embed(pack, latents, timesteps, sampling=sampling)
        guide = None if bridge is None else Bridge(bridge, pack, differentiable=similarity_grad)
        positions = pack.position_ids if self.config.decoder.rope_theta_grid is None else pack.axis_positions
        hidden, state = self.language_model.model(x, routing, positions, plan, guide)
        targets = hidden.generation.index_select(0, pack.target_in_latents)
        velocity = self.read_velocity(targets, pack, latents, timesteps, sampling=sampling)
        labelled = hidden.understanding.index_select(0, pack.understanding_row[pack.label_index])
        return NetworkOutput(hidden, velocity, state, self.language_model.lm_head(labelled))

    def encode_images(
        self, pack: PackedSequence, generator: torch.Generator | None = None, *, sample: bool = False
    ) -> Tensor:
        """(N, P): clean latent tokens of every latent split, each image encoded once and by itself."""
        encoded = self.autoencoder.encode_each(pack.images, generator, sample=sample, encoded=pack.encoded)
        tokens = [latents_to_tokens(z, self.config.latent_patch_size) for z in encoded]
        if not pack.latent_splits:
            return torch.zeros(0, self.config.latent_token_size, device=pack.device)
        return torch.cat([tokens[s.pixels] for s in pack.latent_splits])  # type: ignore[index]  # latent splits have pixels

    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(T, P) latent tokens of one image of `grid` (rows, columns) -> (3, H, W) in [-1, 1], clamped, float32."""
        latents = tokens_to_latents(tokens, grid, self.config.latent_patch_size)
        return self.autoencoder.decode(latents[None])[0].float().clamp(-1, 1)
