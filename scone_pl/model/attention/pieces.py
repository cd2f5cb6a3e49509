"""Attention of a batch of equal samples, cut into pieces: query ranges that see the same keys.

Pieces are what a backend computes with one call of a kernel. They are built once for a pack (and once more when the
bridge hides something), so that layers only compute.

Shapes: G samples of equal layout, S tokens of such a sample, C of them context, H query heads, K key/value heads,
E head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scone_pl.model.attention.batches import SampleBatch
from scone_pl.model.attention.sdpa import append_channel
from scone_pl.model.sequence import Split, SplitKind

QUERY_CHUNK = 256
"""Text queries that share one causal mask of (chunk, keys): bounds its memory for texts of any length."""

SMALL_SAMPLE = 256
"""Maximum tokens of a sample that is two pieces, context and targets, with masks: more calls would cost more than the
masked pairs. Half as many again with a soft bridge's bias, which is free in a mask."""


@dataclass(frozen=True)
class Piece:
    """Queries that see the same keys, apart from a mask."""

    queries: slice
    """Of a sample's S tokens."""
    keys: tuple[slice, ...]
    """Of a sample's S tokens, concatenated."""
    mask: Tensor | None = None
    """Broadcasts to (G, 1, queries, keys) bool: false where a query does not see a key."""
    causal: bool = False
    """Query i sees the keys 0 to i alone."""
    gathered: Tensor | None = None
    """(G, visible) int64: further keys, before `keys`, as rows of the batch's G * S tokens."""
    biased: Tensor | None = None
    """(queries, 1) bool: the queries that a soft bridge's bias concerns; keys that start with the context."""
    small: bool = False
    """Context or targets of small samples (`masked_piece`)."""


@dataclass(frozen=True)
class VisibleContext:
    """Which context keys of a batch its target latents see under a hard bridge."""

    index: Tensor
    """(G, visible) int64 into the batch's G * S tokens; rows of a sample with fewer visible keys are padded."""
    mask: Tensor | None
    """(G, 1, 1, visible) bool, false on the padding; None if there is none."""


def context_pieces(batch: SampleBatch, causal: Tensor | None, present: Tensor | None) -> list[Piece]:
    """Each context split sees the context before it and itself, text causally.

    Args:
        batch: the samples.
        causal: see `causal_strip`.
        present: (G, 1, 1, C) bool, false on keys that no query sees; None = all are present.
    """
    pieces, stop = [], 0
    for split in batch.context:
        start, stop = stop, stop + split.length
        mask = None if present is None else present[..., :stop]
        if split.kind == SplitKind.TEXT:
            pieces += _text_pieces(start, stop, causal, mask)
        else:
            pieces.append(Piece(slice(start, stop), (slice(0, stop),), mask))
    return pieces


def _text_pieces(start: int, stop: int, causal: Tensor | None, present: Tensor | None) -> list[Piece]:
    if start == 0:
        return [Piece(slice(0, stop), (slice(0, stop),), causal=True)]
    assert causal is not None
    pieces = []
    for first in range(start, stop, QUERY_CHUNK):
        last = min(first + QUERY_CHUNK, stop)
        offset = causal.shape[1] - QUERY_CHUNK - first
        mask = causal[: last - first, offset : offset + last]
        mask = mask if present is None else mask & present[..., :last]
        pieces.append(Piece(slice(first, last), (slice(0, last),), mask))
    return pieces


def target_pieces(
    batch: SampleBatch,
    visible: VisibleContext | Tensor | None = None,
    biased: Tensor | None = None,
    present: Tensor | None = None,
) -> list[Piece]:
    """Each target split sees the context, narrowed by the bridge, and itself.

    Args:
        batch: the samples.
        visible: what target latents see of the context, or that as (G, C) bool to be used as a mask; None = all.
        biased: (S,) bool, the tokens whose queries a soft bridge's bias concerns; None = there is no bias.
        present: see `context_pieces`.
    """
    pieces, size = [], batch.context_length
    for split in batch.targets:
        start, stop = (edge - batch.start for edge in (split.start, split.stop))
        own = slice(start, stop)
        whole = (slice(0, stop),) if start == size else (slice(0, size), own)
        if visible is None:
            mask = _with_own(present, split)
            pieces.append(Piece(own, whole, mask, biased=None if biased is None else biased[own, None]))
        else:
            if split.frame:
                # Start and end of the image are not target latents: they see blocked keys too (specification 5).
                pieces.append(Piece(slice(start, stop, split.length - 1), whole))
            content = slice(start + split.frame, stop - split.frame)
            if isinstance(visible, Tensor):
                pieces.append(Piece(content, whole, _with_own(visible[:, None, None], split)))
                continue
            pieces.append(Piece(content, (own,), _with_own(visible.mask, split), gathered=visible.index))
    return pieces


