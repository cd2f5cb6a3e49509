"""How well a layer separates the target subject from its distractors, with boxes as labels and without any label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scone_pl.analysis.criteria import CRITERIA, kept_by_otsu
from scone_pl.analysis.similarity import READ, ImageMaps
from scone_pl.data.sample import Candidate, Sample
from scone_pl.model.boxes import tokens_in

BACKGROUND = "background"
"""Name of boxes that show no subject."""
QUANTILES = (0.1, 0.5, 0.9)
TOKENS = ("target", "others", "background")
"""Of a histogram: in boxes of target subjects only, of other subjects only, and in none."""
BINS = 200
"""Of histograms, of equal width from -1 to 1."""


@dataclass(frozen=True)
class Separation:
    """Target against distractor tokens of one reference image, in one expert."""

    auroc: np.ndarray
    """(layers,): see `auroc`."""
    gap: np.ndarray
    """(layers,): mean similarity of target minus distractor tokens."""
    moments: np.ndarray
    """(3, layers): count, sum and sum of squares of the similarities of both."""
    quantiles: dict[str, np.ndarray]
    """`target` and `others`: (layers, QUANTILES) of their similarities."""
    kept: np.ndarray
    """(3, layers): target and distractor tokens that Otsu's threshold of all tokens keeps, and all target tokens."""
    histograms: np.ndarray
    """(TOKENS, layers, BINS): numbers of tokens."""


