"""Which tokens each decoder layer computes and which it hides: what the bridge changes on the way through the decoder.

`Decoder` asks a `LayerSchedule` before each layer and shows it the states after each. The base class is a decoder
without a bridge: every layer the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from scone_pl.model.attention import AttentionPlan
from scone_pl.model.bridge.dropping import Remaining
from scone_pl.model.bridge.state import Bridge, BridgeState
from scone_pl.model.experts import ByExpert, Routing

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, see `embeddings.rotary_tables`."""


class LayerTokens(NamedTuple):
    """What a decoder layer needs of its tokens besides their states."""

    routing: Routing
    rotary: Rotary
    plan: AttentionPlan


class LayerSchedule:
    """The same tokens and the same attention in every layer."""

    state: BridgeState | None = None
    """The bridge's result, once its source layer has run."""

    def __init__(self, tokens: LayerTokens) -> None:
        self.tokens = tokens

    def before(self, layer: int) -> LayerTokens:
        """What decoder layer `layer` works on."""
        return self.tokens

    def after(self, layer: int, x: ByExpert) -> ByExpert:
        """The states that leave decoder layer `layer` -> those that enter the next."""
        return x

    def restore(self, x: ByExpert) -> ByExpert:
        """The final states -> those of all tokens, 0 for dropped tokens."""
        return x


class BridgeSchedule(LayerSchedule):
    """Hides references early, compares after the source layer, then masks or drops what is blocked."""

    def __init__(
        self,
        bridge: Bridge,
        tokens: LayerTokens,
        num_layers: int,
        position_ids: Tensor,
        rotary_of: Callable[[Tensor], Rotary],
    ) -> None:
        """Keeps what the layers after the source layer need.

        Args:
            bridge: what decides.
            tokens: those of all layers, before anything is hidden.
            num_layers: of the decoder.
            position_ids: (L, ...) RoPE positions.
            rotary_of: the tables of positions, for the tokens that remain after dropping.

        Raises:
            ValueError: the bridge names a layer that the decoder does not have.
        """
        super().__init__(tokens)
        self.bridge, self.config = bridge, bridge.config
        if self.config.last_masked_layer >= num_layers:
            raise ValueError(
                f"bridge.last_masked_layer is {self.config.last_masked_layer} but the decoder's last layer is "
                f"{num_layers - 1}"
            )
        self._position_ids, self._rotary_of = position_ids, rotary_of
        self._early_plan = self._masked_plan = tokens.plan
        if self.config.hides_references_in(0):
            self._early_plan = tokens.plan.hiding(bridge.pack.reference_tokens)
        if self.config.oracle and not self.config.drop_blocked:  # no layer has to come first
            self.state = bridge.decide(bridge.similarity.of_boxes)
            self._masked_plan = self.state.apply(tokens.plan)

    def before(self, layer: int) -> LayerTokens:
        if self.config.hides_references_in(layer):
            return self.tokens._replace(plan=self._early_plan)
        if self.config.masks_layer(layer):
            return self.tokens._replace(plan=self._masked_plan)
        return self.tokens

    def after(self, layer: int, x: ByExpert) -> ByExpert:
        if layer != self.config.source_layer or self.state is not None:
            return x
        self.state = self.bridge(x.understanding)
        if self.state.remaining is not None:
            return self._drop(self.state.remaining, x)
        if self.config.apply_mask:
            self._masked_plan = self.state.apply(self.tokens.plan)
        return x

    def _drop(self, remaining: Remaining, x: ByExpert) -> ByExpert:
        pack = remaining.pack
        self._masked_plan = self.tokens.plan.over(pack, remaining.present)
        rotary = self._rotary_of(remaining.spread(self._position_ids))
        self.tokens = LayerTokens(remaining.routing, rotary, self._masked_plan)
        return remaining.take(x)

    def restore(self, x: ByExpert) -> ByExpert:
        return x if self.state is None or self.state.remaining is None else self.state.remaining.restore(x)
