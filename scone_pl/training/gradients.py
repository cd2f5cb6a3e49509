"""The gradient's norm over all shards: per part, clipped by the total, refused where it is not finite.

Sharded, replicated and plain parameters are summed alike: a rank adds the squares of what it holds, divided by the
number of ranks that hold the same, and one reduction of a handful of numbers makes the norms of all ranks equal. So
every rank clips by the same factor, and all stop or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from scone_pl.errors import UserError
from scone_pl.training.parts import part_of

MOST_SKIPPED = 8
"""Steps in a row that `skip` leaves out before it stops as well."""
MOST_NAMED = 12
"""Samples of a rank that the message names."""
GROUPS = ("understanding", "generation", "connector", "other")
"""What norms are told apart: both experts, the connector, all else that trains."""


def group_of(name: str) -> str:
    """The entry of `GROUPS` that a parameter of the network counts under."""
    part = part_of(name)
    return part if part in GROUPS else "other"


def holders(tensor: Tensor) -> int:
    """How many ranks hold the same values: all of them, unless the tensor is sharded."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if not isinstance(tensor, DTensor):
        return ranks
    shards = 1
    for axis, placement in enumerate(tensor.placements):
        shards *= tensor.device_mesh.size(axis) if isinstance(placement, Shard) else 1
    return ranks // shards


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of it."""
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
    """Euclidean norms of the gradients of named parameters, nothing gathered, in one reduction.

    Args:
        parameters: name in the network, and parameter; those without gradient are left out.
        device: for the reduction: what the process group works on.
    """
    names, held = [], []
    for name, parameter in parameters:
        if parameter.grad is not None:
            names.append(name)
            held.append(parameter.grad)
    squares = torch.zeros(len(GROUPS), dtype=torch.float64, device=device)
    present = torch.zeros(len(GROUPS), dtype=torch.float64, device=device)
    if held:
        norms = torch._foreach_norm([local(g) for g in held], 2, dtype=torch.float32)
        groups = torch.tensor([GROUPS.index(group_of(name)) for name in names], device=device)
        shares = torch.tensor([1 / holders(g) for g in held], dtype=torch.float64, device=device)
        squares.index_add_(0, groups, torch.stack(norms).to(device, torch.float64).square() * shares)
        present[groups] = 1
    found = torch.cat([squares, present])
    if dist.is_initialized():
        dist.all_reduce(found)
    by_group, there = found.cpu().view(2, -1)
    return GradientNorms(
        groups={name: by_group[i].sqrt().item() for i, name in enumerate(GROUPS) if there[i]},
        total=by_group.sum().sqrt().item(),
    )


@torch.no_grad()
def scale_gradients(parameters: Iterable[Tensor], factor: float) -> None:
    """Multiplies all gradients by `factor`, each rank its own shards."""
    held = [local(p.grad) for p in parameters if p.grad is not None]
    if held:
        torch._foreach_mul_(held, factor)


@dataclass
class GradientGuard:
    """Clips, and keeps gradients that are not finite from the weights."""

    nonfinite: Literal["stop", "skip"] = "stop"
    skipped: int = 0
    """Steps left out so far."""
    _in_a_row: int = 0
    _keys: list[str] = field(default_factory=list)

    def remember(self, keys: Sequence[str]) -> None:
        """Notes the samples of a batch, to be named should its gradient be no good."""
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
                before the weights changed. With `skip` only after `MOST_SKIPPED` such steps in a row: until then the
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
        if self.nonfinite == "stop" or self._in_a_row > MOST_SKIPPED:
            raise UserError(self._complaint(norms, step, keys))
        self.skipped += 1
        for _, parameter in parameters:
            parameter.grad = None
        return norms

    def _complaint(self, norms: GradientNorms, step: int, keys: list[str]) -> str:
        everyone: list[list[str] | None] = [keys]
        if dist.is_initialized():
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, keys)
        found = ", ".join(f"{name} {norm:.3g}" for name, norm in norms.groups.items())
        ranks = "; ".join(f"rank {rank}: {_some(named or [])}" for rank, named in enumerate(everyone))
        rows = f", as in {self._in_a_row - 1} steps before it" if self._in_a_row > 1 else ""
        again = "lower model.optimizer.lr" if self.nonfinite == "skip" else "set model.nonfinite_gradient to skip"
        return (
            f"step {step}: the gradient is not finite ({found}){rows}; the step was not made, so the weights are those "
            f"of step {step - 1}. Its samples: {ranks}. Look at these, or {again}"
        )


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
    return (", ".join(key or "(no key)" for key in keys[:MOST_NAMED]) or "none") + more
