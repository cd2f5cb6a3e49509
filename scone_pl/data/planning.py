"""Bin packing: assigns samples to packs by their lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Packs of samples, as indices into the planned order."""

    packs: list[list[int]]
    over_budget: list[int]
    """Samples that are longer than the budget and therefore in no pack."""

    def efficiency(self, lengths: Sequence[int], budget: int) -> float:
        """Packing efficiency: used fraction of the packs' token budgets, in (0, 1]."""
        used = sum(int(lengths[i]) for pack in self.packs for i in pack)
        return used / (budget * len(self.packs)) if self.packs else 1.0


def plan_packs(lengths: Sequence[int], budget: int, lookahead: int = 64) -> Plan:
    """Packs samples into sequences of at most `budget` tokens.

    A pack takes the first waiting sample, so that none starves, and of the next `lookahead` - 1 the subset that fills
    the remaining budget best (exact subset sum, one bit per reachable sum).

    Args:
        lengths: tokens of every sample, in the order in which they are seen.
        budget: maximum tokens per pack.
        lookahead: window size; 1 = one sample per pack.
    """
    over_budget = [i for i, length in enumerate(lengths) if length > budget]
    queue = (i for i, length in enumerate(lengths) if length <= budget)
    window: list[int] = []
    packs: list[list[int]] = []
    while True:
        for i in queue:
            window.append(i)
            if len(window) == lookahead:
                break
        if not window:
            return Plan(packs, over_budget)
        oldest, *others = window
        chosen = [others[k] for k in _fill([int(lengths[i]) for i in others], budget - int(lengths[oldest]))]
        packs.append([oldest, *chosen])
        taken = set(chosen)
        window = [i for i in others if i not in taken]


def balanced_order(costs: Sequence[int], window: int) -> list[int]:
    """Indices of packs in an order in which neighbours cost alike.

    Sorted within windows, up and down in turn, so that there is no jump between two of them. Whatever the number of
    ranks, those that take neighbours in one step finish together.

    Args:
        costs: of every pack.
        window: number of packs that are sorted together; 1 = the order stays.
    """
    order: list[int] = []
    for number, start in enumerate(range(0, len(costs), window)):
        members = range(start, min(start + window, len(costs)))
        order += sorted(members, key=costs.__getitem__, reverse=number % 2 == 1)
    return order


def next_fit_packs(lengths: Sequence[int], budget: int) -> Plan:
    """Next-fit packing, as a baseline: a pack is closed as soon as the next sample does not fit."""
    packs: list[list[int]] = []
    used = budget
    for i, length in enumerate(lengths):
        if length > budget:
            continue
        if used + length > budget:
            packs.append([])
            used = 0
        packs[-1].append(i)
        used += int(length)
    return Plan(packs, [i for i, length in enumerate(lengths) if length > budget])


def _fill(lengths: list[int], capacity: int) -> list[int]:
    """Indices of the subset with the largest sum of at most `capacity`; earlier items are preferred."""
    capacity = min(capacity, sum(lengths))  # bounds the bit mask for unlimited budgets
    mask = (1 << (capacity + 1)) - 1
    reachable = [1]  # after the first k lengths: bit s is set if s is the sum of some of them
    for length in lengths:
        reachable.append((reachable[-1] | reachable[-1] << length) & mask)
        if reachable[-1] >> capacity:
            break
    total = reachable[-1].bit_length() - 1
    chosen = []
    for k in range(len(reachable) - 1, 0, -1):
        if not reachable[k - 1] >> total & 1:
            chosen.append(k - 1)
            total -= lengths[k - 1]
    return chosen[::-1]
