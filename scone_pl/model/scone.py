"""BAGEL-7B-MoT with the understanding bridge: SigLIP and a connector for references, latents in and out.

Shapes: U understanding and N latent tokens, V ViT tokens, D hidden size, P values of a latent token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scone_pl.model.config import DecoderConfig, SconeConfig, ViTConfig
from scone_pl.model.embeddings import PositionTable, TimestepEmbedder
from scone_pl.model.experts import ByExpert
from scone_pl.model.network import LanguageModel, Network
from scone_pl.model.sequence import PackedSequence
from scone_pl.model.vae import as_float, build_autoencoder
from scone_pl.model.vit import SiglipModel

if TYPE_CHECKING:
    from scone_pl.model.flops import StepFlops, TokenCounts


INITIAL_VELOCITY = 0.5
"""The velocity of random weights is this fraction of the noisy latent; the best constant is near 0.7."""


class Connector(nn.Module):
    """ViT features -> hidden states of the understanding expert."""

    def __init__(self, vit: ViTConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vit.hidden_size, decoder.hidden_size)
        self.fc2 = nn.Linear(decoder.hidden_size, decoder.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Scone(Network):
    """BAGEL-7B-MoT with the understanding bridge."""

    config: SconeConfig

    def __init__(self, config: SconeConfig) -> None:
        super().__init__(config)
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

    def embed(self, pack: PackedSequence, latents: Tensor, timesteps: Tensor, *, sampling: bool = False) -> ByExpert:
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

    def read_velocity(
        self, states: Tensor, pack: PackedSequence, latents: Tensor, timesteps: Tensor, *, sampling: bool = False
    ) -> Tensor:
        return self.llm2vae(states)

    def initialize_ends(self) -> None:
        # A patch's content must outweigh its position.
        self.vit_model.vision_model.embeddings.position_embedding.weight.mul_(0.2)
        self.time_embedder.spread_times()
        nn.init.orthogonal_(self.vae2llm.weight)
        self.llm2vae.weight.copy_(INITIAL_VELOCITY * self.vae2llm.weight.T)
        nn.init.zeros_(self.llm2vae.bias)

    @property
    def input_weight(self) -> Tensor:
        return self.vae2llm.weight

    @property
    def towers(self) -> list[nn.Module]:
        return [self.vit_model, self.connector]

    @property
    def layers_to_shard(self) -> list[nn.Module]:
        return [*self.language_model.model.layers, *self.vit_model.vision_model.encoder.layers]

    @classmethod
    def input_flops(  # type: ignore[override] # a network is asked with its own config
        cls, config: SconeConfig, flops: StepFlops, counts: TokenCounts, trained: frozenset[str]
    ) -> tuple[bool, bool]:
        vit, hidden = config.vit, config.decoder.hidden_size
        # ViT: patch embedding; per layer q, k, v, out, two MLP maps, attention within each image.
        trains = "vit" in trained
        flops.linear("vit", counts.vit, (3 * vit.patch_size**2, vit.hidden_size), grad_input=False, grad_weight=trains)
        for _ in range(vit.num_layers):
            for sizes in 4 * [(vit.hidden_size, vit.hidden_size)] + 2 * [(vit.hidden_size, vit.intermediate_size)]:
                flops.linear("vit", counts.vit, sizes, grad_input=trains, grad_weight=trains)
            flops.attention("vit", counts.vit_pairs, vit.hidden_size, grad=trains)
        # Into the decoder: connector, latents and timesteps; the latter two need no input gradient.
        connector, latents, times = (part in trained for part in ("connector", "latent_projections", "time_embedder"))
        flops.linear("ends", counts.vit, (vit.hidden_size, hidden), grad_input=trains, grad_weight=connector)
        flops.linear("ends", counts.vit, (hidden, hidden), grad_input=trains or connector, grad_weight=connector)
        values = config.latent_token_size
        flops.linear("ends", counts.generation, (values, hidden), grad_input=False, grad_weight=latents)
        flops.linear("ends", counts.latent_splits, (256, hidden), grad_input=False, grad_weight=times)
        flops.linear("ends", counts.latent_splits, (hidden, hidden), grad_input=times, grad_weight=times)
        return trains or connector, latents or times

    @classmethod
    def output_flops(  # type: ignore[override] # a network is asked with its own config
        cls, config: SconeConfig, flops: StepFlops, counts: TokenCounts, trained: frozenset[str]
    ) -> None:
        sizes = config.decoder.hidden_size, config.latent_token_size
        flops.linear("ends", counts.targets, sizes, grad_input=True, grad_weight="latent_projections" in trained)
