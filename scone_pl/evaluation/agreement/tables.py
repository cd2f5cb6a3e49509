"""The comparison as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scone_pl.evaluation.agreement.statistics import CORRELATIONS, MIN_ITEMS
from scone_pl.markdown import markdown_table

_HEADS = {"pearson": "Pearson", "spearman": "Spearman", "kendall": "Kendall tau-b", "kappa": "quadratic kappa"}


def markdown(result: Mapping[str, Any]) -> str:
    """All tables."""
    left_out = result["incomplete"]
    parts = [
        f"## {result['candidate']} against {result['reference']}",
        f"{result['images']} images that both have rated; left out as incomplete: {left_out['reference']} of the "
        f"reference, {left_out['candidate']} of the candidate.",
    ]
    for column, found in result["columns"].items():
        parts += [f"### {column}", _tasks(found["tasks"])]
        if found["systems"]:
            parts.append(_systems(found["systems"]))
    if result["presence"]:
        parts.append(_presence(result["presence"]))
    parts.append(
        f"In brackets: 95 % bootstrap interval over items (none below {MIN_ITEMS} items of a task). Behind the slash: "
        "the noise ceiling, the same statistic between repeated scorings (or raters) of the reference. Bias: candidate "
        "- reference, with the 95 % limits of agreement of single images."
    )
    return "\n\n".join(parts) + "\n"


def _tasks(rows: Mapping[str, Any]) -> str:
    heads = ["Task", "n", *_HEADS.values(), "alpha", "bias", "limits of agreement", "slope", "ties", "note"]
    cells = []
    for task, row in rows.items():
        ceiling = row["ceiling"]
        limits = "-" if row["low"] is None else f"{row['low']:+.2f} to {row['high']:+.2f}"
        ties = "-" if row["ties"] is None else f"{row['ties']:.0%}"
        cells.append(
            [
                task,
                str(row["n"]),
                *(_with_ceiling(row, name) for name in CORRELATIONS),
                _number(ceiling.get("alpha")),
                _number(row["bias"], "+.2f") + _interval(row, "bias"),
                limits,
                _number(row["slope"], "+.2f"),
                ties,
                row["why"] or "",
            ]
        )
    return markdown_table(heads, cells, (0, len(heads) - 1))


def _with_ceiling(row: Mapping[str, Any], name: str) -> str:
    ceiling = row["ceiling"].get(name)
    return f"{_number(row[name])}{_interval(row, name)} / {_number(ceiling)}"


def _interval(row: Mapping[str, Any], name: str) -> str:
    ends = row["intervals"].get(name)
    return f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else ""


def _systems(found: Mapping[str, Any]) -> str:
    rows = [
        [name, str(row["n"]), f"{row['reference']:.2f}", f"{row['candidate']:.2f}", f"{row['bias']:+.2f}"]
        for name, row in found["means"].items()
    ]
    text = markdown_table(["System", "n", "reference", "candidate", "bias"], rows)
    if found["spearman"] is not None:
        text += f"\n\nRanks of systems: Spearman {found['spearman']:.2f}, Kendall {found['kendall']:.2f}."
    pairs = []
    for pair in found["pairs"]:
        cells = [" - ".join(pair["systems"]), str(pair["n"])]
        for side in ("reference", "candidate"):
            one = pair[side]
            ends = one["interval"]
            shown = "" if ends is None else f" [{ends[0]:+.2f}, {ends[1]:+.2f}]"
            decided = "-" if one["decided"] is None else "yes" if one["decided"] else "no"
            cells += [_number(one["difference"], "+.2f") + shown, decided]
        pairs.append([*cells, "-" if pair["same_sign"] is None else "yes" if pair["same_sign"] else "no"])
    heads = ["Pair", "n", "reference", "decided", "candidate", "decided", "same sign"]
    return f"{text}\n\n{markdown_table(heads, pairs)}"


def _presence(found: Mapping[str, Any]) -> str:
    return (
        f"### Yes/no answers\n\n{found['n']} answers: {found['agreement']:.1%} equal, Cohen's kappa "
        f"{_number(found['kappa'])}; yes in {found['reference_rate']:.1%} (reference) and "
        f"{found['candidate_rate']:.1%} (candidate)."
    )


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)
