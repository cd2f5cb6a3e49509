"""The layer that a criterion chooses, one for all images or for every image its own, and how well that separates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scone_pl.analysis.measures import Reading

CODE = (*(f"analysis/{name}" for name in ("measures", "similarity", "criteria", "choice")), "model/bridge/thresholds")
"""Modules that compute a report on layers."""
CHOICES = ("labels", "bimodality", "largest_gap", "concentration", "sensitivity")
"""labels: the layer of the highest AUROC. The others need none, see `criteria.py` and `measures.sensitivity`."""
WAYS = {"set": "one for all images", "image": "each image its own"}
SCORES = ("auroc", "precision", "recall")


def best_layer(values: Sequence[float] | np.ndarray) -> int:
    """The layer of the highest value among those that have a layer after them, which the bridge could mask."""
    return int(np.argmax(values[: max(len(values) - 1, 1)]))


def layer_choice(readings: Sequence[Reading]) -> dict[str, dict[str, dict[str, Any]]]:
    """Every choice, scored over the images that have boxes of target subjects and distractors; {} without any.

    Args:
        readings: one for each image, of one expert.

    Returns:
        Name in `CHOICES` -> `set` (the layer of the highest mean over all images, those without boxes included) and
        `image` (the best of each image; by labels, that is the oracle) -> `auroc` of s in the chosen layers, mean over
        images; `precision` and `recall` of the tokens that Otsu's threshold keeps there, over the tokens of all images,
        see `measures.Separation.kept`; `layers`: for each layer the number of images that it was chosen for.
    """
    known = [r for r in readings if r.separation is not None]
    if not known:
        return {}
    auroc = np.array([r.separation.auroc for r in known if r.separation])
    kept = np.array([r.separation.kept for r in known if r.separation])
    values = {"labels": (auroc, auroc.mean(0))}
    for name in readings[0].criteria:
        over_all = np.mean([r.criteria[name] for r in readings], axis=0)
        values[name] = np.array([r.criteria[name] for r in known]), over_all
    return {
        name: {
            "set": _scores(np.full(len(known), best_layer(mean)), auroc, kept),
            "image": _scores(np.array([best_layer(one) for one in own]), auroc, kept),
        }
        for name, (own, mean) in values.items()
    }


def _scores(chosen: np.ndarray, auroc: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """`chosen` (images,), `auroc` (images, layers), `kept` (images, 3, layers)."""
    images = np.arange(len(chosen))
    kept_targets, kept_others, targets = kept[images, :, chosen].sum(0).tolist()
    return {
        "auroc": float(auroc[images, chosen].mean()),
        "precision": kept_targets / max(kept_targets + kept_others, 1),
        "recall": kept_targets / max(targets, 1),
        "layers": np.bincount(chosen, minlength=auroc.shape[1]).tolist(),
    }


def _reader(choice: str, way: str, score: str) -> Callable[[Mapping[str, Any]], float]:
    def read(report: Mapping[str, Any]) -> float:
        value = report.get("layer_choice", {}).get(choice, {}).get(way, {}).get(score, float("nan"))
        return float(value) if score == "auroc" else 100.0 * value

    return read


METRICS = {f"{s}_{c}_{w}": _reader(c, w, s) for c in CHOICES for w in WAYS for s in SCORES}
"""Metrics of reports with `layer_choice`, such as `auroc_bimodality_image`; precision and recall in percent."""
