"""`docs/evidence.md`, made of the JSON files under `docs/evidence/`: no number in it is typed."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from scone_pl.errors import UserError
from scone_pl.files import write_text
from scone_pl.markdown import markdown_table
from scone_pl.mini.evidence.metrics import METRICS, difference_of, estimate_of, layer_estimates
from scone_pl.mini.evidence.spec import Experiment
from scone_pl.mini.layers import best_layer

DOCS = Path("docs/evidence")
PUBLISHED = "published.yaml"
"""The paper's tables."""
ORDER = (
    *("rates", "table4", "table5", "rates_long", "table5_long", "table5_rate", "parts", "table6", "table6_training"),
    *("figure11", "layers", "robustness", "robustness_trained", "no_experts", "tokens"),
)
SCORES = ("COM", "DIS", "overall")
_COST_ROWS = {"paper": "left out", "later": "left out in all later layers", "dropped": "dropped"}
FAILURES = ("exact", "redundancy", "omission", "blending", "wrong_subject")

HEAD = """# Evidence: the paper's claims, measured in the mini-world

This page is written by `python -m scone_pl mini page` from the JSON files in `docs/evidence/` (config, seed, commit,
versions and every seed's numbers); do not edit it. `make evidence` runs what is missing and writes it again.

**Another scale.** Numbers called ours come from a model of 0.9 million parameters on 16-pixel pictures, judged
exactly by a program; the paper's come from 14.6 billion parameters, judged by GPT-4.1. Only orderings can be compared.
Each section states its question as it was written down before the runs, and what was known by then. Unless it says
otherwise, all arms start from the same weights, a Stage I of each seed's own, and take the same number of steps over
the same samples, each at the learning rate that was chosen for it by one rule (`rates`). Settings were chosen on
validation episodes, the numbers are from test episodes that no choice has seen (those of `rates` from validation).
`±` is a 95 % interval over seeds (Student's t): a seed decides data order, noise levels and noise; the episodes are
the same for all, so what another draw of episodes would change is not in it. In bold: differences whose interval
leaves out 0; no correction is made for their number. Scores are SconeEval's formulas, 0 to 10; a model that draws no
candidate at all has DIS 2.5 (3.33 and 3.75 with three and four candidates).
"""


def write_page(folder: Path = DOCS) -> Path:
    """Writes the page beside `folder` from what is in it; its file."""
    names = [name for name in ORDER if (folder / f"{name}.json").is_file()]
    names += sorted(f.stem for f in folder.glob("*.json") if f.stem not in ORDER and not f.stem.endswith("_cost"))
    if not names:
        raise UserError(f"{folder}: holds no result; run `make table5` or another experiment first")
    results = [_with_words(json.loads((folder / f"{name}.json").read_text())) for name in names]
    sections = [_answers(results), *(section(result, folder) for result in results)]
    if missing := [name for name in Experiment.names() if name not in names]:
        lines = [f"- `make {name}`: {Experiment.read(name).title}" for name in missing]
        sections.append("\n".join(["## Stated, not run yet", "", *lines, ""]))
    page = folder.with_suffix(".md")
    write_text("\n".join([HEAD, *sections]), page)
    return page


def _with_words(result: dict[str, Any]) -> dict[str, Any]:
    """What people wrote after the runs comes from the experiment's file, where it can still be mended."""
    if result["experiment"] not in Experiment.names():
        return result
    experiment = Experiment.read(result["experiment"])
    return {**result, "findings": experiment.findings, "answer": experiment.answer}


def _answers(results: Sequence[Mapping[str, Any]]) -> str:
    """A line for every experiment that has an answer."""
    answered = [r for r in results if r.get("answer") and not r["quick"]]
    lines = [f"- **{r['title']}** {filled(r['answer'].strip(), r)}" for r in answered]
    return "\n".join(["## In short, in this world", "", *lines, ""]) if lines else ""


def section(result: Mapping[str, Any], folder: Path = DOCS) -> str:
    """One experiment as Markdown."""
    name = result["experiment"]
    parts = [f"## {result['title']}", f"**Stated before the runs.** {result['question'].strip()}", _conditions(result)]
    scored = [look for look, settings in result["evaluations"].items() if settings["kind"] == "score"]
    layered = [look for look, settings in result["evaluations"].items() if settings["kind"] == "layers"]
    choosing = [look for look in layered if result["evaluations"][look].get("stream") == "validation"]
    if scored:
        parts += [_score_table(result, scored), _failure_table(result, scored)]
    if result["baseline"]:
        parts.append(_difference_table(result, scored))
    parts += [_layer_table(result, look) for look in layered if look not in choosing]
    if choosing:
        parts.append(_choice_table(result, layered))
    pictures = [file for file in (folder / f"{name}.png", folder / f"{name}_maps.png") if file.is_file()]
    parts += [f"![{file.stem}]({folder.name}/{file.name})" for file in pictures]
    if result["paper_table"]:
        parts += _paper(result, folder, scored[0])
    if (cost := folder / f"{name}_cost.json").is_file():
        parts += _cost_tables(json.loads(cost.read_text()))
    if result["findings"]:
        parts.append(f"**What came out.** {filled(result['findings'].strip(), result)}")
    return "\n\n".join(parts) + "\n"


