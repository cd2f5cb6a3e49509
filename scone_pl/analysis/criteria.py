"""Criteria that choose a layer without labels, by the similarities s of one image's own tokens.

All map (layers, T) similarities of T tokens to (layers,), higher for a layer that looks as if it separated two kinds of
tokens, and 0 where all tokens have the same s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.special import entr, softmax

from scone_pl.model.bridge.thresholds import inner_tokens, otsu

TEMPERATURE = 0.1
"""Of the softmax of `concentration`; the same as of the bridge's `pooling: attention`."""


def kept_by_otsu(similarity: np.ndarray) -> np.ndarray:
    """(layers, T) -> (layers, T) bool: tokens that Otsu's threshold of their own layer keeps."""
    kept: np.ndarray = similarity >= otsu(torch.from_numpy(similarity)).numpy()[:, None]
    return kept


def bimodality(similarity: np.ndarray) -> np.ndarray:
    """eta^2 = w0 w1 (m0 - m1)^2 / variance, of weights w and means m of the parts at Otsu's split, in [0, 1].

    The fraction of the variance of s that two values would explain; 0.64 for many normal, 0.75 for uniform tokens.
    """
    kept = kept_by_otsu(similarity)
    weight = kept.mean(1)
    upper, lower = ((similarity * part).sum(1) / np.maximum(part.sum(1), 1) for part in (kept, ~kept))
    explained: np.ndarray = weight * (1 - weight) * (upper - lower) ** 2
    return _over(explained, similarity.var(1))


def largest_gap(similarity: np.ndarray) -> np.ndarray:
    """Largest gap between sorted neighbours, the outer tenths left out, over the range of all, in [0, 1]."""
    ordered = np.sort(similarity, axis=1)
    gaps = np.diff(ordered[:, inner_tokens(ordered.shape[1])], axis=1)
    return _over(gaps.max(axis=1, initial=0.0), np.ptp(similarity, axis=1))


def concentration(similarity: np.ndarray) -> np.ndarray:
    """1 - H(softmax(s / `TEMPERATURE`)) / log T, of the entropy H, in [0, 1]: 1 = one token stands out alone."""
    tokens = similarity.shape[1]
    most = np.log(tokens)
    return _over(most - entr(softmax(similarity / TEMPERATURE, axis=1)).sum(1), np.full(len(similarity), most))


def _over(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """0 where `whole` is 0, up to rounding."""
    ratio: np.ndarray = np.where(whole > 1e-12, part / np.maximum(whole, 1e-12), 0.0)
    return ratio


CRITERIA: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "bimodality": bimodality,
    "largest_gap": largest_gap,
    "concentration": concentration,
}
