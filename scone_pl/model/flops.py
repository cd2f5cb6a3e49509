"""Matrix-product FLOPs of one training step, as the network defines them, however it is computed.

A multiplication and an addition are 2 FLOPs. Attention counts attended pairs only, so masks, packing and blocked
tokens show. Norms, rotary positions, lookups, activations, the autoencoder (frozen, convolutions) and the optimizer
are left out.

A linear map y = x W of n tokens takes 2 n in out forward, and backward as much again for each gradient that is needed:
for x unless nothing before it trains, for W if it trains.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scone_pl.model.attention import attended_pairs
from scone_pl.model.bridge import kept_lengths, shortened
from scone_pl.model.config import BridgeConfig, NetworkConfig
from scone_pl.model.experts import training_together
from scone_pl.model.indices import to_device
from scone_pl.model.sequence import PackedSequence, SplitKind

TRAINED = ("understanding", "generation", "connector", "latent_projections", "time_embedder")
"""Parts that train by default: everything but ViT and autoencoder; named as in `scone_pl.training.parts`."""


@dataclass(frozen=True)
class TokenCounts:
    """Counts that the FLOPs of a pack depend on."""

    understanding: int
    """Tokens of the understanding expert."""
    generation: int
    """Tokens of the generation expert."""
    targets: int
    """Tokens whose velocity is read."""
    latent_splits: int
    """Embedded timesteps."""
    labels: int
    """Tokens whose next token is predicted."""
    vit: int
    """ViT tokens."""
    vit_pairs: int
    """Pairs that attend in the ViT: every image to itself."""
    pairs: tuple[int, ...]
    """Pairs that attend, per decoder layer."""
    dropped: tuple[int, int] = (0, 0)
    """Tokens of the understanding and of the generation expert that leave the network."""
    dropped_from: int = 0
    """First decoder layer without them."""


def count_tokens(
    pack: PackedSequence, num_layers: int, bridge: BridgeConfig | None = None, blocked: Tensor | None = None
) -> TokenCounts:
    """Counts a pack.

    Args:
        pack: the sequence.
        num_layers: decoder layers.
        bridge: its settings, if it hides tokens.
        blocked: (L,) bool, what it hides in its masked layers, or drops.
    """
    dropped, dropped_from = (0, 0), 0
    pairs = [attended_pairs(pack)] * num_layers
    if bridge is not None and blocked is not None:
        late = attended_pairs(pack, blocked)
        early = attended_pairs(pack, pack.reference_tokens)
        for layer in range(num_layers):
            if bridge.hides_references_in(layer):
                pairs[layer] = early
            elif _spares(bridge, layer):
                pairs[layer] = late
        if bridge.drop_blocked:
            dropped_from = bridge.source_layer + 1
            remaining = attended_pairs(shortened(pack, kept_lengths(pack, blocked)))
            pairs[dropped_from:] = [remaining] * (num_layers - dropped_from)
            latents = int(blocked[pack.latent_index].sum())
            dropped = int(blocked.sum()) - latents, latents
    generation = sum(len(split.content) for split in pack.latent_splits)
    return TokenCounts(
        understanding=len(pack) - generation,
        generation=generation,
        targets=sum(len(split.content) for split in pack.splits_of(SplitKind.TARGET)),
        latent_splits=len(pack.latent_splits),
        labels=len(pack.label_index),
        vit=sum(rows * columns for rows, columns in pack.vit_grids),
        vit_pairs=sum((rows * columns) ** 2 for rows, columns in pack.vit_grids),
        pairs=tuple(pairs),
        dropped=dropped,
        dropped_from=dropped_from,
    )


def spared_pairs(pack: PackedSequence, blocked: Tensor, num_layers: int, bridge: BridgeConfig) -> Tensor:
    """Pairs of all layers that do not attend because the bridge hides them, as a scalar on the pack's device.

    `count_tokens` without a bridge, less these, is `count_tokens` with it; without host-device synchronisation.

    Args:
        pack: the sequence.
        blocked: (L,) bool, what is hidden in the masked layers; reference tokens only.
        num_layers: decoder layers.
        bridge: which layers those are; not for `drop_blocked`.
    """
    targets = [0] * pack.num_samples
    for split in pack.splits_of(SplitKind.TARGET):
        targets[split.sample] += len(split.content)
    early = sum(bridge.hides_references_in(layer) for layer in range(num_layers))
    late = sum(_spares(bridge, layer) and not bridge.hides_references_in(layer) for layer in range(num_layers))
    hidden = late * blocked.long() + early * pack.reference_tokens.long()
    of_sample = hidden.new_zeros(pack.num_samples).index_add_(0, pack.sample_of_token, hidden)
    return (of_sample * to_device(torch.tensor(targets), pack.device)).sum()


def _spares(bridge: BridgeConfig, layer: int) -> bool:
    """A soft mask weights tokens down, but their pairs are computed."""
    return bridge.masks_layer(layer) and bridge.mode == "hard"


@dataclass
class StepFlops:
    """FLOPs of one step, by part: the two experts, joint `attention`, `vit`, `ends` (all other linear maps)."""

    forward: dict[str, int] = field(default_factory=dict)
    backward: dict[str, int] = field(default_factory=dict)
    recomputed: int = 0
    """What activation checkpointing adds: the decoder layers' forward once more. Not part of `total`."""

    @property
    def total(self) -> int:
        return sum(self.forward.values()) + sum(self.backward.values())

    def _add(self, part: str, forward: int, gradients: int) -> None:
        self.forward[part] = self.forward.get(part, 0) + forward
        self.backward[part] = self.backward.get(part, 0) + gradients * forward

    def linear(self, part: str, tokens: int, sizes: tuple[int, int], *, grad_input: bool, grad_weight: bool) -> None:
        """A linear map of `sizes` (in, out)."""
        self._add(part, 2 * tokens * sizes[0] * sizes[1], grad_input + grad_weight)

    def attention(self, part: str, pairs: int, width: int, *, grad: bool) -> None:
        """Scores and weighted sum, 2 products; backward 4 (for v, the weights, q and k)."""
        self._add(part, 2 * 2 * pairs * width, 2 * grad)