def _conditions(result: Mapping[str, Any]) -> str:
    arms = result["arms"].values()
    seeds = max(len(arm["runs"]) for arm in arms)
    seconds = [sum(run["seconds"].values()) for arm in arms for run in arm["runs"]]
    commits = sorted({run["commit"] for arm in arms for run in arm["runs"]})
    first = next(iter(arms))["runs"][0]["versions"]
    made = ", ".join(f"{key} {value}" for key, value in first.items())
    quick = " **A quick look, not a result.**" if result["quick"] else ""
    return (
        f"{seeds} seeds; a run took {sum(seconds) / len(seconds):.0f} s on average, one thread on a shared machine; "
        f"commit {', '.join(commits)}; {made}.{quick}"
    )


def _rows(result: Mapping[str, Any], looks: list[str]) -> list[tuple[str, Mapping[str, Any], str]]:
    """(label, arm, evaluation) of every row of a table."""
    rows = []
    for arm in result["arms"].values():
        for look in looks:
            label = result["evaluations"][look]["label"]
            rows.append((" · ".join(part for part in (arm["label"], label) if part), arm, look))
    return rows


def _score_table(result: Mapping[str, Any], looks: list[str]) -> str:
    rows = []
    for label, arm, look in _rows(result, looks):
        cells = [str(estimate_of(arm, look, metric)) for metric in SCORES]
        masked = any(run["evaluations"][look]["mask"] for run in arm["runs"])
        kept = [
            f"{estimate_of(arm, look, m).mean:.0f} %" if masked else "-" for m in ("precision", "recall", "blocked")
        ]
        rows.append([label, *cells, *kept])
    return markdown_table(["ours", *SCORES, "kept: precision", "recall", "blocked"], rows)


def _difference_table(result: Mapping[str, Any], looks: list[str]) -> str:
    """Every arm minus the baseline, paired by seed; in bold where the interval excludes 0."""
    base = result["arms"][result["baseline"]]
    rows = []
    for label, arm, look in _rows(result, looks):
        found = [difference_of(arm, base, look, metric) for metric in SCORES]
        if arm is not base and None not in found:
            cells = [f"**{d}**" if d and d.excludes_zero else str(d) for d in found]
            rows.append([label, *cells])
    return markdown_table([f"minus {base['label']}", *SCORES], rows)


def _failure_table(result: Mapping[str, Any], looks: list[str]) -> str:
    rows = [
        [label, *(f"{estimate_of(arm, look, m).mean:.0f} %" for m in FAILURES)]
        for label, arm, look in _rows(result, looks)
    ]
    return markdown_table(["pictures", "as asked", *(m.replace("_", " ") for m in FAILURES[1:])], rows)


def _layer_table(result: Mapping[str, Any], look: str) -> str:
    """Every layer: AUROC of each task in the understanding expert, means over tasks of the rest."""
    rows = []
    for arm in result["arms"].values():
        found = [run["evaluations"][look]["layers"] for run in arm["runs"]]
        tasks = list(found[0]["understanding"])
        asked = [(f"{task.removeprefix('distinction_')} AUROC", "understanding", "auroc", [task]) for task in tasks]
        asked += [
            ("mean effect", "understanding", "effect", tasks),
            ("mean sensitivity", "understanding", "sensitivity", tasks),
            ("generation expert: mean AUROC", "generation", "auroc", tasks),
        ]
        for name, expert, measure, over in asked:
            rows.append([arm["label"], name, *map(str, layer_estimates(found, expert, measure, over))])
    return markdown_table(["weights", "similarity", *(f"layer {i}" for i in range(len(rows[0]) - 2))], rows)


