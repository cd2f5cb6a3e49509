"""The page of one study, generated from its JSON file: no number in it is typed."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2

from scone_pl.analysis.choice import CHOICES, SCORES, WAYS, best_layer
from scone_pl.errors import UserError
from scone_pl.evaluation.evaluator import Column
from scone_pl.files import read_json
from scone_pl.markdown import markdown_table
from scone_pl.study import frontier
from scone_pl.study.comparisons import ComparedRow, Comparisons, Pair
from scone_pl.study.costs import cost_tables
from scone_pl.study.result import Result, Row, layer_estimates, layer_means
from scone_pl.study.training import UNKNOWN, training_commits

READING = "reading.md"
"""How to read the pages, beside them."""
FIGURES = (".png", "_maps.png", "_histograms.png")
"""Ends of their files' names, after the study's."""
_TRAINED = 1.0
"""A run whose training took fewer seconds trained nothing: its weights existed."""
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("scone_pl.study"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)


def section(comparisons: Comparisons, folder: Path) -> str:
    """One study as Markdown, to stand in `folder` beside its figures."""
    result = comparisons.result
    scored, layered = result.of_kind("score"), result.of_kind("layers")
    tables = _score_tables(result, result.rows(scored)) if scored else []
    tables += _compared(f"minus {_label(result, result.text('baseline'))}", comparisons, comparisons.with_baseline)
    tables += _compared("within an arm", comparisons, comparisons.within_arms)
    tables += frontier.table(result)
    tables += _beside(result, folder)
    for name in result.of_kind("layers", "test"):
        tables += [_layer_table(result, name), *_choices_of_a_layer(result, name)]
    tables += [_choice_table(result, layered)] if result.of_kind("layers", "validation") else []
    figures = [f for end in FIGURES if (f := folder / f"{result.study}{end}").is_file()]
    cost = folder / f"{result.study}_cost.json"
    return TEMPLATES.get_template("section.md.j2").render(
        result=result,
        front=f"{folder.name}.md",
        explained=(folder / READING).is_file(),
        conditions=_conditions(result),
        tables=tables,
        figures=[f"![{file.stem}]({file.name})" for file in figures],
        paper=_paper_tables(comparisons),
        costs=cost_tables(read_json(cost, dict)) if cost.is_file() else [],
        counts=comparisons.counts,
        findings=filled(result.text("findings"), comparisons) if result.has_findings else "",
    )


def _label(result: Result, arm: str) -> str:
    return result.arms[arm]["label"] if arm in result.arms else ""


def _conditions(result: Result) -> dict[str, Any]:
    """Seeds, episodes, seconds, commits and versions behind a result."""
    seconds = [run["seconds"]["training"] for run in result.runs]
    trained = [some for some in seconds if some >= _TRAINED]
    commits = Counter(name for run in result.runs for name in training_commits(run))
    unknown = commits.pop(UNKNOWN, 0)
    return {
        "seeds": result.seeds,
        "episodes": sorted({one["per_task"] for one in result.evaluations.values() if "per_task" in one}),
        # The median, as an interrupted run of an old version counts only the time since.
        "seconds": statistics.median(trained) if trained else None,
        "trained": sorted(commits),
        "unknown": unknown,
        "runs": len(result.runs),
        "evaluated": sorted({name for run in result.runs for name in run["commit"].split(", ")}),
        "versions": result.runs[0]["versions"],
    }


def _score_tables(result: Result, rows: list[Row]) -> list[str]:
    """The evaluator's tables; rows of different evaluators are in different tables."""
    tables = []
    by_evaluator: dict[str, list[Row]] = {}
    for row in rows:
        by_evaluator.setdefault(result.evaluator(row.evaluation).name, []).append(row)
    for members in by_evaluator.values():
        reports = [report for row in members for report in result.reports(row.arm, row.evaluation)]
        for head, columns in result.evaluator(members[0].evaluation).tables(reports):
            lines = [[row.label, *(_cell(result, row, column) for column in columns)] for row in members]
            tables.append(markdown_table([head, *(column.head for column in columns)], lines))
    return tables


