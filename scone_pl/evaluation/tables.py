"""Markdown and LaTeX tables: the paper's table with the evaluated models, and details per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.bootstrap import MIN_ITEMS
from scone_pl.evaluation.published import published
from scone_pl.evaluation.summary import Summary
from scone_pl.markdown import markdown_table

_MIN_ITEMS_NOTE = f"Tasks with fewer than {MIN_ITEMS} items: intervals and p mean little."
_ERRORS = {
    "redundancy": ("DIS_prec", "precision", "images with a distractor"),
    "omission": ("DIS_recall", "recall", "images that lack a target"),
}
"""Error -> the column that it lowers, and the heads of both."""
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
    }
)
_RULES = r"""% With the package booktabs its rules are used, without it \hline.
\providecommand{\toprule}{\hline}
\providecommand{\midrule}{\hline}
\providecommand{\bottomrule}{\hline}
"""


def main_rows(summaries: Sequence[Summary]) -> list[tuple[str, Mapping[str, float], bool]]:
    """(method, scores, whether it is an evaluated model): the paper's rows, then the evaluated models."""
    paper = published(summaries[0].benchmark)
    return [
        *((method, row, False) for method, row in paper.rows.items()),
        *((summary.name, summary.mean, True) for summary in summaries),
    ]


def main_markdown(summaries: Sequence[Summary]) -> str:
    """The paper's table with the evaluated models, two decimals; `-` for missing numbers."""
    benchmark = summaries[0].benchmark
    columns = published(benchmark).columns
    heads = ["Method", *(_head(benchmark, column) for column in columns)]
    rows = []
    for method, row, ours in main_rows(summaries):
        mark = "**" if ours else ""
        cells = [f"{mark}{_cell(row.get(column))}{mark}" for column in columns]
        rows.append([f"{mark}{_plain(method)}{mark}", *cells])
    return markdown_table(heads, rows)


def latex(summaries: Sequence[Summary]) -> str:
    r"""The main table and the first model's scores per task, for `\input`; no package is required."""
    note = (
        "% Mean over groups (sampling x scoring), standard deviation over groups, [95 % bootstrap interval over items]"
    )
    return "\n".join([_RULES, _main_latex(summaries), "", note, _tabular(_detail(summaries[0])), ""])


