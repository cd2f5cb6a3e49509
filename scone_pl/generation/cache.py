"""Keys and values of prefilled contexts, and attention of targets over them.

`RecordingPlan` runs a context once and keeps every layer's keys and values. `CachedPlan` lets target splits attend to
them at every denoising step; what the bridge blocked is left out once, so each step reads less.

Shapes: L context tokens, H query heads, K key/value heads, E head dimension; G targets of equal layout side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scone_pl.model.attention import AttentionPlan, attend
from scone_pl.model.config import BridgeConfig


class RecordingPlan(AttentionPlan):
    """Attends as `inner` does, and keeps keys and values."""

    def __init__(self, inner: AttentionPlan) -> None:
        self.inner = inner
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        """Layer -> (L, K, E), rotary positions applied."""

    def hiding(self, blocked: Tensor) -> AttentionPlan:
        # A context has no target queries, so there is nothing that hiding could change.
        return self

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        self.keys[layer], self.values[layer] = k, v
        return self.inner(q, k, v, layer)


@dataclass(frozen=True)
class ContextView:
    """The part of a recorded context that one target sees."""

    record: RecordingPlan
    start: int
    stop: int
    blocked: Tensor | None = None
    """(stop - start,) bool: left out in the bridge's masked layers; None = the bridge is off."""
    reference: Tensor | None = None
    """(stop - start,) bool: reference tokens, left out up to the source layer with `hide_references_early`."""

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class _Group:
    """Targets with equally long contexts and equally many tokens: one batch."""

    num_tokens: int
    num_targets: int
    full: dict[int, tuple[Tensor, Tensor]]
    """Layer -> keys, values (G, K, context, E)."""
    shown: dict[int, tuple[Tensor, Tensor, Tensor | None]]
    """Layers in which target latents see less -> keys, values (G, K, kept, E), mask (G, 1, 1, kept)."""


class CachedPlan(AttentionPlan):
    """Target splits attend to their recorded contexts and to themselves."""

    def __init__(self, views: list[ContextView], lengths: list[int], bridge: BridgeConfig | None = None) -> None:
        """Gathers the caches.

        Args:
            views: the context of each target split of the pack, in order.
            lengths: tokens of each target split, frame included.
            bridge: in which layers `blocked` and `reference` of the views are left out.
        """
        self.groups: list[_Group] = []
        start = 0
        while start < len(views):
            stop = start + 1
            while stop < len(views) and _alike(views, lengths, start, stop):
                stop += 1
            self.groups.append(_gather(views[start:stop], lengths[start], bridge))
            start = stop

    def hiding(self, blocked: Tensor) -> AttentionPlan:
        raise RuntimeError("a cached context was already filtered when the plan was made")

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        sizes = [g.num_targets * g.num_tokens for g in self.groups]
        parts = zip(self.groups, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
        return torch.cat([_attend_group(*part, layer) for part in parts])


def _alike(views: list[ContextView], lengths: list[int], a: int, b: int) -> bool:
    return (
        views[a].length == views[b].length
        and lengths[a] == lengths[b]
        and (views[a].blocked is None) == (views[b].blocked is None)
    )


def _gather(views: list[ContextView], num_tokens: int, bridge: BridgeConfig | None) -> _Group:
    layers = views[0].record.keys

    def stack(layer: int, source: str) -> Tensor:
        rows = [getattr(view.record, source)[layer][view.start : view.stop] for view in views]
        return torch.stack(rows).transpose(1, 2)

    full = {layer: (stack(layer, "keys"), stack(layer, "values")) for layer in layers}
    shown = {}
    if bridge is not None and views[0].blocked is not None:
        hidden_late = torch.stack([view.blocked for view in views])  # type: ignore[misc]
        hidden_early = torch.stack([view.reference for view in views])  # type: ignore[misc]
        for layer in layers:
            if bridge.masks_layer(layer):
                shown[layer] = _leave_out(*full[layer], hidden_late)
            elif bridge.hides_references_in(layer):
                shown[layer] = _leave_out(*full[layer], hidden_early)
    return _Group(num_tokens, len(views), full, shown)


def _leave_out(keys: Tensor, values: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values (G, K, C, E) without those `hidden` (G, C); shorter rows are filled up and masked."""
    counts = (~hidden).sum(1)
    most = int(counts.max())
    order = torch.argsort(hidden.int(), dim=1, stable=True)[:, :most]
    index = order[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
    mask = None
    if int(counts.min()) < most:
        mask = (torch.arange(most, device=hidden.device) < counts[:, None])[:, None, None]
    return keys.gather(2, index), values.gather(2, index), mask


def _attend_group(group: _Group, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
    q, k, v = (x.view(group.num_targets, group.num_tokens, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
    keys, values = group.full[layer]
    if layer not in group.shown:
        attended = attend(q, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2))
    else:
        # Start and end of the image are no target latents: they see blocked keys too (SPEC 5).
        frame_q = torch.cat([q[:, :, :1], q[:, :, -1:]], dim=2)
        frame = attend(frame_q, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2))
        keys, values, mask = group.shown[layer]
        mask = None if mask is None else F.pad(mask, (0, k.shape[2]), value=True)
        content = attend(q[:, :, 1:-1], torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2), mask)
        attended = torch.cat([frame[:, :, :1], content, frame[:, :, 1:]], dim=2)
    return attended.transpose(1, 2).flatten(0, 1)
