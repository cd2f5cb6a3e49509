"""Which samples go into which pack, from their lengths alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Packs of samples, samples named by their place in the order that was planned."""

    packs: list[list[int]]
    over_budget: list[int]
    """Samples that are longer than a pack may be, and so in none."""

    def efficiency(self, lengths: Sequence[int], budget: int) -> float:
        """Share of the packs' tokens that are used, in (0, 1]."""
        used = sum(int(lengths[i]) for pack in self.packs for i in pack)
        return used / (budget * len(self.packs)) if self.packs else 1.0


def plan_packs(lengths: Sequence[int], budget: int, lookahead: int = 64) -> Plan:
    """Packs samples into sequences of at most `budget` tokens.

    A pack takes the oldest waiting sample, so that none starves, and of the `lookahead` - 1 waiting behind it those
    that together fill the rest best (exactly: reachable sums, one bit each).

    Args:
        lengths: tokens of every sample, in the order in which they are to be seen.
        budget: most tokens of a pack.
        lookahead: samples among which to choose; 1 = a pack for every sample.
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


def first_come_packs(lengths: Sequence[int], budget: int) -> Plan:
    """The plain way, to compare with: a pack is closed as soon as the next sample does not fit."""
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


def _fill(lengths: list[int], room: int) -> list[int]:
    """Which of `lengths` add up to the most that is at most `room`; earlier ones first where there is a choice."""
    room = min(room, sum(lengths))  # a budget without bounds must not become a number of so many bits
    mask = (1 << (room + 1)) - 1
    reachable = [1]  # after the first k lengths: bit s is set if s is the sum of some of them
    for length in lengths:
        reachable.append((reachable[-1] | reachable[-1] << length) & mask)
        if reachable[-1] >> room:
            break
    total = reachable[-1].bit_length() - 1
    chosen = []
    for k in range(len(reachable) - 1, 0, -1):
        if not reachable[k - 1] >> total & 1:
            chosen.append(k - 1)
            total -= lengths[k - 1]
    return chosen[::-1]