def _cell(result: Result, row: Row, column: Column) -> str:
    estimate = result.estimate(row.arm, row.evaluation, column.metric)
    if math.isnan(estimate.mean):
        return "-" if not column.interval else str(estimate)
    return f"{estimate}{column.unit}" if column.interval else f"{estimate.mean:.0f}{column.unit}"


def _compared(head: str, comparisons: Comparisons, rows: list[ComparedRow]) -> list[str]:
    """A table of differences; none with a single seed."""
    lines = [[row.label, *map(comparisons.cell, row.pairs)] for row in rows]
    lines = [line for line in lines if all(line[1:])]
    if not lines:
        return []
    columns = comparisons.result.evaluator(rows[0].pairs[0].evaluation).compared
    return [markdown_table([head, *(column.head for column in columns)], lines)]


def _beside(result: Result, folder: Path) -> list[str]:
    """The table of arms of several studies; what has not been run is left out.

    Raises:
        UserError: a kept result lacks an arm.
    """
    rows, columns = [], result.evaluator(result.of_kind("score")[0]).compared if result.of_kind("score") else ()
    for label, (study, *arms) in (result.content.get("beside") or {}).items():
        if study != result.study and not (folder / f"{study}.json").is_file():
            continue
        other = result if study == result.study else Result.read(folder / f"{study}.json")
        if (missing := [arm for arm in arms if arm not in other.arms]) and not other.content.get("partial"):
            raise UserError(f"{result.study}: beside.{label} names {missing[0]}, which {study}.json lacks")
        arms = [arm for arm in arms if arm not in missing]
        evaluation = other.of_kind("score")[0]
        for arm in arms:
            own = [str(other.estimate(arm, evaluation, column.metric)) for column in columns]
            pairs = [other.difference(arm, arms[0], evaluation, c.metric) for c in columns if arm != arms[0]]
            minus = [str(pair or "") for pair in pairs] or [""] * len(columns)
            rows.append([f"{label}: {_label(other, arm)}", *own, *minus])
    heads = [column.head for column in columns]
    return (
        [markdown_table(["side by side", *heads, *(f"{h}, minus its baseline" for h in heads)], rows)] if rows else []
    )


def _layer_table(result: Result, evaluation: str) -> str:
    """Inputs and every layer: AUROC of each task in the understanding expert, means over tasks of the rest."""
    rows, read = [], {name: result.layers(name, evaluation) for name in result.arms}
    with_inputs = all("inputs" in one for layers in read.values() for one in layers)  # older results lack them
    for name, layers in read.items():
        tasks = list(layers[0]["understanding"])
        asked = [(f"{task.removeprefix('distinction_')} AUROC", "understanding", "auroc", [task]) for task in tasks]
        asked += [
            ("mean effect", "understanding", "effect", tasks),
            ("mean sensitivity", "understanding", "sensitivity", tasks),
        ]
        if "generation" in layers[0]:
            asked.append(("generation expert: mean AUROC", "generation", "auroc", tasks))
        measured = layers[0]["understanding"][tasks[0]]  # without boxes there is sensitivity alone
        for title, expert, measure, over in (row for row in asked if row[2] in measured):
            own = [*map(str, layer_estimates(layers, expert, measure, over))]
            if with_inputs:
                own[:0] = map(str, layer_estimates(layers, "inputs", measure, over)) if expert != "generation" else [""]
            rows.append([result.arms[name]["label"], title, *own])
    heads = [*["inputs"] * with_inputs, *(f"layer {i}" for i in range(len(rows[0]) - 2 - with_inputs))]
    return markdown_table(["weights", "similarity", *heads], rows)


def _choices_of_a_layer(result: Result, evaluation: str) -> list[str]:
    """A table of the layer that labels or s itself choose, for all images and for each its own; none without boxes."""
    rows = []
    for name, arm in result.arms.items():
        reports = result.reports(name, evaluation)
        for choice in (c for c in CHOICES if all(c in report.get("layer_choice", {}) for report in reports)):
            counts = [report["layer_choice"][choice]["set"]["layers"] for report in reports]
            scores = [result.estimate(name, evaluation, f"{score}_{choice}_{way}") for way in WAYS for score in SCORES]
            cells = [str(one) if i % len(SCORES) == 0 else f"{one.mean:.0f} %" for i, one in enumerate(scores)]
            rows.append(
                [arm["label"], choice.replace("_", " "), " ".join(str(c.index(max(c))) for c in counts), *cells]
            )
    heads = [f"{words}: AUROC" for words in WAYS.values()]
    kept = ["kept: precision", "recall"]
    heads = ["weights", "layer by", "for all, a seed each", heads[0], *kept, heads[1], *kept]
    return [markdown_table(heads, rows, text=(0, 1, 2))] if rows else []


