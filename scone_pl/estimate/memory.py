"""Peak memory of a rank, phase by phase.

State is exact. Activations are counted (`activations.py`). What FSDP2 gathers and reduces is estimated from how it
works on CUDA, so rather high: the next layer's weights are fetched while one computes, out of a flat buffer; one
layer's gradients are reduced while the next one's are made; token embedding and language head are gathered by
themselves, each beside one layer; what is in none of these stays gathered for the whole step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scone_pl.dtypes import DTYPES
from scone_pl.estimate.activations import StepActivations
from scone_pl.estimate.state import MASTER_BYTES, SIZES, Network, Plan, RankState
from scone_pl.estimate.tracking import LiveBytes, fused_kernels
from scone_pl.model.config import NetworkConfig
from scone_pl.model.vae import build_autoencoder

GATHERED_LAYERS = 3
"""The layer that computes, the next one, and the flat buffer that it comes in."""
REDUCED_LAYERS = 2
"""The layer whose gradients are reduced, and the one before it until that is done."""
PROCESS_BYTES = 2 * 2**30
"""What CUDA and NCCL take for themselves, about."""
FRAGMENTATION = 0.05
"""Share of the whole that the allocator can not use, about."""
LOADING_BYTES = 10**9
"""Host memory of a rank while weights are read, relative to the size of its own part of them."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a rank. State is there all the time, of the phases the worst counts."""

    state: RankState
    gathered: int
    """Weights and gradients of whole units, in forward and backward."""
    activations: StepActivations
    encode: int
    """Activations of encoding one image."""
    outside: int
    """End of the backward: weights and gradients of what is in no unit of its own."""
    update: int
    """What AdamW needs while it steps."""

    @property
    def peak(self) -> int:
        """Without what the process takes for itself."""
        return self.state.total + max(
            self.encode, self.gathered + self.activations.peak, self.gathered + self.outside, self.update
        )

    @property
    def needed(self) -> int:
        """With what CUDA takes and the allocator loses."""
        return round(self.peak * (1 + FRAGMENTATION)) + PROCESS_BYTES


def rank_memory(
    network: Network,
    plan: Plan,
    activations: StepActivations,
    encode: int,
    *,
    ema: bool = False,
    autoencoder_dtype: str = "float32",
) -> RankMemory:
    """Memory of the rank with the largest shards.

    Args:
        network: its parameters.
        plan: how it is distributed over the ranks.
        activations: of a step.
        encode: bytes of encoding one image, see `encode_bytes`.
        ema: whether the weights are averaged.
        autoencoder_dtype: of its weights.
    """
    state = network.state(plan, ema=ema, autoencoder_dtype=autoencoder_dtype)
    layer, vocabulary, root = network.units()
    compute, reduce = SIZES[plan.compute], SIZES[plan.reduce]
    gathered = outside = 0
    if plan.kind == "sharded":
        layers = GATHERED_LAYERS * layer.weights * compute + layer.trained * (compute + REDUCED_LAYERS * reduce)
        # The head's backward: its weights and gradients, while the last layer's weights come in.
        words = (2 * vocabulary.weights + layer.weights) * compute + vocabulary.trained * (compute + reduce)
        gathered = root.weights * compute + max(layers, words)
        if not plan.reshard:
            gathered += (_num_layers(network) * layer.weights + 2 * vocabulary.weights) * compute
        outside = root.trained * (compute + reduce)
    elif plan.kind == "replicated":
        gathered = state.gradients  # DDP's buckets
    if plan.kind != "sharded" and plan.compute == "bfloat16":
        gathered += state.trained * compute  # autocast keeps a copy of the weights that train
    return RankMemory(state, gathered, activations, encode, outside, state.trained * MASTER_BYTES)


def _num_layers(network: Network) -> int:
    return 1 + max(int(n.split(".layers.")[1].split(".")[0]) for n in network.shapes if "model.layers." in n)


def encode_bytes(config: NetworkConfig, side: int, dtype: str = "float32") -> int:
    """Most activations of encoding one square image of `side` pixels in `dtype`, without the library's workspace."""
    with torch.device("meta"):
        autoencoder = build_autoencoder(config.autoencoder).eval().to(DTYPES[dtype])
        image = torch.empty(1, 3, side, side)
    with torch.no_grad(), fused_kernels(), LiveBytes() as live:
        live.ignore(*autoencoder.parameters(), image)
        autoencoder.encode(image)
    peak: int = live.peak
    return peak


def host_bytes(network: Network, state: RankState, *, ranks_a_node: int) -> dict[str, int]:
    """Host memory of a node: while weights are read, and of a snapshot that is written in the background.

    Args:
        network: its parameters.
        state: of a rank.
        ranks_a_node: processes that share the node.
    """
    stored = sum(network.count().values()) * 2  # bfloat16
    return {
        "loading, a rank": state.weights + state.autoencoder + LOADING_BYTES,
        "loading, a node": ranks_a_node * (state.weights + state.autoencoder + LOADING_BYTES),
        "file cache that helps (can be given back)": stored,
        "snapshot under way, a node": ranks_a_node * (3 * state.trained * MASTER_BYTES + state.ema),
    }
