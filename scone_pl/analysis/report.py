"""What the layers of a checkpoint say, as JSON and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scone_pl.analysis.choice import WAYS, best_layer, layer_choice
from scone_pl.analysis.measures import QUANTILES, Reading, histograms, quantiles, summary
from scone_pl.analysis.similarity import INPUTS
from scone_pl.markdown import markdown_table

_COLUMNS = (
    ("AUROC", "understanding", "auroc"),
    ("effect", "understanding", "effect"),
    ("sensitivity", "understanding", "sensitivity"),
    ("generation: AUROC", "generation", "auroc"),
    ("generation: sensitivity", "generation", "sensitivity"),
)
"""Of the table: head, expert, measure."""
_CHOICES = {"by labels": "auroc", "without labels": "sensitivity"}
"""How a layer can be chosen, and by which measure of the understanding expert, which is what the bridge reads."""
_WORDS = {"auroc": "AUROC", "sensitivity": "sensitivity"}
_TOKENS = {"target": "target subjects", "others": "other subjects", "all": "all"}


def report_of(readings: Mapping[str, Sequence[Reading]]) -> dict[str, Any]:
    """All numbers, plain JSON.

    Args:
        readings: expert -> one for each reference image.

    Returns:
        `images` and `labelled_images` (counts); `experts`: per expert, and of the decoder's `inputs`,
        `measures.summary` and the `quantiles` at `levels`, lists over layers; `suggested`: the `bridge.source_layer` by
        labels and without, as far as possible; and `choice_report`.
    """
    of_bridge = readings["understanding"]
    report: dict[str, Any] = {
        "images": len(of_bridge),
        "labelled_images": sum(r.separation is not None for r in of_bridge),
        "levels": list(QUANTILES),
        "experts": {name: {**summary(some), "quantiles": quantiles(some)} for name, some in readings.items() if some},
    }
    own = report["experts"]["understanding"]
    report["suggested"] = {how: best_layer(own[measure]) for how, measure in _CHOICES.items() if measure in own}
    return {**report, **choice_report(of_bridge)}


def choice_report(of_bridge: Sequence[Reading]) -> dict[str, Any]:
    """`layer_choice` and, at the layer that labels choose for all images, `histograms`; {} without boxes.

    Args:
        of_bridge: one for each reference image, of the understanding expert.
    """
    if not (choice := layer_choice(of_bridge)):
        return {}
    layer = int(np.argmax(choice["labels"]["set"]["layers"]))
    return {"layer_choice": choice, "histograms": histograms(of_bridge, layer)}


def words_of(report: Mapping[str, Any]) -> str:
    """A report as Markdown that reads well in a terminal."""
    parts = [_measures_table(report), _suggestion(report)]
    if report["suggested"]:
        parts += [
            "A threshold belongs to its layer: choose bridge.threshold again for another one. Quantiles there of the "
            "similarity s of a reference image's ViT tokens (means over images):",
            _quantiles_table(report),
        ]
    if "layer_choice" in report:
        parts += [
            "One layer for all images, or for each the one that its own s chooses. Kept: subject tokens at or above "
            "Otsu's threshold there. Labels that choose for each image are an oracle, no method:",
            _choice_table(report["layer_choice"]),
        ]
    return "\n\n".join(parts)


def _measures_table(report: Mapping[str, Any]) -> str:
    """The decoder's inputs and every layer; * marks the layer that a column would choose."""
    columns = [(head, report["experts"].get(expert, {}).get(measure)) for head, expert, measure in _COLUMNS]
    shown = [(head, values, best_layer(values)) for head, values in columns if values is not None]
    layers, heads = len(report["experts"]["understanding"]["quantiles"]["all"]), [head for head, *_ in shown]
    rows = [
        [str(i), *(f"{values[i]:.3f}{'*' if i == best else ' '}" for _, values, best in shown)] for i in range(layers)
    ]
    if before := report["experts"].get(INPUTS):
        own = [before[m][0] if m in before and e == "understanding" else None for h, e, m in _COLUMNS if h in heads]
        rows = [["inputs", *("" if value is None else f"{value:.3f} " for value in own)], *rows]
    return markdown_table(["layer", *heads], rows)


def _suggestion(report: Mapping[str, Any]) -> str:
    """One line."""
    own, suggested = report["experts"]["understanding"], report["suggested"]
    if not suggested:
        return (
            "No layer can be suggested: no reference image has boxes of both target and other subjects, and all "
            "instructions are the same."
        )
    counts = {"by labels": report["labelled_images"], "without labels": report["images"]}
    ways = [
        f"{layer} {how} ({_WORDS[_CHOICES[how]]} {own[_CHOICES[how]][layer]:.3f} over {counts[how]} images)"
        for how, layer in suggested.items()
    ]
    chosen = f"bridge.source_layer: {', '.join(ways)}. The very last layer is never chosen: none is left to be masked."
    before = report["experts"].get(INPUTS, {})
    found = [f"{word} {before[measure][0]:.3f}" for measure, word in _WORDS.items() if measure in before]
    return f"{chosen} Before the first layer (-1): {', '.join(found)}." if found else chosen


def _quantiles_table(report: Mapping[str, Any]) -> str:
    of_tokens = report["experts"]["understanding"]["quantiles"]
    rows = [
        [str(layer), label, *(f"{value:.3f}" for value in of_tokens[name][layer])]
        for layer in sorted(set(report["suggested"].values()))
        for name, label in _TOKENS.items()
        if name in of_tokens
    ]
    return markdown_table(["layer", "tokens of", *(f"{level:.0%}" for level in report["levels"])], rows, text=(0, 1))


def _choice_table(choice: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, ways in choice.items():
        for way, words in WAYS.items():
            own = ways[way]
            layers = ", ".join(str(i) for i, images in enumerate(own["layers"]) if images)
            kept = (f"{own[score]:.0%}" for score in ("precision", "recall"))
            rows.append([name.replace("_", " "), words, layers, f"{own['auroc']:.3f}", *kept])
    return markdown_table(["chosen by", "for", "layers", "AUROC", "kept: precision", "recall"], rows, text=(0, 1, 2))
