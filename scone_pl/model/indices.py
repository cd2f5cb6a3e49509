"""Index tensors: built on the host in a few operations, and sent to the device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A host tensor `x` on `device`, without synchronisation."""
    if device.type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=device.type in ("cuda", "meta"))


def indices_of(ranges: Sequence[range], device: torch.device) -> Tensor:
    """(sum of the lengths,) int64 on `device`: the numbers of all `ranges`, which count up, one after the other."""
    if not ranges:
        return torch.zeros(0, dtype=torch.int64, device=device)
    starts, lengths = torch.tensor([(r.start, len(r)) for r in ranges]).unbind(1)
    stops = lengths.cumsum(0)
    offsets = (starts - stops + lengths).repeat_interleave(lengths)
    return to_device(torch.arange(len(offsets)) + offsets, device)