def _choice_table(result: Result, evaluations: list[str]) -> str:
    """The layer that an automatic choice takes by each evaluation, with and without labels; one for every seed."""
    rows, by = [], [("auroc", ""), ("sensitivity", ", no labels")]
    for arm in result.arms:
        cells = []
        for measure, _ in by:
            for name in evaluations:
                layers = result.layers(arm, name)
                means = [layer_means(one, "understanding", measure, list(one["understanding"])) for one in layers]
                cells.append(" ".join(str(best_layer(values)) for values in means))
        rows.append([_label(result, arm), *cells])
    names = [result.evaluations[name]["label"] or "test episodes" for name in evaluations]
    heads = [f"{name}{extra}" for _, extra in by for name in names]
    return markdown_table(["chosen layer, a seed each, by", *heads], rows)


def _paper_tables(comparisons: Comparisons) -> list[str]:
    """The paper's table, and which of its orderings ours agrees with."""
    published, result = comparisons.published, comparisons.result
    if not published:
        return []
    rows = [[name, *(f"{v:.2f}" for v in values)] for name, values in published["rows"].items()]
    tables = [markdown_table([f"paper ({published['benchmark']}, 14.6 B parameters)", *published["columns"]], rows)]
    lines = [
        [
            f"{_label(result, pair.one)} - {_label(result, pair.other)}",
            *(pair.metric, f"{theirs:+.2f}", str(difference), comparisons.verdict(pair, theirs)),
        ]
        for pair, theirs in comparisons.with_paper
        if (difference := comparisons.difference(pair))
    ]
    return [*tables, markdown_table(["difference", "score", "paper", "ours (paired)", "ordering"], lines)][
        : 1 + bool(lines)
    ]


def filled(text: str, comparisons: Comparisons) -> str:
    """Placeholders in `text` replaced by mean and interval.

    - `{arm.metric}` or `{arm.evaluation.metric}`
    - `{one-other.evaluation.metric}`, `{arm.one-other.metric}`: a difference of arms or of evaluations, paired by seed;
      `(one seed)` where they share fewer than two
    - the same with `.low`, `.high`: ends of the interval; with `.p`: p value after Holm's correction within the study
    - `{arm.evaluation.expert.measure.layer}`: of a layer, the mean of the tasks

    Raises:
        UserError: a placeholder names nothing that exists.
    """
    result = comparisons.result

    def value(match: re.Match[str]) -> str:
        arm, *middle, last = match[1].split(".")
        try:
            if len(middle) == 3:
                layers = result.layers(arm, middle[0])
                return str(layer_estimates(layers, middle[1], middle[2], list(layers[0][middle[1]]))[int(last)])
            part = last if last in ("low", "high", "p") else ""
            metric = middle.pop() if part else last
            evaluation = middle[0] if middle else next(iter(result.evaluations))
            arms, evaluations = arm.split("-"), evaluation.split("-")
            if len(arms) == len(evaluations) == 1:
                return str(result.estimate(arm, evaluation, metric))
            pair = Pair(arms[0], arms[-1], evaluations[0], metric, evaluations[-1])
            return _part(comparisons, pair, part)
        except (KeyError, IndexError, TypeError, ValueError):
            raise UserError(f"{result.study}: findings name {match[0]}, which is no arm and metric") from None

    return re.sub(r"\{([\w.-]+)\}", value, text)


def _part(comparisons: Comparisons, pair: Pair, part: str) -> str:
    difference = comparisons.difference(pair)
    if difference is None:
        return "(one seed)"
    if part == "p":
        p = comparisons.adjusted_p(pair)
        if math.isnan(p):
            raise ValueError("not among the differences that the study tests")
        return f"{p:.2g}"
    ends = {"low": difference.mean - difference.half_width, "high": difference.mean + difference.half_width}
    return f"{ends[part]:+.2f}" if part else str(difference)
