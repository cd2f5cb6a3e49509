"""The interface of an attention backend.

Shapes: L tokens, H query heads, K key/value heads, E head dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from scone_pl.model.sequence import PackedSequence


class AttentionPlan(ABC):
    """Joint attention over one pack."""

    @abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """`q` (L, H, E), `k` and `v` (L, K, E) of decoder layer `layer` -> (L, H, E)."""

    @abstractmethod
    def hiding(self, blocked: Tensor) -> AttentionPlan:
        """The same plan, but target latent queries skip the keys where `blocked` (L,) bool is true.

        Only context tokens can be blocked; a target always sees itself.
        """

    def biased(self, bias: Tensor) -> AttentionPlan:
        """The same plan, but `bias` (L,) float is added to the logits that target latent queries give context keys.

        The bias gets a gradient. 0 for keys that are left alone.
        """
        raise ValueError(f"{type(self).__name__} has no soft bridge; use bridge.mode hard")

    def over(self, pack: PackedSequence, present: Tensor | None) -> AttentionPlan:
        """The same backend over another pack, in which nothing is hidden yet.

        Args:
            pack: the sequence to attend over.
            present: (L,) bool; tokens where it is false are invisible to every query. They are context tokens of
                samples that have neighbours of equal layout (`bridge/dropping.py`); None = all are present.
        """
        raise ValueError(f"{type(self).__name__} cannot drop tokens; use bridge.drop_blocked false")