def step_flops(config: NetworkConfig, counts: TokenCounts, trained: Collection[str] = TRAINED) -> StepFlops:
    """FLOPs of one training step on a pack, when the parts in `trained` train."""
    flops = StepFlops()
    trained = training_together(trained, config.decoder)
    decoder = config.decoder
    hidden, inner = decoder.hidden_size, decoder.intermediate_size
    kv = decoder.num_kv_heads * decoder.head_dim
    before = config.network.input_flops(config, flops, counts, trained)

    # Decoder. Each expert maps its own tokens, a dense decoder's weights all of them. Where nothing before the first
    # layer trains, the input of its q, k and v needs no gradient; after its attention everything does.
    experts = "understanding", "generation"
    input_grad = {part: trains or part in trained for part, trains in zip(experts, before, strict=True)}
    for layer in range(decoder.num_layers):
        dropped = counts.dropped if layer >= counts.dropped_from else (0, 0)
        remaining = counts.understanding - dropped[0], counts.generation - dropped[1]
        for part, tokens in zip(experts, remaining, strict=True):
            own = part in trained
            for sizes in ((hidden, hidden), (hidden, kv), (hidden, kv)):  # q, k, v
                flops.linear(part, tokens, sizes, grad_input=layer > 0 or input_grad[part], grad_weight=own)
            for sizes in ((hidden, hidden), (hidden, inner), (hidden, inner), (inner, hidden)):  # o, gate, up, down
                flops.linear(part, tokens, sizes, grad_input=True, grad_weight=own)
        flops.attention("attention", counts.pairs[layer], hidden, grad=True)
    flops.recomputed = sum(flops.forward[part] for part in ("understanding", "generation", "attention"))

    # Out of it: velocities of the targets, logits of the labels.
    config.network.output_flops(config, flops, counts, trained)
    head = "understanding" in trained
    flops.linear("ends", counts.labels, (hidden, decoder.vocab_size), grad_input=True, grad_weight=head)
    return flops
