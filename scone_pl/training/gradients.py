"""Gradient norm over all shards: per part, clipped by the total, refused if non-finite.

Sharded, replicated and plain parameters are treated alike: a rank sums the squares of its local shards, divided by
their replication factor, and one reduction of a handful of numbers makes the norms of all ranks equal. So every rank
clips by the same factor, and either all ranks stop or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from scone_pl.errors import UserError
from scone_pl.model.indices import to_device
from scone_pl.training.parts import part_of

MAX_SKIPPED = 8
"""Maximum consecutive steps that `skip` skips before it stops the run."""
MAX_NAMED_SAMPLES = 12
"""Maximum samples of a rank that the message names."""
GROUPS = ("understanding", "generation", "connector", "other")
"""Groups of parameters with a norm of their own: both experts, the connector, everything else that trains."""


@cache
def group_of(name: str) -> str:
    """The entry of `GROUPS` that a parameter of the network belongs to."""
    part = part_of(name)
    return part if part in GROUPS else "other"


def replication_factor(tensor: Tensor) -> int:
    """Number of ranks with the same values: all of them, unless the tensor is sharded."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if not isinstance(tensor, DTensor):
        return ranks
    shards = 1
    for axis, placement in enumerate(tensor.placements):
        shards *= tensor.device_mesh.size(axis) if isinstance(placement, Shard) else 1
    return ranks // shards


def local_shard(tensor: Tensor) -> Tensor:
    """The part of a tensor on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True)
class GradientNorms:
    """Norms over all ranks; the same on each."""

    groups: dict[str, float]
    """By entry of `GROUPS`; only those that have a gradient."""
    total: float

    @property
    def finite(self) -> bool:
        return self.total < float("inf")  # false for nan too


@torch.no_grad()
def gradient_norms(parameters: Iterable[tuple[str, Tensor]], device: torch.device) -> GradientNorms:
    """Euclidean norms of the gradients of named parameters, in one reduction, without gathering any.

    Args:
        parameters: name in the network, and parameter; those without gradient are ignored.
        device: of the reduction, as the process group requires.
    """
    names, gradients = [], []
    for name, parameter in parameters:
        if parameter.grad is not None:
            names.append(name)
            gradients.append(parameter.grad)
    groups = [GROUPS.index(group_of(name)) for name in names]
    present = torch.tensor([float(i in groups) for i in range(len(GROUPS))], dtype=torch.float64)
    squares = torch.zeros(len(GROUPS), dtype=torch.float64, device=device)
    if gradients:
        norms = torch._foreach_norm([local_shard(g) for g in gradients], 2, dtype=torch.float32)
        weights = torch.tensor([1 / replication_factor(g) for g in gradients], dtype=torch.float64)
        weighted = torch.stack(norms).to(device, torch.float64).square() * to_device(weights, device)
        squares.index_add_(0, to_device(torch.tensor(groups), device), weighted)
    reduced = torch.cat([squares, to_device(present, device)])
    if dist.is_initialized():
        dist.all_reduce(reduced)
    by_group, has_gradient = reduced.cpu().view(2, -1)  # the one moment of a step in which the host waits
    return GradientNorms(
        groups={name: by_group[i].sqrt().item() for i, name in enumerate(GROUPS) if has_gradient[i]},
        total=by_group.sum().sqrt().item(),
    )


@torch.no_grad()
def scale_gradients(parameters: Iterable[Tensor], factor: float) -> None:
    """Multiplies all gradients by `factor`, each rank its own shards."""
    gradients = [local_shard(p.grad) for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)


@dataclass
class GradientGuard:
    """Clips gradients, and keeps non-finite ones from the weights."""

    nonfinite: Literal["stop", "skip"] = "stop"
    skipped: int = 0
    """Steps skipped so far."""
    _in_a_row: int = 0
    _keys: list[str] = field(default_factory=list)

    def remember(self, keys: Sequence[str]) -> None:
        """Remembers the samples of a batch, to be named if the gradient is non-finite."""
        self._keys += keys

    def apply(
        self, parameters: Sequence[tuple[str, Tensor]], clip: float | None, step: int, device: torch.device
    ) -> GradientNorms:
        """Measures, checks and clips the gradients that an optimizer step is about to use.

        Args:
            parameters: name in the network, and parameter.
            clip: largest total norm; None or 0 = check only.
            step: number of the step about to be made, from 1.
            device: of the process group.

        Raises:
            UserError: the norm is not finite, with the step and its samples on every rank; raised on all ranks alike,
                before the weights changed. With `skip` only after `MAX_SKIPPED` such steps in a row: until then the
                gradients are dropped, and an optimizer leaves parameters without gradient as they are.
        """
        norms = gradient_norms(parameters, device)
        keys, self._keys = self._keys, []
        if norms.finite:
            self._in_a_row = 0
            if clip and norms.total > clip:
                scale_gradients((p for _, p in parameters), clip / norms.total)
            return norms
        self._in_a_row += 1
        if self.nonfinite == "stop" or self._in_a_row > MAX_SKIPPED:
            raise UserError(self._nonfinite_message(norms, step, keys))
        self.skipped += 1
        for _, parameter in parameters:
            parameter.grad = None
        return norms

    def _nonfinite_message(self, norms: GradientNorms, step: int, keys: list[str]) -> str:
        keys_by_rank: list[list[str] | None] = [keys]
        if dist.is_initialized():
            keys_by_rank = [None] * dist.get_world_size()
            dist.all_gather_object(keys_by_rank, keys)
        by_group = ", ".join(f"{name} {norm:.3g}" for name, norm in norms.groups.items())
        ranks = "; ".join(f"rank {rank}: {_some(named or [])}" for rank, named in enumerate(keys_by_rank))
        rows = f", as in {self._in_a_row - 1} steps before it" if self._in_a_row > 1 else ""
        again = "lower model.optimizer.lr" if self.nonfinite == "skip" else "set model.nonfinite_gradient to skip"
        return (
            f"step {step}: the gradient is not finite ({by_group}){rows}; the step was not made, so the weights are "
            f"those of step {step - 1}. Its samples: {ranks}. Look at these, or {again}"
        )


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - MAX_NAMED_SAMPLES} more" if len(keys) > MAX_NAMED_SAMPLES else ""
    return (", ".join(key or "(no key)" for key in keys[:MAX_NAMED_SAMPLES]) or "none") + more
