"""The mixture-of-transformers decoder: every layer holds two experts that share attention.

Module names are the published keys (specification 8): `x` is the understanding expert's, `x_moe_gen` the generation
expert's (`DecoderConfig.generation_mark`). A dense decoder has no `x_moe_gen`, and `x` serves all tokens.

Shapes: L tokens = U understanding + N latent tokens, D hidden size, H heads, K key/value heads, E head dimension.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from scone_pl.model import compiled
from scone_pl.model.attention import AttentionPlan
from scone_pl.model.bridge import Bridge, BridgeSchedule, BridgeState, LayerSchedule
from scone_pl.model.bridge.schedule import LayerTokens, Rotary
from scone_pl.model.config import DecoderConfig
from scone_pl.model.embeddings import apply_rotary, axis_rotary_tables, pair_axes, rotary_tables
from scone_pl.model.experts import ByExpert, HoldsExperts, RMSNorm, Routing


class GatedMLP(nn.Module):
    """SiLU-gated MLP."""

    compiled = False
    """See `compiled.set_compiled`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(compiled.gated(gate, up) if self.compiled else F.silu(gate) * up)


class JointAttention(HoldsExperts):
    """Projections per expert, attention over all tokens together."""

    compiled = False
    """See `compiled.set_compiled`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.head_dim = config.head_dim
        self.norms_by_axis = config.rope_theta_grid is not None
        """Whether each half of a head has a norm of its own: the first turns by time, the second by row and column."""
        hidden, heads = config.hidden_size, config.num_heads * config.head_dim
        kv, bias = config.num_kv_heads * config.head_dim, config.qkv_bias
        norms = ("q_norm", "k_norm", "q_norm_hw", "k_norm_hw") if self.norms_by_axis else ("q_norm", "k_norm")
        for mark in self.marks:
            self.add_module(f"q_proj{mark}", nn.Linear(hidden, heads, bias=bias))
            self.add_module(f"k_proj{mark}", nn.Linear(hidden, kv, bias=bias))
            self.add_module(f"v_proj{mark}", nn.Linear(hidden, kv, bias=bias))
            self.add_module(f"o_proj{mark}", nn.Linear(heads, hidden, bias=False))
            for norm in norms:
                size = config.head_dim // 2 if self.norms_by_axis else config.head_dim
                self.add_module(f"{norm}{mark}", RMSNorm(size, config.rms_norm_eps))

    def _heads(self, x: ByExpert) -> ByExpert:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, self.head_dim))

        return x.map(split, split)

    def _normed(self, x: ByExpert, norm: str) -> ByExpert:
        if not self.norms_by_axis:
            return x.through(self, norm)
        times, grids = (ByExpert(*halves) for halves in zip(*(y.chunk(2, dim=-1) for y in x), strict=True))
        parts = zip(times.through(self, norm), grids.through(self, f"{norm}_hw"), strict=True)
        return ByExpert(*(pair_axes(*both) for both in parts))

    def forward(self, x: ByExpert, routing: Routing, rotary: Rotary, plan: AttentionPlan, layer: int) -> ByExpert:
        """(U, D), (N, D) -> the same; queries, keys and values are (L, H or K, E) in between, in sequence order."""
        q = self._normed(self._heads(x.through(self, "q_proj")), "q_norm")
        k = self._normed(self._heads(x.through(self, "k_proj")), "k_norm")
        v = self._heads(x.through(self, "v_proj"))
        queries, keys = (apply_rotary(routing.merge(x), rotary, in_one_kernel=self.compiled) for x in (q, k))
        attended = plan(queries, keys, routing.merge(v), layer)
        return routing.divide(attended.flatten(1)).through(self, "o_proj")


class DecoderLayer(HoldsExperts):
    """Pre-norm attention and MLP."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config)
        self.layer = layer
        self.self_attn = JointAttention(config)
        for mark in self.marks:
            self.add_module(f"mlp{mark}", GatedMLP(config))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            for mark in self.marks:
                self.add_module(f"{norm}{mark}", RMSNorm(config.hidden_size, config.rms_norm_eps))

    def forward(
        self, understanding: Tensor, generation: Tensor, routing: Routing, rotary: Rotary, plan: AttentionPlan
    ) -> ByExpert:
        """(U, D), (N, D) -> the same, updated."""
        x = ByExpert(understanding, generation)
        normed = x.through(self, "input_layernorm")
        x = x + self.self_attn(normed, routing, rotary, plan, self.layer)
        normed = x.through(self, "post_attention_layernorm")
        return x + normed.through(self, "mlp")


class Decoder(HoldsExperts):
    """Embedding table, layers, final norms."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.config = config
        self.activation_checkpointing = False
        """Recompute layers in the backward pass instead of keeping their activations."""
        self.layers_kept = 0
        """The last N layers are not recomputed: the backward pass frees their activations first."""
        self.recompute_attention = True
        """Whether recomputed layers recompute attention too, or keep its outputs."""
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_layers))
        for mark in self.marks:
            self.add_module(f"norm{mark}", RMSNorm(config.hidden_size, config.rms_norm_eps))

    def forward(
        self, x: ByExpert, routing: Routing, position_ids: Tensor, plan: AttentionPlan, bridge: Bridge | None = None
    ) -> tuple[ByExpert, BridgeState | None]:
        """Runs all layers.

        Args:
            x: embedded tokens, (U, D) and (N, D).
            routing: their positions in the sequence.
            position_ids: (L,) RoPE positions, or (L, 3) with `DecoderConfig.rope_theta_grid`: time, row, column.
            plan: who attends to whom.
            bridge: hides the reference tokens that it blocks from target queries, or drops them from the network.

        Returns:
            The final-normed states, 0 for dropped tokens, and the bridge's result.

        Raises:
            ValueError: the bridge names a layer that the decoder does not have.
        """
        tokens = LayerTokens(routing, self._rotary(position_ids), plan)
        schedule = LayerSchedule(tokens)
        if bridge is not None:
            schedule = BridgeSchedule(bridge, tokens, len(self.layers), position_ids, self._rotary)
        x = schedule.after(-1, x)
        for i, layer in enumerate(self.layers):
            arguments = (*x, *schedule.before(i))
            if self.activation_checkpointing and self.training and i < len(self.layers) - self.layers_kept:
                x = checkpoint(layer, *arguments, use_reentrant=False, **self._checkpointing)
            else:
                x = layer(*arguments)
            x = schedule.after(i, x)
        return schedule.restore(x.through(self, "norm")), schedule.state

    @property
    def _checkpointing(self) -> dict[str, Any]:
        if self.recompute_attention:
            return {}
        return {"context_fn": partial(create_selective_checkpoint_contexts, _keep_attention)}

    def _rotary(self, position_ids: Tensor) -> Rotary:
        config = self.config
        if config.rope_theta_grid is not None:
            return axis_rotary_tables(position_ids, config.head_dim, config.rope_theta, config.rope_theta_grid)
        return rotary_tables(position_ids, config.head_dim, config.rope_theta)


ATTENTION_KERNELS = (
    torch.ops.aten._flash_attention_forward.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)
"""What the backends but flex call."""


def _keep_attention(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keeps what attention kernels return; everything else is recomputed."""
    kept = operation in ATTENTION_KERNELS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