@dataclass(frozen=True)
class Reading:
    """One reference image in one expert."""

    sample: int
    quantiles: np.ndarray
    """(layers, QUANTILES) of the similarities of all its tokens."""
    criteria: dict[str, np.ndarray]
    """(layers,) each, by names of `choice.CHOICES`; `sensitivity` if an instruction was exchanged."""
    separation: Separation | None
    """None without boxes of both target subjects and distractors."""


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that one of `positive` exceeds one of `negative`, ties counted half; both one-dimensional."""
    ordered = np.sort(negative)
    below, up_to = (np.searchsorted(ordered, positive, side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(negative)))


def sensitivity(one: np.ndarray, other: np.ndarray) -> float:
    """How far a map depends on the instruction, 0 to 2: 0 = only its mean changes, 1 = two maps without relation.

    `one` and `other` are the maps of one image under two instructions. Each is centred; their difference's mean square
    over the sum of their own: needs no label, so the instructions' meaning is not used.
    """
    a, b = one - one.mean(), other - other.mean()
    return float(((a - b) ** 2).mean() / max((a**2).mean() + (b**2).mean(), 1e-12))


def exchanged(instructions: Sequence[str]) -> list[str] | None:
    """For each the next one that differs, from the last one on to the first; None if all are the same."""
    if len(set(instructions)) < 2:
        return None
    following = ((own, (*instructions[i + 1 :], *instructions[:i])) for i, own in enumerate(instructions))
    return [next(other for other in others if other != own) for own, others in following]


def subjects_of(sample: Sample, image: int) -> tuple[Candidate, ...]:
    """The known subjects in a reference image, empty unless some are targets and some are not."""
    if sample.candidates is None:
        return ()
    group = tuple(c for c in sample.candidates[image] if c.name != BACKGROUND)
    return group if {c.is_target for c in group} == {True, False} else ()


def measure(pairs: Iterable[tuple[ImageMaps, ImageMaps | None]], samples: Sequence[Sample]) -> dict[str, list[Reading]]:
    """Expert, or `inputs`, -> a reading for every image of `read_images`, whose `samples` hold the boxes."""
    readings: dict[str, list[Reading]] = {expert: [] for expert in READ}
    for maps, changed in pairs:
        subjects = subjects_of(samples[maps.sample], maps.image)
        for expert in readings:
            if getattr(maps, expert) is None:
                continue
            own = getattr(maps, expert).astype(float)
            flat = own.reshape(len(own), -1)
            criteria = {name: criterion(flat) for name, criterion in CRITERIA.items()}
            if changed is not None:
                criteria["sensitivity"] = np.array([*map(sensitivity, own, getattr(changed, expert).astype(float))])
            readings[expert].append(Reading(maps.sample, _quantiles(flat), criteria, _separation(own, subjects)))
    return readings


def _separation(maps: np.ndarray, subjects: Sequence[Candidate]) -> Separation | None:
    """`maps` (layers, rows, columns). Tokens in boxes of both kinds count as neither."""
    inside = [tokens_in([s.box for s in subjects if s.is_target == m], *maps.shape[1:]).numpy() for m in (True, False)]
    target, others = (maps[:, own & ~other] for own, other in (inside, inside[::-1]))  # (layers, tokens)
    background = maps[:, ~(inside[0] | inside[1])]
    if not target.size or not others.size:
        return None
    both = np.concatenate([target, others], axis=1)
    kept = kept_by_otsu(maps.reshape(len(maps), -1)).reshape(maps.shape)
    kept_target, kept_others = (kept[:, own & ~other].sum(1) for own, other in (inside, inside[::-1]))
    return Separation(
        auroc=np.array([*map(auroc, target, others)]),
        gap=target.mean(1) - others.mean(1),
        moments=np.stack([np.full(len(both), both.shape[1]), both.sum(1), (both**2).sum(1)]),
        quantiles={"target": _quantiles(target), "others": _quantiles(others)},
        kept=np.stack([kept_target, kept_others, np.full(len(both), target.shape[1])]),
        histograms=np.stack([_histograms(values) for values in (target, others, background)]),
    )


def _histograms(values: np.ndarray) -> np.ndarray:
    """(layers, tokens) -> (layers, BINS)."""
    bins = ((values + 1) / 2 * BINS).astype(int).clip(0, BINS - 1)
    return np.stack([np.bincount(row, minlength=BINS) for row in bins])


def _quantiles(values: np.ndarray) -> np.ndarray:
    """(layers, tokens) -> (layers, QUANTILES)."""
    quantiles: np.ndarray = np.quantile(values, QUANTILES, axis=1).T
    return quantiles


def summary(readings: Sequence[Reading]) -> dict[str, list[float]]:
    """Per layer, over the images of one expert.

    Returns:
        Where boxes are known: `auroc` (within an image, then averaged: 0.5 = chance), `gap` (mean over images) and
        `effect` (gap over the standard deviation of all these tokens); where instructions were exchanged:
        `sensitivity` (mean over images).
    """
    measures = {}
    if known := [r.separation for r in readings if r.separation is not None]:
        count, total, squares = np.sum([s.moments for s in known], axis=0)
        spread = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
        gap = np.mean([s.gap for s in known], axis=0)
        measures = {
            "auroc": np.mean([s.auroc for s in known], axis=0),
            "gap": gap,
            "effect": gap / np.maximum(spread, 1e-9),
        }
    if changed := [r.criteria["sensitivity"] for r in readings if "sensitivity" in r.criteria]:
        measures["sensitivity"] = np.mean(changed, axis=0)
    return {name: values.tolist() for name, values in measures.items()}


def quantiles(readings: Sequence[Reading]) -> dict[str, list[list[float]]]:
    """`target` and `others`, where boxes are known, and `all` tokens: layers of QUANTILES, in the mean image."""
    known = [r.separation.quantiles for r in readings if r.separation is not None]
    values_of = {name: np.mean([k[name] for k in known], axis=0) for name in ("target", "others") if known}
    values_of["all"] = np.mean([r.quantiles for r in readings], axis=0)
    return {name: values.tolist() for name, values in values_of.items()}


def histograms(readings: Sequence[Reading], layer: int) -> dict[str, Any]:
    """How often the tokens of all images with boxes have which s after `layer`; {} without any.

    Returns:
        `layer`; `edges` of the bins, from the first to the last that is not empty; for each of TOKENS their numbers.
    """
    known = [r.separation.histograms[:, layer] for r in readings if r.separation is not None]
    if not known:
        return {}
    counts = np.sum(known, axis=0)
    filled = np.flatnonzero(counts.sum(0))
    first, last = int(filled[0]), int(filled[-1]) + 1
    edges = [round(2 * i / BINS - 1, 6) for i in range(first, last + 1)]
    return {"layer": layer, "edges": edges, **dict(zip(TOKENS, counts[:, first:last].tolist(), strict=True))}
