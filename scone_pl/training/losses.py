"""What a packed sequence is trained on (docs/specification.md 4).

Shapes: N latent tokens, P values of a latent token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scone_pl import flow
from scone_pl.errors import UserError
from scone_pl.model.bridge import BridgeState
from scone_pl.model.config import BridgeConfig
from scone_pl.model.indices import to_device
from scone_pl.model.network import Network, NetworkOutput
from scone_pl.model.sequence import PackedSequence
from scone_pl.ranges import check_number


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Beyond the paper: supervises the bridge's similarity where the data labels the tokens of target subjects."""

    weight: float = 0.0
    """Weight of the term; 0 = off, as in the paper."""
    temperature: float = 0.1
    """Similarity enters as sigmoid((s - tau) / temperature), tau being the bridge's `threshold` or `quantile`."""

    def __post_init__(self) -> None:
        check_number("model.alignment.weight", self.weight, minimum=0)
        check_number("model.alignment.temperature", self.temperature, above=0)
        if self.temperature != type(self).temperature and not self.weight:
            raise UserError("model.alignment.temperature has no effect while model.alignment.weight is 0")


@dataclass(frozen=True)
class FlowResult:
    """One noised forward pass."""

    output: NetworkOutput
    squared_error: Tensor
    """(target tokens, P)."""


def flow_matching(
    model: Network,
    pack: PackedSequence,
    clean: Tensor,
    noise: Tensor,
    *,
    bridge: BridgeConfig | None = None,
    timestep_shift: float = 1.0,
    similarity_grad: bool = False,
) -> FlowResult:
    """Noises the targets, predicts their velocity and compares.

    Args:
        model: the network.
        pack: its `timestep_logits` are the noise levels of the targets; references are clean (t = 0).
        clean: (N, P) latent tokens of all images.
        noise: (N, P), standard normal; only the targets' rows matter.
        bridge: None = no mask.
        timestep_shift: 1 in all Scone stages.
        similarity_grad: see `Network.forward`.
    """
    timesteps = flow.timesteps_from_logits(pack.timestep_logits, timestep_shift)
    scales = model.noise_scales([len(split.content) for split in pack.latent_splits])
    if scales is not None:
        noise = noise * pack.expand_latent_splits(to_device(scales, noise.device))[:, None]
    noisy = flow.add_noise(clean, noise, pack.expand_latent_splits(timesteps))
    output = model(pack, noisy, timesteps, bridge, similarity_grad=similarity_grad)
    target = model.velocity_target(pack, clean, noise, timesteps).index_select(0, pack.target_in_latents)
    return FlowResult(output, (output.velocity.float() - target.float()).square())


def text_cross_entropy(output: NetworkOutput, pack: PackedSequence) -> Tensor:
    """Sum over the labels of the cross-entropy of the next token, the end token included."""
    return F.cross_entropy(output.text_logits.float(), pack.label_ids, reduction="sum")


def alignment(state: BridgeState, pack: PackedSequence, threshold: Tensor | float, temperature: float) -> Tensor:
    """Beyond the paper: mean binary cross-entropy of sigmoid((s - threshold) / temperature) against `vit_labels`.

    0 if no token of the pack is labelled.

    Args:
        state: what the bridge computed.
        pack: the pack that it was computed from.
        threshold: a number, or with `BridgeConfig.quantile` (L,), see `Bridge.threshold`.
        temperature: see `AlignmentConfig`.
    """
    if pack.vit_labels is None:
        return state.similarity.new_zeros(())
    # A weight of 0 for what is unknown: for an index by a mask the host would wait for the device.
    known = (~torch.isnan(pack.vit_labels)).to(state.similarity.dtype)
    of_token = threshold[pack.vit_index] if isinstance(threshold, Tensor) else threshold
    logits = (state.similarity[pack.vit_index] - of_token) / temperature
    labels = pack.vit_labels.nan_to_num().to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(logits, labels, known, reduction="sum")
    return total / known.sum().clamp(min=1)
