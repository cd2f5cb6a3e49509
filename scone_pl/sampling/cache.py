"""Keys and values of prefilled contexts, and attention of targets over them.

`RecordingPlan` runs contexts once and keeps every layer's keys and values. A `ContextCache` puts those of some prompts
of equal layout into one buffer a layer, with room for the target's own. Attention does not care about the order of
keys, so they are ordered such that whatever a target may see is one slice of the buffer, never a copy:

    blocked references | other references | frames | the target's own | instruction

All of it is the full context, without its right end the context without instruction, without its left end what the
bridge leaves. Where the bridge drops blocked tokens (`DroppingCache`), they are in no buffer after the source layer:
neither with nor without instruction are they seen there. `CachedPlan` is the attention plan of a denoising step: it
writes the targets' own keys and values into their columns and attends.

Shapes: L context tokens, H query heads, K key/value heads, E head dimension; G prompts of equal layout side by side,
C context tokens of each, T tokens of its target (frame included), S = C + T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scone_pl.model.attention import AttentionPlan, attend
from scone_pl.model.config import BridgeConfig
from scone_pl.model.sequence import PackedSequence
from scone_pl.sampling.rebalancing import rebalanced
from scone_pl.sampling.settings import AttentionRebalancingConfig


class RecordingPlan(AttentionPlan):
    """Attends as `inner` does, and keeps keys and values."""

    def __init__(
        self, inner: AttentionPlan, keys: dict[int, Tensor] | None = None, values: dict[int, Tensor] | None = None
    ) -> None:
        """`keys` and `values`: where to keep them, layer -> (L, K, E), rotary positions applied; by default its own."""
        self.inner = inner
        self.keys: dict[int, Tensor] = {} if keys is None else keys
        self.values: dict[int, Tensor] = {} if values is None else values

    def hiding(self, blocked: Tensor) -> AttentionPlan:
        # A context has no target queries, so there is nothing that hiding could change.
        return self

    def biased(self, bias: Tensor) -> AttentionPlan:
        return self

    def over(self, pack: PackedSequence, present: Tensor | None) -> RecordingPlan:
        return RecordingPlan(self.inner.over(pack, present), self.keys, self.values)

    @torch.compiler.disable  # type: ignore[untyped-decorator] # torch's
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        self.keys[layer], self.values[layer] = k, v
        return self.inner(q, k, v, layer)


@dataclass(frozen=True)
class ContextSpan:
    """Where the contexts of G prompts of equal layout lie in a recorded pack."""

    start: int
    num_prompts: int
    length: int
    """C."""
    text_length: int
    """Number of instruction tokens, the last of the C; 0 where the context is never used without them."""


class ContextCache:
    """Keys and values of G contexts of equal layout, and room for those of their targets."""

    def __init__(
        self,
        span: ContextSpan,
        num_own: int,
        reference: Tensor,
        blocked: Tensor | None = None,
        bridge: BridgeConfig | None = None,
        bias: Tensor | None = None,
        filler: Tensor | None = None,
        frame: int = 1,
        rebalancing: AttentionRebalancingConfig | None = None,
    ) -> None:
        """Decides the order of the tokens; `fill` brings them.

        Args:
            span: where they are in the recorded pack.
            num_own: T.
            reference: (L,) bool, reference tokens of that pack.
            blocked: (L,) bool, those that targets do not see in the bridge's masked layers; None = the bridge is off.
            bridge: its settings.
            bias: (L,), soft bridge: what target queries' logits of these tokens receive instead of a mask.
            filler: (L,) bool, tokens before the instruction that no query sees (`bridge/dropping.py`); none is stored
                but what fills prompts up to equal lengths. Not together with `blocked`.
            frame: tokens at either end of a target that are no target latents.
            rebalancing: of the target's attention to references; not together with `blocked` or `filler`.
        """
        self.span, self.num_own, self.frame, self.rebalancing = span, num_own, frame, rebalancing
        self.bridge = None if blocked is None else bridge
        self.own_start = span.length - span.text_length
        rows = slice(span.start, span.start + span.num_prompts * span.length)
        reference = reference[rows].view(span.num_prompts, span.length)[:, : self.own_start]
        hidden = torch.zeros_like(reference)
        if blocked is not None and bias is None:
            hidden = blocked[rows].view(span.num_prompts, span.length)[:, : self.own_start]
        rank = 2 - reference.int() - hidden.int()
        if filler is not None:
            rank[filler[rows].view(span.num_prompts, span.length)[:, : self.own_start]] = -1
        order = torch.argsort(rank, dim=1, stable=True)  # (G, own_start)
        offsets = span.start + torch.arange(span.num_prompts, device=order.device)[:, None] * span.length
        text = torch.arange(self.own_start, span.length, device=order.device).expand(span.num_prompts, -1)
        self._shown: Tensor | None = None
        """(G, 1, 1, S) bool, false for what no query may see."""
        if filler is not None:
            order, self._shown = _without_filler(order, (rank < 0).sum(1), num_own + span.text_length)
            self.own_start = order.shape[1]
        self._rows_before, self._rows_text = order + offsets, text + offsets
        self.num_references = int(reference[0].sum()) if span.num_prompts and self.own_start else 0
        counts = hidden.sum(1)
        self.num_blocked = int(counts.min()) if len(counts) else 0
        """Blocked tokens that are left out by a slice: the fewest of all prompts, the others are masked."""
        self._mask: Tensor | None = None
        if len(counts) and int(counts.max()) > self.num_blocked:
            columns = torch.arange(self.num_blocked, span.length + num_own, device=counts.device)
            self._mask = (columns >= counts[:, None])[:, None, None]  # (G, 1, 1, S - num_blocked)
        elif bias is not None:
            ordered = bias[rows].view(span.num_prompts, span.length)[:, : self.own_start].gather(1, order)
            self._mask = F.pad(ordered, (0, num_own + span.text_length))[:, None, None]
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        """Layer -> keys and values (G, K, S, E)."""

    def fill(self, record: RecordingPlan, layer: int) -> None:
        """Takes its tokens of one layer from a recorded pack; also fine if that had none."""
        if layer in record.keys:
            source = record.keys[layer], record.values[layer]
            self._buffers[layer] = (self._gathered(source[0]), self._gathered(source[1]))

    def _gathered(self, source: Tensor) -> Tensor:
        num_prompts, text_start = self.span.num_prompts, self.own_start + self.num_own
        size = text_start + self.span.text_length
        buffer = source.new_empty(num_prompts, source.shape[1], size, source.shape[2])
        for rows, start in ((self._rows_before, 0), (self._rows_text, text_start)):
            tokens = source.index_select(0, rows.flatten()).view(num_prompts, -1, *source.shape[1:])
            buffer[:, :, start : start + rows.shape[1]] = tokens.transpose(1, 2)
        return buffer

    @property
    def num_targets(self) -> int:
        """G * T."""
        return self.span.num_prompts * self.num_own

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(x.nbytes for pair in self._buffers.values() for x in pair)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, *, with_text: bool) -> Tensor:
        """Attention of the G targets to their contexts and to themselves.

        Args:
            q: (G * T, H, E).
            k: (G * T, K, E), and `v` alike.
            v: see `k`.
            layer: decoder layer.
            with_text: False = as if there were no instruction (and so no mask, docs/specification.md 5).
        """
        q, k, v = (x.unflatten(0, (self.span.num_prompts, -1)).transpose(1, 2) for x in (q, k, v))
        keys, values = self._with_own(k, v, layer)
        if not with_text:
            stop = self.own_start + self.num_own
            keys, values = keys[:, :, :stop], values[:, :, :stop]
        if self.rebalancing is not None:
            keys = rebalanced(q, keys, self.num_references, self.rebalancing)
        left, mask = self._left_out(layer, with_text=with_text)
        if not left and mask is None:
            attended = attend(q, keys, values, None if self._shown is None else self._shown[..., : keys.shape[2]])
        else:
            mask = mask.to(q.dtype) if mask is not None and mask.dtype != torch.bool else mask
            content = slice(self.frame, q.shape[2] - self.frame)
            attended = attend(q[:, :, content], keys[:, :, left:], values[:, :, left:], mask)
            if self.frame:
                # Start and end of the image are no target latents: they see blocked keys too (docs/specification.md 5).
                edges = attend(torch.cat([q[:, :, :1], q[:, :, -1:]], dim=2), keys, values)
                attended = torch.cat([edges[:, :, :1], attended, edges[:, :, 1:]], dim=2)
        return attended.transpose(1, 2).flatten(0, 1)

    def _with_own(self, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer not in self._buffers:  # a context without a token
            self._buffers[layer] = torch.empty_like(k.contiguous()), torch.empty_like(v.contiguous())
        keys, values = self._buffers[layer]
        own = slice(self.own_start, self.own_start + self.num_own)
        keys[:, :, own], values[:, :, own] = k, v
        return keys, values

    def _left_out(self, layer: int, *, with_text: bool) -> tuple[int, Tensor | None]:
        """How many tokens at the left end target latents do not see, and which of the others (mask)."""
        if self.bridge is None:
            return 0, None
        if self.bridge.masks_layer(layer) and with_text:
            return self.num_blocked, self._mask
        if self.bridge.hides_references_in(layer):
            return self.num_references, None
        return 0, None


def _without_filler(order: Tensor, counts: Tensor, num_behind: int) -> tuple[Tensor, Tensor | None]:
    """Leaves the filler out that all prompts have.

    Args:
        order: (G, tokens), filler first.
        counts: (G,) how much filler each prompt has.
        num_behind: tokens of the buffer behind these.

    Returns:
        (G, tokens left), and (G, 1, 1, tokens left + behind) bool, false for filler among them; None if there is none.
    """
    fewest, most = (int(n) for n in counts.aminmax())
    order = order[:, fewest:]
    if most == fewest:
        return order, None
    columns = torch.arange(order.shape[1] + num_behind, device=order.device)
    return order, (columns >= counts[:, None] - fewest)[:, None, None]


class DroppingCache:
    """Two caches of the same contexts: whole up to the source layer, without dropped tokens after it."""

    def __init__(self, whole: ContextCache, left: ContextCache, source_layer: int) -> None:
        self.whole, self.left, self.source_layer = whole, left, source_layer
        self.num_targets = whole.num_targets

    def _of(self, layer: int) -> ContextCache:
        return self.whole if layer <= self.source_layer else self.left

    def fill(self, record: RecordingPlan, layer: int) -> None:
        self._of(layer).fill(record, layer)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return self.whole.nbytes + self.left.nbytes

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, *, with_text: bool) -> Tensor:
        return self._of(layer).attend(q, k, v, layer, with_text=with_text)


@dataclass(frozen=True)
class Branch:
    """Some targets of a step's pack and the context that guides them."""

    cache: ContextCache | DroppingCache
    with_text: bool
    """False = without the instruction."""


class CachedPlan(AttentionPlan):
    """Target splits attend to their recorded contexts and to themselves."""

    def __init__(self, branches: Sequence[Branch]) -> None:
        """`branches`: in the order of the pack. Two may share a cache: each writes its own keys before it attends."""
        self.branches = tuple(branches)
        self._sizes = [b.cache.num_targets for b in self.branches]

    def hiding(self, blocked: Tensor) -> AttentionPlan:
        raise RuntimeError("a cached context was already filtered when the plan was made")

    # Attention is one kernel already, and the slices differ from layer to layer.
    @torch.compiler.disable  # type: ignore[untyped-decorator] # torch's
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        parts = zip(self.branches, q.split(self._sizes), k.split(self._sizes), v.split(self._sizes), strict=True)
        return torch.cat([b.cache.attend(q, k, v, layer, with_text=b.with_text) for b, q, k, v in parts])