def _main_latex(summaries: Sequence[Summary]) -> str:
    benchmark = summaries[0].benchmark
    columns = published(benchmark).columns
    groups: list[tuple[str, int]] = []
    for column in columns:
        name = _head_group(benchmark, column)
        if groups and groups[-1][0] == name:
            groups[-1] = (name, groups[-1][1] + 1)
        else:
            groups.append((name, 1))
    first = " & ".join([" ", *(rf"\multicolumn{{{n}}}{{c}}{{{_latex(name)}}}" for name, n in groups)])
    second = " & ".join(["Method", *(_latex(_head_below(benchmark, column)) for column in columns)])
    paper = [
        [_latex(method), *(_cell(row.get(c)) for c in columns)] for method, row in published(benchmark).rows.items()
    ]
    ours = [[_latex(s.name), *(_latex(_spread(s, c, interval=False)) for c in columns)] for s in summaries]
    lines = [
        r"\begin{tabular}{l" + "c" * len(columns) + "}",
        r"\toprule",
        first + r" \\",
        second + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in paper),
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in ours),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def _tabular(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a LaTeX table; the first row is the header."""
    body = [" & ".join(map(_latex, row)) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{tabular}{l" + "c" * (len(rows[0]) - 1) + "}",
            *(r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule"),
            r"\end{tabular}",
        ]
    )


def _detail(summary: Summary) -> list[list[str]]:
    """Header and a row per task: number of complete records; mean, standard deviation and interval of each score."""
    benchmark = summary.benchmark
    rows = [["Task", "n", *benchmark.average_columns]]
    for task in benchmark.tasks:
        count = summary.completeness[task]
        cells = [_spread(summary, f"{task}.{name}") for name in benchmark.average_columns]
        rows.append([benchmark.short_names[task], f"{count['used']} of {count['records']}", *cells])
    for aggregate in benchmark.aggregates:
        cells = [_spread(summary, f"{aggregate.name}.{name}") for name in benchmark.average_columns]
        rows.append([aggregate.title, "", *cells])
    empty = [""] * (len(benchmark.average_columns) - 1)
    rows += [[name.capitalize(), "", _spread(summary, name), *empty] for name in benchmark.derived]
    return rows


def detail_markdown(summary: Summary) -> str:
    """Scores per task: mean over groups, standard deviation, 95 % interval, and the number of complete records."""
    benchmark, combined = summary.benchmark, summary.combined
    heads, *rows = _detail(summary)
    n = combined["n_groups"]
    note = (
        f"Mean over {n} group{'' if n == 1 else 's'} (sampling x scoring) ± standard deviation over groups (divisor "
        "n - 1), [95 % bootstrap interval over items]. n: complete records; incomplete ones are not counted."
    )
    used = [summary.completeness[task]["used"] / n for task in benchmark.tasks]
    if any(0 < items < MIN_ITEMS for items in used):
        note += f" {_MIN_ITEMS_NOTE}"
    if "n_of" in combined:
        note += f" Some columns exist in fewer groups: {combined['n_of']}."
    names = [aggregate.name for aggregate in benchmark.aggregates]
    if not summary.groups or any(group[name] is None for group in summary.groups for name in names):
        note += " Groups without every task have no average."
    return f"{markdown_table(heads, rows)}\n\n{note}{_provenance(summary)}"


def extra_markdown(summary: Summary) -> str:
    """Further tables: errors by name, the benchmark's own, failures, stability, plausibility."""
    benchmark = summary.benchmark
    parts = []
    scored = [name for name in _ERRORS if _ERRORS[name][0] in benchmark.average_columns]
    if summary.error_rates and scored:
        parts.append(_errors(summary, scored))
    if any(name not in scored for found in summary.failure_rates.values() for name in found):
        heads, *rows = failure_rows(summary)
        parts.append("### Failures by name\n\n" + markdown_table(heads, rows))
    parts += [f"### {title}\n\n{markdown_table(rows[0], rows[1:])}" for title, rows in summary.extra]
    failures = [
        [benchmark.short_names[task], str(count), _plain(reason)]
        for task, result in summary.completeness.items()
        for reason, count in result["failures"].items()
    ]
    if failures:
        parts.append("### Records without scores\n\n" + markdown_table(["Task", "n", "reason"], failures, (0, 2)))
    if summary.combined["n_groups"] > 1:
        parts.append("### Stability\n\n" + _stability(summary))
    if summary.plausibility:
        rows = [
            [benchmark.short_names.get(task, "Average over tasks"), f"{result['mean']:.2f}", str(int(result["n"]))]
            for task, result in summary.plausibility.items()
        ]
        text = "An additional question, not part of the benchmark or its averages.\n\n"
        parts.append("### Physical plausibility\n\n" + text + markdown_table(["Task", "PHY", "n"], rows))
    return "\n\n".join(parts)


def comparison_markdown(comparison: Mapping[str, Any], first: str, second: str) -> str:
    """A paired comparison, see `bootstrap.compare`."""
    heads = ["Column", _plain(first), _plain(second), "difference", "95 % interval", "p"]
    rows = [
        [
            column,
            f"{values['first']:.2f}",
            f"{values['second']:.2f}",
            f"{values['difference']:+.2f}",
            f"[{values['interval'][0]:+.2f}, {values['interval'][1]:+.2f}]",
            f"{values['p']:.3f}",
        ]
        for column, values in comparison["columns"].items()
    ]
    n = sum(comparison["n"].values())
    note = f"Paired bootstrap over {n} items that both have ({comparison['resamples']} resamples)."
    if min(comparison["n"].values()) < MIN_ITEMS:
        note += f" {_MIN_ITEMS_NOTE}"
    return f"{markdown_table(heads, rows)}\n\n{note}"


def _provenance(summary: Summary) -> str:
    """A paragraph about the judge and the settings of the images; empty if the records have no provenance."""
    provenance = summary.provenance
    parts = []
    if provenance["models"]:
        days = " to ".join(dict.fromkeys(date[:10] for date in provenance["dates"]))
        parts.append(f"Judge: {', '.join(provenance['models'])}, {days}; prompts {', '.join(provenance['prompts'])}.")
    for made in provenance["generation"]:
        sampling = made.get("sampling")
        if "weights" in made and isinstance(sampling, dict):  # by `predict`
            seed = made.get("seed", sampling.get("seed"))  # outside of `sampling` in older records
            rounds, steps = ", ".join(map(str, made["rounds"])), sampling.get("num_inference_steps")
            parts.append(f"Images: weights {made['weights']}, seed {seed}, rounds {rounds}, {steps} steps.")
    return "\n\n" + " ".join(parts) if parts else ""


def _stability(summary: Summary) -> str:
    columns = summary.stability["columns"]
    rows = [
        [
            "Overall" if name == "overall" else name.removeprefix("average."),
            _cell(spread["std_over_scorings"], 3),
            _cell(spread["std_over_samplings"], 3),
            f"{spread['range'][0]:.2f} to {spread['range'][1]:.2f}",
        ]
        for name, spread in columns.items()
    ]
    items = summary.stability["items"]
    agreement = items["presence_agreement"]
    rated = ", ".join(f"{name} {_cell(items[f'{name}_std_over_scorings'])}" for name in summary.benchmark.rated)
    note = f"Standard deviation over scorings, mean over images: {rated}"
    note += "." if agreement is None else f"; {agreement:.1%} of the yes/no answers are the same in all scorings."
    heads = ["Average of", "std over scorings", "std over samplings", "range over groups"]
    return f"{markdown_table(heads, rows)}\n\n{note}" if rows else note


def _errors(summary: Summary, names: Sequence[str]) -> str:
    """Fractions of images with each error, by task; beside them the scores that they lower."""
    heads = ["Task", *(head for name in names for head in _ERRORS[name][1:])]
    rows = []
    for task, spread in summary.error_rates.items():
        cells = [summary.benchmark.short_names[task]]
        for name in names:
            cells += [_cell(summary.mean.get(f"{task}.{_ERRORS[name][0]}")), f"{spread[name]:.0%}"]
        rows.append(cells)
    return f"### {' and '.join(names).capitalize()}\n\n" + markdown_table(heads, rows)


def failure_rows(summary: Summary) -> list[list[str]]:
    """Heads, and a row per task: fractions of images with each failure by name."""
    names = list(dict.fromkeys(name for found in summary.failure_rates.values() for name in found))
    rows = [
        [summary.benchmark.short_names[task], *(f"{found[name]:.0%}" if name in found else "-" for name in names)]
        for task, found in summary.failure_rates.items()
    ]
    return [["Task", *names], *rows]


def _head(benchmark: Benchmark, column: str) -> str:
    group = _head_group(benchmark, column)
    below = _head_below(benchmark, column)
    return below if group == "Average" and below == "Overall" else f"{group} {below}".strip()


def _head_group(benchmark: Benchmark, column: str) -> str:
    task = column.partition(".")[0]
    if task in benchmark.tasks:
        return benchmark.short_names[task].partition(" / ")[0]
    titles = {one.name: one.title for one in benchmark.aggregates if one.name != "average"}
    return titles.get(task, "Average")


def _head_below(benchmark: Benchmark, column: str) -> str:
    """Name of a column below its group; the score is named where the main table shows several."""
    task, _, name = column.partition(".")
    several = len({one.partition(".")[2] for one in published(benchmark).columns if "." in one}) > 1
    if task in benchmark.derived:
        return task.capitalize()
    short = benchmark.short_names[task].partition(" / ")[2] if task in benchmark.tasks else ""
    return f"{short} {name if several else ''}".strip()


def _cell(value: float | None, decimals: int = 2) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _spread(summary: Summary, column: str, *, interval: bool = True) -> str:
    mean = summary.mean.get(column)
    if mean is None:
        return "-"
    std = summary.combined["std_sample"][column]
    ends = summary.intervals.get(column) if interval else None
    text = f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
    return text if ends is None else f"{text} [{ends[0]:.2f}, {ends[1]:.2f}]"


def _plain(text: str) -> str:
    """`text` without characters that break a Markdown cell."""
    return " ".join(text.replace("|", "/").split())


def _latex(text: str) -> str:
    return text.translate(_LATEX)
