"""One forward pass over references and instruction, from which every setting of the bridge follows without another.

The bridge only thresholds a similarity that depends on its source layer; hiding tokens from a target changes neither
references nor instruction. So the similarities of all layers, read once, say for any `BridgeConfig` what it blocks.

Shapes: L tokens.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scone_pl.analysis.similarity import similarity_of_layers
from scone_pl.errors import UserError
from scone_pl.model.bridge import Bridge, BridgeState
from scone_pl.model.config import BridgeConfig
from scone_pl.model.sequence import PackedSequence, Split, SplitKind
from scone_pl.sampling.context import Prompt, pack_contexts
from scone_pl.sampling.pipeline import SconePipeline
from scone_pl.sampling.sampler import to_uint8
from scone_pl.sampling.visualize import Pixels


@dataclass(frozen=True)
class VisibleReference:
    """What targets see of one reference image in the masked layers."""

    weights: np.ndarray
    """(rows, columns) float in [0, 1] over the tokens that targets look up, of the VAE if there is one: 0 or 1 under a
    hard mask, sigmoid((s - tau) / T) under a soft one."""
    visible: int
    """Number of its tokens, of every kind, that are not blocked."""
    tokens: int
    """Number of its tokens."""


@dataclass(frozen=True)
class Reading:
    """Similarities of one prompt's references with its instruction."""

    prompt: Prompt
    pack: PackedSequence
    """References and instruction."""
    similarity: Tensor
    """(1 + layers, L) float32, as the bridge reads it before the first layer and behind each."""
    seconds: float

    @property
    def num_layers(self) -> int:
        return len(self.similarity) - 1

    @property
    def references(self) -> list[Pixels]:
        """(H, W, 3) uint8 each, as the autoencoder saw them."""
        return [to_uint8(vae).numpy() for vae, _ in self.prompt.references]

    def maps(self, reference: int) -> np.ndarray:
        """(1 + layers, rows, columns) float32: of a reference's ViT tokens, before the first layer and behind each."""
        split = self.pack.splits_of(SplitKind.VIT)[reference]
        maps: np.ndarray = self.similarity[:, _inside(split)].unflatten(1, split.grid).numpy()
        return maps

    def decide(self, bridge: BridgeConfig) -> BridgeState:
        """What the bridge blocks; no forward pass.

        Raises:
            UserError: the model does not have the bridge's layers, or the bridge compares otherwise than the paper.
        """
        if bridge.oracle or bridge.rotation_seed is not None:
            raise UserError("the page shows similarities; leave bridge.oracle and bridge.rotation_seed out")
        if bridge.pooling != "mean":
            raise UserError(f"the page shows similarities of bridge.pooling mean; this bridge has {bridge.pooling}")
        if bridge.last_masked_layer >= self.num_layers:
            raise UserError(f"the last masked layer is {bridge.last_masked_layer}; the last is {self.num_layers - 1}")
        return Bridge(bridge, self.pack).decide(self.similarity[1 + bridge.source_layer])

    def visible(self, bridge: BridgeConfig) -> list[VisibleReference]:
        """Per reference what the bridge leaves of it."""
        state = self.decide(bridge)
        weights, found = _weights(state), []
        for mapped, vit in zip(self.pack.mapped_splits, self.pack.splits_of(SplitKind.VIT), strict=True):
            own = [mapped] if mapped is vit else [mapped, vit]
            blocked = torch.cat([state.blocked[_inside(split)] for split in own])
            grid = weights[_inside(mapped)].view(mapped.grid).numpy()  # type: ignore[arg-type]  # images have grids
            found.append(VisibleReference(grid, int((~blocked).sum()), len(blocked)))
        return found

    def tokens_read(self, bridge: BridgeConfig | None) -> float:
        """Reference tokens that a target token attends to, mean over layers; None = without a bridge.

        A token that a soft bridge weights down counts as its weight.
        """
        reference = self.pack.reference_tokens
        whole = float(reference.sum())
        if bridge is None or not bridge.apply_mask:
            return whole
        masked = float(_weights(self.decide(bridge))[reference].sum())
        per_layer = []
        for layer in range(self.num_layers):
            if bridge.hides_references_in(layer):
                per_layer.append(0.0)
            else:
                acts = layer > bridge.source_layer if bridge.drop_blocked else bridge.masks_layer(layer)
                per_layer.append(masked if acts else whole)
        return sum(per_layer) / self.num_layers


def read(pipeline: SconePipeline, prompt: Prompt) -> Reading:
    """The forward pass.

    Raises:
        UserError: the prompt lacks references or instruction, so that there is nothing to compare.
    """
    if not prompt.references or not prompt.text_ids:
        raise UserError("give at least one reference image and an instruction")
    start = time.perf_counter()
    packed, _, _ = pack_contexts(pipeline.sequence_format, [prompt])
    pack = packed.to(pipeline.device)
    with torch.no_grad():
        layers = similarity_of_layers(pipeline.model, pack, pipeline.model.encode_images(pack))
    # Only positions and splits are needed from here on, on the CPU.
    kept = dataclasses.replace(packed, images=())
    similarity = torch.cat([layers.inputs, layers.understanding])
    return Reading(prompt, kept, similarity, time.perf_counter() - start)


def _weights(state: BridgeState) -> Tensor:
    """(L,) float32 in [0, 1]: how much a target in the masked layers sees of each token."""
    return (~state.blocked).float() if state.bias is None else state.bias.exp()


def _inside(split: Split) -> slice:
    """A split without its start and end tokens."""
    return slice(split.content.start, split.content.stop)
