"""Thresholds that the similarities of one image set themselves (beyond the paper); no host-device synchronisation.

n images of T tokens each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def otsu(similarity: Tensor) -> Tensor:
    """(n, T) -> (n,): where two parts differ most, by w0 w1 (m0 - m1)^2 of their weights and means (Otsu, 1979)."""
    ordered, count = similarity.sort(dim=1).values, similarity.shape[1]
    below = torch.arange(1, count, device=similarity.device)
    sums = ordered.cumsum(1)
    lower = sums[:, :-1] / below
    upper = (sums[:, -1:] - sums[:, :-1]) / (count - below)
    return _between(ordered, below * (count - below) * (upper - lower) ** 2)


def gap(similarity: Tensor) -> Tensor:
    """(n, T) -> (n,): the middle of the largest gap between neighbours, the outer tenths left out."""
    inner = similarity.sort(dim=1).values[:, inner_tokens(similarity.shape[1])]
    return _between(inner, inner.diff(dim=1))


def inner_tokens(count: int) -> slice:
    """Of `count` sorted tokens those that `gap` looks at."""
    return slice(count // 10, count - count // 10)


def _between(ordered: Tensor, score: Tensor) -> Tensor:
    """(n, T) sorted, (n, T - 1) scores of the positions between -> (n,): the middle at the best; alone, the token."""
    if ordered.shape[1] < 2:
        return ordered[:, 0]
    best = score.argmax(dim=1, keepdim=True)
    return ((ordered.gather(1, best) + ordered.gather(1, best + 1)) / 2)[:, 0]


ADAPTIVE: Mapping[str, Callable[[Tensor], Tensor]] = {"otsu": otsu, "gap": gap}
"""By the name in `BridgeConfig.adaptive_threshold`."""