def _choice_table(result: Mapping[str, Any], looks: list[str]) -> str:
    """The layer that an automatic choice takes by each evaluation, with and without labels; one for every seed."""
    rows, by = [], [("auroc", ""), ("sensitivity", ", no labels")]
    for arm in result["arms"].values():
        cells = []
        for measure, _ in by:
            for look in looks:
                found = [run["evaluations"][look]["layers"]["understanding"] for run in arm["runs"]]
                last = len(next(iter(found[0].values()))["auroc"]) - 2  # the very last has no layer behind it to mask
                cells.append(" ".join(str(best_layer(tasks, last, measure)) for tasks in found))
        rows.append([arm["label"], *cells])
    names = [result["evaluations"][look]["label"] or "test episodes" for look in looks]
    heads = [f"{name}{extra}" for _, extra in by for name in names]
    return markdown_table(["chosen layer, a seed each, by", *heads], rows)


def _paper(result: Mapping[str, Any], folder: Path, look: str) -> list[str]:
    """The paper's table, and which of its orderings ours agrees with."""
    file = next(f for f in (folder / PUBLISHED, DOCS / PUBLISHED) if f.is_file())  # a quick look's folder has none
    published = yaml.safe_load(file.read_text())[result["paper_table"]]
    columns = published["columns"]
    rows = [[name, *(f"{v:.2f}" for v in values)] for name, values in published["rows"].items()]
    table = markdown_table([f"paper ({published['benchmark']}, 14.6 B parameters)", *columns], rows)
    twins = [arm for arm in result["arms"].values() if arm["paper"] in published["rows"]]
    lines = []
    for one, other in itertools.combinations(twins, 2):
        for column in (c for c in columns if c in METRICS):
            theirs = published["rows"][other["paper"]][columns.index(column)]
            theirs -= published["rows"][one["paper"]][columns.index(column)]
            ours = difference_of(other, one, look, column)
            if ours is None:
                continue
            agrees = "agrees" if ours.mean * theirs > 0 else "opposite"
            verdict = agrees if ours.excludes_zero else "not resolved"
            lines.append([f"{other['label']} - {one['label']}", column, f"{theirs:+.2f}", str(ours), verdict])
    return (
        [table, markdown_table(["difference", "score", "paper", "ours (paired)", "ordering"], lines)]
        if lines
        else [table]
    )


def _cost_tables(cost: Mapping[str, Any]) -> list[str]:
    """What `benchmarks/tokens.py --output` measured: every case over the masked one at the same share."""
    columns = {
        "training step": "step_seconds",
        "its memory, recomputing": "step_memory",
        "keeping": "step_memory_kept",
        "prefill": "prefill_seconds",
        "sampling step": "sample_step_seconds",
        "cache": "cache_bytes",
        "FLOPs of a 7B step": "full_flops",
    }
    rows, baselines = [], {}
    for case in cost["cases"]:
        base = baselines.setdefault(case["blocked_percent"], case)
        if case is not base and "error" not in case and "error" not in base:
            cells = [f"{case[key] / base[key]:.2f}" for key in columns.values()]
            rows.append([f"{case['blocked_percent']} % blocked, {_COST_ROWS[case['row']]}", *cells])
    settings = cost["settings"]
    how = (
        f"Time and memory, over a mask that does all the work (`benchmarks/tokens.py`: {settings['tokens']} tokens, "
        f"width {settings['width']}, {settings['layers']} layers, {settings['threads']} threads, "
        f"{settings['clock']} clock; the last column is counted at full size):"
    )
    return [how, markdown_table(["over the mask", *columns], rows)]


def filled(text: str, result: Mapping[str, Any]) -> str:
    """Placeholders in `text` replaced by mean and interval.

    - `{arm.metric}` or `{arm.evaluation.metric}`
    - `{one-other.evaluation.metric}`, `{arm.one-other.metric}`: a difference of arms or of evaluations, paired by seed
    - `{arm.evaluation.expert.measure.layer}`: of a layer, the mean of the tasks

    Raises:
        UserError: a placeholder names nothing that is there.
    """

    def value(match: re.Match[str]) -> str:
        arm, *middle, last = match[1].split(".")
        try:
            if len(middle) == 3:
                found = [run["evaluations"][middle[0]]["layers"] for run in result["arms"][arm]["runs"]]
                return str(layer_estimates(found, middle[1], middle[2], list(found[0][middle[1]]))[int(last)])
            look = middle[0] if middle else next(iter(result["evaluations"]))
            arms, looks = arm.split("-"), look.split("-")
            if len(arms) == len(looks) == 1:
                return str(estimate_of(result["arms"][arm], look, last))
            one, other = (result["arms"][name] for name in (arms[0], arms[-1]))
            return str(difference_of(one, other, looks[0], last, other_look=looks[-1]))
        except (KeyError, IndexError, TypeError, ValueError):
            raise UserError(f"{result['experiment']}: findings name {match[0]}, which is no arm and metric") from None

    return re.sub(r"\{([\w.-]+)\}", value, text)
