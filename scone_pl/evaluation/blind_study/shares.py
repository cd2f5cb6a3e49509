"""How often people choose each system, and how far a judge's scores agree with that.

Symbols: n items, S systems, B resamples. Intervals resample items within tasks, all raters of an item together.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scone_pl.evaluation.agreement.compare import compare, means
from scone_pl.evaluation.agreement.sources import Image, Source, paired
from scone_pl.evaluation.blind_study.choices import Choice
from scone_pl.evaluation.blind_study.key import StudyKey
from scone_pl.evaluation.bootstrap import LEVEL, item_weights
from scone_pl.markdown import markdown_table

_EDGES = 100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2


def shares_of(key: StudyKey, choices: Sequence[Choice], *, resamples: int, seed: int) -> dict[str, Any]:
    """Fractions of the choices, per system and as differences of pairs; where on the screen they fell; raters."""
    counts = np.zeros((len(key.items), len(key.systems)))
    for choice in choices:
        if choice.system is not None:
            counts[choice.item, key.systems.index(choice.system)] += 1
    weights = _weights(key, resamples, seed)
    drawn = _fractions(weights @ counts)
    fractions = _fractions(counts.sum(axis=0)[None])[0]
    positions = Counter(choice.position for choice in choices if choice.position is not None)
    return {
        "items": int((counts.sum(axis=1) > 0).sum()),
        "raters": len({choice.rater for choice in choices}),
        "choices": int(counts.sum()),
        "none": sum(choice.system is None for choice in choices),
        "systems": {
            name: {"n": int(counts[:, s].sum()), "fraction": float(fractions[s]), "interval": _interval(drawn[:, s])}
            for s, name in enumerate(key.systems)
        },
        "pairs": [
            {
                "systems": [key.systems[a], key.systems[b]],
                "difference": float(fractions[a] - fractions[b]),
                "interval": _interval(drawn[:, a] - drawn[:, b]),
            }
            for a, b in itertools.combinations(range(len(key.systems)), 2)
        ],
        "positions": [positions[position] for position in range(len(key.systems))],
        "equal": _equal(choices),
    }


def _weights(key: StudyKey, resamples: int, seed: int) -> np.ndarray:
    """(B, n): how often each item is drawn."""
    weights = np.zeros((resamples, len(key.items)))
    for task in dict.fromkeys(item.task for item in key.items):
        members = [number for number, item in enumerate(key.items) if item.task == task]
        weights[:, members] = item_weights([key.items[number].key for number in members], task, resamples, seed)
    return weights


def _fractions(counts: np.ndarray) -> np.ndarray:
    """(B, S) of (B, S); NaN where nothing was chosen."""
    with np.errstate(invalid="ignore"):
        fractions: np.ndarray = counts / counts.sum(axis=1, keepdims=True)
    return fractions


def _interval(drawn: np.ndarray) -> list[float] | None:
    known = drawn[~np.isnan(drawn)]
    return [float(end) for end in np.percentile(known, _EDGES)] if len(known) else None


def _equal(choices: Sequence[Choice]) -> dict[str, Any] | None:
    """How often two raters of an item choose the same system, and Fleiss' kappa; None without such pairs."""
    by_item: dict[int, list[str]] = {}
    for choice in choices:
        if choice.system is not None:
            by_item.setdefault(choice.item, []).append(choice.system)
    pairs = [a == b for chosen in by_item.values() for a, b in itertools.combinations(chosen, 2)]
    if not pairs:
        return None
    total = Counter(system for chosen in by_item.values() if len(chosen) > 1 for system in chosen)
    chance = sum((count / total.total()) ** 2 for count in total.values())
    fraction = sum(pairs) / len(pairs)
    return {
        "pairs": len(pairs),
        "fraction": fraction,
        "kappa": None if chance == 1 else (fraction - chance) / (1 - chance),
    }


def people(key: StudyKey, choices: Sequence[Choice], columns: Sequence[str]) -> Source:
    """The choices as ratings: 1 for the chosen image of an item, 0 for the others, in each of `columns`."""
    source = Source("people")
    for item in key.items:
        for system, digest in zip(item.systems, item.digests, strict=True):
            source.digests[Image(system, item.task, item.key, 1)] = digest
    for choice in choices:
        item = key.items[choice.item]
        if choice.system is None:
            source.incomplete += 1
            continue
        for column, system in itertools.product(columns, item.systems):
            image = Image(system, item.task, item.key, 1)
            source.add(column, image, choice.rater, float(system == choice.system))
    return source


