"""The whole network: embeds a packed sequence, runs the decoder, reads velocities and text logits from its states.

Shapes: L tokens = U understanding + N latent tokens, T text-like tokens, V ViT tokens, D hidden size, P values of a
latent token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scone_pl.model.attention import ATTENTION_BACKENDS, AttentionPlan
from scone_pl.model.bridge import Bridge, BridgeState
from scone_pl.model.config import BridgeConfig, DecoderConfig, SconeConfig, ViTConfig
from scone_pl.model.decoder import Decoder
from scone_pl.model.embeddings import PositionTable, TimestepEmbedder
from scone_pl.model.experts import ByExpert, Routing
from scone_pl.model.sequence import PackedSequence
from scone_pl.model.vae import as_float, build_autoencoder, latents_to_tokens
from scone_pl.model.vit import SiglipModel


@dataclass(frozen=True)
class SconeOutput:
    """Output of a forward pass."""

    hidden: ByExpert
    """Final-normed states, (U, D) and (N, D)."""
    velocity: Tensor
    """(target tokens, P): predicted noise - x0, in sequence order."""
    bridge: BridgeState | None
    text_logits: Tensor
    """(labels, vocabulary): at the tokens of `PackedSequence.label_index` only."""


class Connector(nn.Module):
    """ViT features -> hidden states of the understanding expert."""

    def __init__(self, vit: ViTConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vit.hidden_size, decoder.hidden_size)
        self.fc2 = nn.Linear(decoder.hidden_size, decoder.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class LanguageModel(nn.Module):
    """Gives the decoder and the head their published key prefixes."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class Scone(nn.Module):
    """BAGEL-7B-MoT with the understanding bridge. Module names are the published keys.

    The autoencoder is frozen: Scone does not train it, and it is stored in a file of its own.
    """

    def __init__(self, config: SconeConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = "split"
        """Name of the attention backend, a key of `ATTENTION_BACKENDS`."""
        self.runs_towers_always = False
        """Run the ViT for packs without ViT tokens too: under FSDP every rank must gather the same weights."""
        hidden = config.decoder.hidden_size
        self.language_model = LanguageModel(config.decoder)
        self.vit_model = SiglipModel(config.vit)
        self.connector = Connector(config.vit, config.decoder)
        self.vae2llm = nn.Linear(config.latent_token_size, hidden)
        self.llm2vae = nn.Linear(hidden, config.latent_token_size)
        self.time_embedder = TimestepEmbedder(hidden)
        self.latent_pos_embed = PositionTable(config.latent_positions_per_side, hidden)
        self.vit_pos_embed = PositionTable(config.vit_positions_per_side, hidden)
        self.autoencoder = build_autoencoder(config.autoencoder).requires_grad_(False)

    def embed(self, pack: PackedSequence, latents: Tensor, timesteps: Tensor) -> ByExpert:
        """Tokens -> hidden states.

        Args:
            pack: the sequence.
            latents: (N, P) latent tokens, clean or noisy, in sequence order.
            timesteps: (latent splits,) t in [0, 1]; 0 for clean references.
        """
        words = self.language_model.model.embed_tokens(pack.text_ids)
        row = pack.understanding_row
        understanding = words.new_zeros(len(pack.understanding_index), words.shape[1])
        understanding = understanding.index_copy(0, row[pack.text_index], words)
        if len(pack.vit_positions):
            lengths = [rows * columns for rows, columns in pack.vit_grids]
            features = self.connector(self.vit_model(as_float(pack.vit_patches), pack.vit_positions, lengths))
            features = features + self.vit_pos_embed(pack.vit_positions).to(features.dtype)
            understanding = understanding.index_copy(0, row[pack.vit_index], features.to(words.dtype))
        elif self.runs_towers_always:
            blank = understanding.new_zeros(1, 3 * self.config.vit.patch_size**2, dtype=torch.float32)
            unused = self.connector(self.vit_model(blank, pack.text_ids.new_zeros(1), [1]))
            understanding = understanding + 0 * unused.sum().to(understanding.dtype)
        generation = self.vae2llm(latents.to(self.vae2llm.weight.dtype))
        generation = generation + pack.expand_latent_splits(self.time_embedder(timesteps))
        generation = generation + self.latent_pos_embed(pack.latent_positions).to(generation.dtype)
        return ByExpert(understanding, generation)

    def forward(
        self,
        pack: PackedSequence,
        latents: Tensor,
        timesteps: Tensor,
        bridge: BridgeConfig | None = None,
        plan: AttentionPlan | None = None,
        *,
        similarity_grad: bool = False,
    ) -> SconeOutput:
        """One pass over a pack.

        Args:
            pack: the sequence.
            latents: as in `embed`.
            timesteps: as in `embed`.
            bridge: hide reference tokens from target queries; None = the bridge is off.
            plan: attention other than the backend's plan of the pack (cached contexts).
            similarity_grad: keep the graph of the bridge's similarity, for a loss on it.
        """
        routing = Routing(pack)
        plan = plan or ATTENTION_BACKENDS[self.attention](pack)  # type: ignore[call-arg]
        x = self.embed(pack, latents, timesteps)
        guide = None if bridge is None else Bridge(bridge, pack, differentiable=similarity_grad)
        hidden, state = self.language_model.model(x, routing, pack.position_ids, plan, guide)
        velocity = self.llm2vae(hidden.generation.index_select(0, pack.target_in_latents))
        labelled = hidden.understanding.index_select(0, pack.understanding_row[pack.label_index])
        return SconeOutput(hidden, velocity, state, self.language_model.lm_head(labelled))

    def encode_images(
        self, pack: PackedSequence, generator: torch.Generator | None = None, *, sample: bool = False
    ) -> Tensor:
        """(N, P): clean latent tokens of every latent split, each image encoded once and by itself."""
        encoded = self.autoencoder.encode_each(pack.images, generator, sample=sample, encoded=pack.encoded)
        tokens = [latents_to_tokens(z, self.config.latent_patch_size) for z in encoded]
        if not pack.latent_splits:
            return torch.zeros(0, self.config.latent_token_size, device=pack.device)
        return torch.cat([tokens[s.pixels] for s in pack.latent_splits])  # type: ignore[index]