def masked_piece(pieces: Sequence[Piece], device: torch.device, biased: Tensor | None = None) -> Piece:
    """Adjacent `pieces`, which gather nothing, as one that sees all their keys; `biased` is `target_pieces`'."""
    first, last = min(p.queries.start for p in pieces), max(p.queries.stop for p in pieces)
    num_masks = max((p.mask.shape[0] for p in pieces if p.mask is not None and p.mask.ndim == 4), default=1)
    mask = torch.zeros(num_masks, 1, last - first, last, dtype=torch.bool, device=device)
    for piece in pieces:
        rows, start = mask[:, :, slice(piece.queries.start - first, piece.queries.stop - first, piece.queries.step)], 0
        for keys in piece.keys:
            stop = start + keys.stop - keys.start
            part: Tensor | bool = True if piece.mask is None else piece.mask[..., start:stop]
            if piece.causal:
                part = torch.ones(stop, stop, dtype=torch.bool, device=device).tril()
            rows[..., keys] = part
            start = stop
    of_query = None if biased is None else biased[first:last, None]
    return Piece(slice(first, last), (slice(0, last),), mask, biased=of_query, small=True)


def _with_own(mask: Tensor | None, split: Split) -> Tensor | None:
    """(G, 1, 1, keys) -> (G, 1, 1, keys + the split's tokens, which are seen)."""
    return None if mask is None else torch.nn.functional.pad(mask, (0, split.length), value=True)


def visible_context(batch: SampleBatch, visible: Tensor, counts: list[int]) -> VisibleContext:
    """`visible` (G, C) bool with `counts` true entries a row."""
    most = max(counts)
    order = torch.argsort(visible.int(), dim=1, descending=True, stable=True)[:, :most]  # (G, most)
    offsets = torch.arange(batch.num_samples, device=visible.device)[:, None] * batch.length
    mask = visible.gather(1, order)[:, None, None] if min(counts) < most else None
    return VisibleContext(order + offsets, mask)


def causal_strip(batches: tuple[SampleBatch, ...], device: torch.device) -> Tensor | None:
    """(chunk, longest prefix + chunk) bool, whose slices are the masks of all chunks; None if no text needs one.

    Row i of a chunk behind P tokens sees P + i + 1 of them, so every chunk's mask is the same strip, cut on the left.
    """
    stops = [split.stop - b.start for b in batches for split in b.context[1:] if split.kind == SplitKind.TEXT]
    if not stops:
        return None
    prefix = max(stops)
    columns = torch.arange(prefix + QUERY_CHUNK, device=device)
    return columns <= prefix + torch.arange(QUERY_CHUNK, device=device)[:, None]


def gather_inputs(piece: Piece, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a piece.

    With a bias they have one more channel, whose product is the bias: 1 in the queries that it concerns,
    bias * sqrt(E) in context keys. A mask with a gradient would do, but no fused kernel takes one: the fallback holds
    all scores. v is only padded, as most kernels want one size for all.

    Args:
        piece: one of the batch's.
        q: (G, S, H, E).
        k: (G, S, K, E).
        v: (G, S, K, E).
        bias: (G, C), a soft bridge's.

    Returns:
        (G, H, queries, E'), (G, K, keys, E'), (G, K, keys, E').
    """
    queries = q[:, piece.queries].transpose(1, 2)
    keys, values = (_keys(piece, x).transpose(1, 2) for x in (k, v))
    if piece.biased is None or bias is None:
        return queries, keys, values
    of_key = torch.nn.functional.pad(bias * q.shape[-1] ** 0.5, (0, keys.shape[2] - bias.shape[1]))
    return (
        append_channel(queries, piece.biased),
        append_channel(keys, of_key[:, None, :, None]),
        append_channel(values, values.new_zeros(1)),
    )


def _keys(piece: Piece, x: Tensor) -> Tensor:
    """(G, S, K, E) -> (G, keys, K, E); a copy only of keys that do not lie side by side."""
    parts = [x[:, keys] for keys in piece.keys]
    if piece.gathered is not None:
        rows = x.flatten(0, 1).index_select(0, piece.gathered.flatten())
        parts.insert(0, rows.unflatten(0, piece.gathered.shape))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
