"""Counts the bytes that are alive while code runs, on any device: on the meta device without taking any.

Beside it stands in for the fused attention kernels, which the meta device lacks.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scone_pl.model.attention import varlen
from scone_pl.model.attention.varlen import Segments


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operations within this context made and that are not freed yet.

    Views count once, with what they look at. What a kernel needs for itself while it runs is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.now = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def ignore(self, *tensors: Tensor) -> None:
        """Does not count these, which were there before."""
        for tensor in tensors:
            self._see(tensor, counts=False)

    def _see(self, tensor: Tensor, *, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if counts else 0

        def freed(_: object) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in before:
                self._see(leaf)
        return result


class _Fused(torch.autograd.Function):
    """Sizes of a fused attention kernel: keeps its inputs, its result and a float32 per query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = q.new_empty(*q.shape[:-1], v.shape[-1])
        scale = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, result, scale)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _, scale = ctx.saved_tensors
        torch.empty_like(scale)
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Stands in for a kernel over (..., tokens, channels) on the meta device."""
    result: Tensor = _Fused.apply(q, k, v)  # type: ignore[no-untyped-call] # torch's
    return result


@contextmanager
def fused_kernels() -> Iterator[None]:
    """Lets attention do on the meta device what its fused kernels do elsewhere.

    `scaled_dot_product_attention` is replaced for the while: a torch function mode would be off in what a backward pass
    computes again.
    """
    original = F.scaled_dot_product_attention

    def stand_in(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
        if any(x.stride(-1) != 1 for x in (q, k, v)):
            return original(q, k, v)  # no kernel takes these: torch multiplies step by step, all scores in memory
        return fused_attention(q, k, v)

    F.scaled_dot_product_attention = stand_in  # type: ignore[assignment]  # patched while it is counted
    try:
        with mock.patch.multiple(varlen, attend_forward=_varlen_forward, attend_backward=_varlen_backward):
            yield
    finally:
        F.scaled_dot_product_attention = original


def _varlen_forward(q: Tensor, k: Tensor, v: Tensor, group: Segments, scale: float) -> tuple[Tensor, ...]:
    normalizer = torch.empty(q.shape[1], len(q), dtype=torch.float32, device=q.device)
    dropout = [torch.empty(2, dtype=torch.int64, device=q.device) for _ in range(varlen.STATE - 1)]
    return torch.empty_like(q), normalizer, *dropout


def _varlen_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    state: tuple[Tensor, ...],
    group: Segments,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """FlashAttention sums the gradient of queries in float32, and those of keys and values by query head."""
    sums = torch.empty_like(q, dtype=torch.float32)
    by_head = [k.new_empty(len(k), *q.shape[1:]) for _ in range(2)]
    results = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    del sums, by_head
    return results
