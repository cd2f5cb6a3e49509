"""The comparison as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scone_pl.evaluation.agreement.statistics import CORRELATIONS, MIN_ITEMS
from scone_pl.markdown import markdown_table

_HEADS = {"pearson": "Pearson", "spearman": "Spearman", "kendall": "Kendall tau-b", "kappa": "quadratic kappa"}


Table = tuple[str, list[list[str]]]
"""A caption, and rows of cells below their heads."""
NOTES = (
    f"In brackets: 95 % bootstrap interval over items (none below {MIN_ITEMS} items of a task; those of pairs of "
    "systems are always given, and too narrow there). Behind the slash: the noise ceiling, the same statistic between "
    "repeated scorings (or raters) of the reference. Bias: candidate - reference, with the 95 % limits of agreement of "
    "single images. Mean over tasks: by Fisher's z for Pearson and Spearman."
)


def markdown(result: Mapping[str, Any]) -> str:
    """All tables."""
    parts = [f"## {result['candidate']} against {result['reference']}", summary(result)]
    for title, tables in sections(result).items():
        parts.append(f"### {title}")
        for caption, (heads, *rows) in tables:
            left = [i for i, head in enumerate(heads) if head in ("Task", "System", "Pair", "note")]
            rows = [[" ".join(cell.replace("|", "/").split()) for cell in row] for row in rows]
            parts += [*([f"{caption}:"] if caption else []), markdown_table(heads, rows, tuple(left))]
    return "\n\n".join([*parts, NOTES]) + "\n"


def summary(result: Mapping[str, Any]) -> str:
    """How many images are compared, in a sentence."""
    left_out = result["incomplete"]
    return (
        f"{result['images']} images that both have rated; left out as incomplete: {left_out['reference']} of the "
        f"reference, {left_out['candidate']} of the candidate."
    )


def sections(result: Mapping[str, Any]) -> dict[str, list[Table]]:
    """Title -> its tables: for each column statistics by task and what concerns systems; yes/no answers."""
    found = {
        column: [("", _tasks(one["tasks"])), *(_systems(one["systems"]) if one["systems"] else [])]
        for column, one in result["columns"].items()
    }
    answers = presence(result)
    return {**found, "Yes/no answers": answers} if answers else found


def _tasks(rows: Mapping[str, Any]) -> list[list[str]]:
    cells = [["Task", "n", *_HEADS.values(), "alpha", "bias", "limits of agreement", "slope", "ties", "note"]]
    for task, row in rows.items():
        limits = "-" if row["low"] is None else f"{row['low']:+.2f} to {row['high']:+.2f}"
        cells.append(
            [
                task,
                str(row["n"]),
                *(_with_ceiling(row, name) for name in CORRELATIONS),
                _number(row["ceiling"].get("alpha")),
                _number(row["bias"], "+.2f") + _interval(row, "bias"),
                limits,
                _number(row["slope"], "+.2f"),
                _number(row["ties"], ".0%"),
                row["why"] or "",
            ]
        )
    return cells


def _with_ceiling(row: Mapping[str, Any], name: str) -> str:
    ceiling = row["ceiling"].get(name)
    return f"{_number(row[name])}{_interval(row, name)} / {_number(ceiling)}"


def _interval(row: Mapping[str, Any], name: str) -> str:
    ends = row["intervals"].get(name)
    return f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else ""


def _systems(found: Mapping[str, Any]) -> list[Table]:
    means = [["System", "n", "reference", "candidate", "bias"]]
    for name, row in found["means"].items():
        means.append([name, str(row["n"]), *(_number(row[side]) for side in ("reference", "candidate"))])
        means[-1].append(_number(row["bias"], "+.2f"))
    ranks = [["Task", "Spearman", "Kendall", *(f"bias of {name}" for name in found["means"])]]
    for task, one in {**found["tasks"], "pooled": found}.items():
        biases = [_number(one["means"].get(name, {}).get("bias"), "+.2f") for name in found["means"]]
        ranks.append([task, _number(one["spearman"]), _number(one["kendall"]), *biases])
    pairs = [["Pair", "n", "reference", "decided", "candidate", "decided", "same sign"]]
    for pair in found["pairs"]:
        cells = [" - ".join(pair["systems"]), str(pair["n"])]
        for side in ("reference", "candidate"):
            one = pair[side]
            ends = one["interval"]
            shown = "" if ends is None else f" [{ends[0]:+.2f}, {ends[1]:+.2f}]"
            cells += [_number(one["difference"], "+.2f") + shown, _yes(one["decided"])]
        pairs.append([*cells, _yes(pair["same_sign"])])
    return [
        ("Means of systems", means),
        ("Order of systems under both", ranks),
        ("Differences of systems, and whether a judge decides them", pairs),
    ]


def presence(result: Mapping[str, Any]) -> list[Table]:
    """Agreement of yes/no answers; empty if there are none."""
    found = result["presence"]
    if not found:
        return []
    rows = [["Task", "answers", "equal", "Cohen's kappa", "yes of the reference", "yes of the candidate"]]
    for task, one in {**found["tasks"], "pooled": found}.items():
        rates = (_number(one[name], ".1%") for name in ("reference_rate", "candidate_rate"))
        rows.append([task, str(one["n"]), _number(one["agreement"], ".1%"), _number(one["kappa"]), *rates])
    return [("", rows)]


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)