def agreement_with(
    key: StudyKey, choices: Sequence[Choice], judge: Source, *, resamples: int, seed: int
) -> dict[str, Any]:
    """The comparison of `agreement`, and per column how often the image with the best score is the chosen one.

    Raises:
        UserError: the judge saw other images, or none of these.
    """
    chosen = people(key, choices, list(judge.ratings))
    result = compare(chosen, judge, resamples=min(resamples, 300), seed=seed)
    weights = _weights(key, resamples, seed)
    for column, images in paired(chosen, judge).items():
        score = dict(zip(images, means(judge, column, images), strict=True))
        result["columns"][column]["best"] = _best(key, choices, score, weights)
    return result


def _best(
    key: StudyKey, choices: Sequence[Choice], score: Mapping[Image, float], weights: np.ndarray
) -> dict[str, Any]:
    """Over choices from items whose images all have a score; equal best scores count as a random pick among them."""
    hits, counts = np.zeros(len(key.items)), np.zeros(len(key.items))
    for choice in choices:
        item = key.items[choice.item]
        scores = {system: score.get(Image(system, item.task, item.key, 1)) for system in item.systems}
        known = [value for value in scores.values() if value is not None]
        if choice.system is None or len(known) < len(scores):
            continue
        best = [system for system, value in scores.items() if value == max(known)]
        hits[choice.item] += (choice.system in best) / len(best)
        counts[choice.item] += 1
    with np.errstate(invalid="ignore"):
        drawn = (weights @ hits) / (weights @ counts)
    return {
        "n": int(counts.sum()),
        "fraction": float(hits.sum() / counts.sum()) if counts.any() else None,
        "interval": _interval(drawn),
        "chance": 1 / len(key.systems),
    }


def markdown(result: Mapping[str, Any], agreement: Mapping[str, Any] | None) -> str:
    """Tables of both."""
    rows = [
        [name, str(row["n"]), f"{row['fraction']:.1%}", _ends(row["interval"], ".1%")]
        for name, row in sorted(result["systems"].items(), key=lambda entry: -entry[1]["fraction"])
    ]
    pairs = [
        [" - ".join(pair["systems"]), f"{pair['difference']:+.1%}", _ends(pair["interval"], "+.1%")]
        for pair in result["pairs"]
    ]
    equal = result["equal"]
    raters = (
        "No item has two raters."
        if equal is None
        else f"Two raters of an item choose the same system in {equal['fraction']:.1%} of {equal['pairs']} pairs"
        + ("." if equal["kappa"] is None else f" (Fleiss' kappa {equal['kappa']:.2f}).")
    )
    parts = [
        f"{result['choices']} choices by {result['raters']} raters from {result['items']} items; {result['none']} "
        f"times none was best. {raters} By position on the screen: {', '.join(map(str, result['positions']))}.",
        markdown_table(["System", "n", "chosen", "95 % interval"], rows),
        markdown_table(["Pair", "difference", "95 % interval"], pairs),
    ]
    if agreement is not None:
        parts.append(_agreement_markdown(agreement))
    return "\n\n".join(parts) + "\n"


def _agreement_markdown(agreement: Mapping[str, Any]) -> str:
    rows = []
    for column, found in agreement["columns"].items():
        tasks = found["tasks"]
        row = tasks.get("pooled", next(iter(tasks.values())))
        signs = [pair["same_sign"] for pair in found["systems"]["pairs"]] if found["systems"] else []
        best = found["best"]
        rows.append(
            [
                column,
                "-" if best["fraction"] is None else f"{best['fraction']:.1%} {_ends(best['interval'], '.1%')}",
                f"{best['chance']:.1%}",
                "-"
                if row["spearman"] is None
                else f"{row['spearman']:.2f} {_ends(row['intervals'].get('spearman'), '.2f')}",
                f"{sum(map(bool, signs))} of {len(signs)}",
            ]
        )
    heads = [
        "Judge's score",
        "its best image is the chosen one",
        "by chance",
        "Spearman",
        "pairs of systems in the same order",
    ]
    return f"### Agreement with the judge\n\n{markdown_table(heads, rows)}"


def _ends(interval: Sequence[float] | None, form: str) -> str:
    return "" if interval is None else f"[{format(interval[0], form)}, {format(interval[1], form)}]"
