"""Collectives about data errors, so that all ranks stop or continue together.

A rank that raised by itself would leave the others waiting in the next collective. So all ranks know whether a batch is
usable, and how many samples were skipped, before any of them begins the step; a run that must stop stops on every rank
at the same step with the same message. The messages are a few bytes over gloo; no device is synchronised.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class Agreement:
    """Sums and lists over all ranks; the identity in a single process."""

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None

    def _connected(self) -> bool:
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return False
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        return True

    def sums(self, *numbers: float) -> list[Any]:
        """Each number summed over ranks, whole ones to whole ones. Collective: every rank must call it."""
        if not self._connected():
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor, group=self._group)
        totals: list[float] = tensor.tolist()
        return [int(t) if isinstance(number, int) else t for number, t in zip(numbers, totals, strict=True)]

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, by rank. Collective: every rank must call it."""
        if not self._connected():
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return values

    def __reduce__(self) -> tuple[type[Agreement], tuple[()]]:
        return Agreement, ()
