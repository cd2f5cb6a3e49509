"""What the bridge computes from the understanding expert's states.

Shapes: L tokens, U understanding tokens, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from scone_pl.model.attention import AttentionPlan
from scone_pl.model.bridge.dropping import Remaining
from scone_pl.model.bridge.similarity import Similarity
from scone_pl.model.bridge.thresholds import ADAPTIVE
from scone_pl.model.config import BridgeConfig
from scone_pl.model.sequence import PackedSequence


@dataclass(frozen=True)
class BridgeState:
    """The bridge's result on one pack."""

    similarity: Tensor
    """(L,) float32; 1 where none is defined."""
    blocked: Tensor
    """(L,) bool: below the threshold; a hard mask hides these from target queries in the masked layers."""
    bias: Tensor | None = None
    """(L,) float32, soft mode: added to target queries' logits in the masked layers; 0 where nothing is hidden."""
    remaining: Remaining | None = None
    """With `drop_blocked`: the tokens that the layers after the source layer compute."""

    def apply(self, plan: AttentionPlan) -> AttentionPlan:
        """`plan` for the masked layers."""
        return plan.hiding(self.blocked) if self.bias is None else plan.biased(self.bias)


class Bridge:
    """Similarity, threshold and mask of one pack."""

    def __init__(self, config: BridgeConfig, pack: PackedSequence, *, differentiable: bool = False) -> None:
        """With `differentiable`, or in soft mode, the similarity keeps its graph; a hard mask, a step, passes none."""
        self.config = config
        self.pack = pack
        self.differentiable = differentiable or config.mode == "soft"

    @cached_property
    def similarity(self) -> Similarity:
        return Similarity(self.pack, self.config.pooling, self.config.rotation_seed)

    def __call__(self, understanding: Tensor) -> BridgeState:
        """`understanding` (U, D): the expert's states after the source layer."""
        if self.config.oracle:
            return self.decide(self.similarity.of_boxes)
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            return self.decide(self.similarity(understanding))

    def decide(self, similarity: Tensor) -> BridgeState:
        """`similarity` (L,) -> what is blocked, and how strongly."""
        # Where no similarity is defined nothing is blocked, not even by a threshold over 1.
        maskable = self.similarity.maskable
        threshold = self.threshold(similarity.detach())
        bias = None
        if self.config.mode == "soft":
            bias = F.logsigmoid((similarity - threshold) / self.config.temperature).masked_fill(~maskable, 0.0)
        compared = similarity.detach()
        if self.config.threshold_dtype == "bfloat16":
            compared = compared.bfloat16()  # against a number torch rounds that number too
        blocked = (compared < threshold) & maskable
        remaining = Remaining(self.pack, blocked) if self.config.drop_blocked else None
        return BridgeState(similarity, blocked, bias, remaining)

    def threshold(self, similarity: Tensor) -> Tensor | float:
        """tau: a number, or where it differs by reference image (L,); `similarity` is (L,)."""
        config, quantile = self.config, self.config.quantile
        if quantile is not None:
            return self.similarity.of_images(similarity, lambda s: s.quantile(quantile, dim=1), config.threshold)
        if config.adaptive_threshold is not None:
            return self.similarity.of_images(similarity, ADAPTIVE[config.adaptive_threshold], config.threshold)
        return config.threshold
