"""`docs/evidence.md`, made of the JSON files under `docs/evidence/`: no number in it is typed."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from scone_pl.analysis.measures import best_layer
from scone_pl.errors import UserError
from scone_pl.files import write_text
from scone_pl.markdown import markdown_table
from scone_pl.study.metrics import (
    METRICS,
    difference_of,
    estimate_of,
    layer_estimates,
    layer_means,
    looks_of,
    rows_of,
)
from scone_pl.study.spec import Experiment
from scone_pl.study.statistics import Estimate

DOCS = Path("docs/evidence")
PUBLISHED = "published.yaml"
"""The paper's tables."""
ORDER = (
    *("rates", "table4", "table5", "rates_long", "table5_long", "parts", "table6", "table6_training"),
    *("figure11", "layers", "robustness", "robustness_trained", "no_experts", "tokens"),
)
SCORES = ("COM", "DIS", "overall")
COMPARED = (*SCORES, "choice")
COMPOSITION = ("PF", "SC", "COM")
"""Where nothing was to be chosen."""
_COST_ROWS = {"mask": "masked", "paper": "left out", "later": "left out in all later layers", "dropped": "dropped"}
_BASES = {"mask": "", "paper": ", over nothing blocked"}
"""What a share's cases are compared with; a share of 0 has no mask."""
_TRAINED = 1.0
"""A run whose training took fewer seconds trained nothing: its weights were there."""
FAILURES = ("exact", "redundancy", "omission", "blending", "wrong_subject", "distorted")

HEAD = """# Evidence: the paper's claims, measured in the mini-world

This page is written by `python -m scone_pl mini page` from the JSON files in `docs/evidence/` (config, seed,
commit, versions and numbers of every run; of costs, settings and numbers); do not edit it. `make evidence` runs what is
missing and writes it again.

**Another scale.** Numbers called ours come from a model of 0.9 million parameters on 16-pixel pictures, judged
exactly by a program; the paper's come from 14.6 billion parameters, judged by GPT-4.1. Only orderings can be compared.

**Reading it.** Each section begins with what was asked and expected, written down before the runs; what was added later
says after seeing what. Unless it says otherwise, all arms start from the same weights, a Stage I of each seed's own,
and take the same number of steps over the same samples, each at the learning rate that was chosen for it by one rule
(`rates`, `rates_long`). Rates, thresholds and temperatures were chosen on validation episodes; the numbers are from
test episodes (those of rates from validation). Which questions were asked next was decided by eye on test results, so
what a later section adds is no independent confirmation of an earlier one.

- **Arms of Stage II**: (a) both experts trained from the start; (b) first the understanding expert, then both; (c) as
  (b) under the paper's hard mask, in its layers; (c hard) the same mask in all later layers; (c') a soft bias there.
- **COM**, **DIS**: SconeEval's formulas, 0 to 10. COM is prompt following and subject consistency of all six tasks, of
  which four are distinction tasks too. DIS asks for the meant subject, well enough painted, and no other: here almost
  all of what is lost is lost by painting badly. A model that draws no candidate at all has DIS 2.5 (3.33 and 3.75 with
  three and four candidates).
- **chosen**: of the references with several candidates, those whose meant one is the nearest to what was drawn, however
  badly; by chance 50 % (33 and 25 with three and four). Choosing apart from painting.
- **kept**: of the subject tokens that the mask keeps, those of the meant ones (precision); of theirs, those that are
  kept (recall); blocked, of all tokens of the references.
- **pictures**: meant only (`as asked` in questions of before) = the meant subjects, wherever, and nothing else;
  redundancy = something more; omission = the place is empty; blending = two candidates mixed; wrong subject = a
  distractor is drawn; distorted = what stands there is no candidate. In this world models paint badly rather than too
  much or nothing.
- `±` is a 95 % interval over seeds (Student's t): a seed decides data order, noise levels and noise; the episodes are
  the same for all, so what another draw of episodes would change is not in it. In bold: differences whose interval
  leaves out 0, with no correction for their number; each section's metric, and the arms that its question compares, are
  the primary ones.
"""


def write_page(folder: Path = DOCS) -> Path:
    """Writes the page beside `folder` from what is in it; its file."""
    names = [name for name in ORDER if (folder / f"{name}.json").is_file()]
    names += sorted(f.stem for f in folder.glob("*.json") if f.stem not in ORDER and not f.stem.endswith("_cost"))
    if not names:
        raise UserError(f"{folder}: holds no result; run `make table5` or another experiment first")
    results = [_with_words(json.loads((folder / f"{name}.json").read_text())) for name in names]
    old = [result["experiment"] for result in results if not _is_whole(result)]
    results = [result for result in results if result["experiment"] not in old]
    sections = [_answers(results), *(section(result, folder) for result in results)]
    if missing := [name for name in Experiment.names() if name not in names]:
        lines = [f"- `make {name}`: {Experiment.read(name).title}" for name in missing]
        sections.append("\n".join(["## Stated, not run yet", "", *lines, ""]))
    if old:  # finished trainings count, so this takes seconds a run
        sections.append(f"Made by an older version, to be evaluated again: `make {' '.join(old)}`.\n")
    page = folder.with_suffix(".md")
    write_text("\n".join([HEAD, *sections]), page)
    return page


def _is_whole(result: Mapping[str, Any]) -> bool:
    """Whether the result has all numbers that this version shows."""
    runs = [run for arm in result["arms"].values() for run in arm["runs"]]
    try:
        for look in looks_of(result, "score"):
            for metric in METRICS.values():
                _ = [metric(run["evaluations"][look]) for run in runs]
    except KeyError:
        return False
    return True


def _with_words(result: dict[str, Any]) -> dict[str, Any]:
    """What people say of the runs comes from the experiment's file, where it can still be mended."""
    if result["experiment"] not in Experiment.names():
        return result
    experiment = Experiment.read(result["experiment"])
    now = {name: getattr(experiment, name) for name in ("findings", "answer", "baseline", "contrasts")}
    return {**result, **now}


def _answers(results: Sequence[Mapping[str, Any]]) -> str:
    """A line for every experiment that has an answer."""
    answered = [r for r in results if r.get("answer") and not r["quick"]]
    lines = [f"- **{r['title']}** {filled(r['answer'].strip(), r)}" for r in answered]
    return "\n".join(["## In short, in this world", "", *lines, ""]) if lines else ""


def section(result: Mapping[str, Any], folder: Path = DOCS) -> str:
    """One experiment as Markdown."""
    name = result["experiment"]
    parts = [f"## {result['title']}", f"**Asked and expected.** {result['question'].strip()}", _conditions(result)]
    scored, layered = looks_of(result, "score"), looks_of(result, "layers")
    if scored:
        parts += [_score_table(result, scored), _failure_table(result, scored)]
    if result["baseline"]:
        parts += _difference_tables(result, scored)
    if result.get("contrasts"):
        parts += _contrast_tables(result)
    parts += [_layer_table(result, look) for look in looks_of(result, "layers", "test")]
    if looks_of(result, "layers", "validation"):
        parts.append(_choice_table(result, layered))
    pictures = [file for file in (folder / f"{name}.png", folder / f"{name}_maps.png") if file.is_file()]
    parts += [f"![{file.stem}]({folder.name}/{file.name})" for file in pictures]
    if result["paper_table"]:
        parts += _paper(result, folder, scored[0])
    if (cost := folder / f"{name}_cost.json").is_file():
        parts += _cost_tables(json.loads(cost.read_text()))
    if result["findings"] and not result["quick"]:  # they were written for the whole runs
        parts.append(f"**What came out.** {filled(result['findings'].strip(), result)}")
    return "\n\n".join(parts) + "\n"


def _conditions(result: Mapping[str, Any]) -> str:
    arms = result["arms"].values()
    seeds = max(len(arm["runs"]) for arm in arms)
    seconds = [run["seconds"]["training"] for arm in arms for run in arm["runs"]]
    seconds = [some for some in seconds if some >= _TRAINED]
    # The median, as an interrupted run counts only what it took since.
    took = f"the median run trained for {statistics.median(seconds):.0f} s" if seconds else "nothing was trained"
    commits = sorted({run["commit"] for arm in arms for run in arm["runs"]})
    first = next(iter(arms))["runs"][0]["versions"]
    made = ", ".join(f"{key} {value}" for key, value in first.items())
    quick = " **A quick look, not a result.**" if result["quick"] else ""
    return f"{seeds} seeds; {took}, one thread on a shared machine; commit {', '.join(commits)}; {made}.{quick}"


def _scores_of(result: Mapping[str, Any], looks: list[str]) -> tuple[str, ...]:
    chosen = any(run["evaluations"][look]["choice"] for _, arm, look in rows_of(result, looks) for run in arm["runs"])
    return SCORES if chosen else COMPOSITION


def _score_table(result: Mapping[str, Any], looks: list[str]) -> str:
    scores = _scores_of(result, looks)
    rows = []
    for label, arm, look in rows_of(result, looks):
        cells = [str(estimate_of(arm, look, metric)) for metric in scores]
        if scores == COMPOSITION:
            rows.append([label, *cells])
            continue
        cells.append(f"{estimate_of(arm, look, 'choice')} %")
        masked = any(run["evaluations"][look]["mask"] for run in arm["runs"])
        kept = [
            f"{estimate_of(arm, look, m).mean:.0f} %" if masked else "-" for m in ("precision", "recall", "blocked")
        ]
        rows.append([label, *cells, *kept])
    heads = () if scores == COMPOSITION else ("chosen", "kept: precision", "recall", "blocked")
    return markdown_table(["ours", *scores, *heads], rows)


def _difference_tables(result: Mapping[str, Any], looks: list[str]) -> list[str]:
    """Every arm minus the baseline, paired by seed; in bold where the interval excludes 0. None with a single seed."""
    base = result["arms"][result["baseline"]]
    rows = [
        (label, [difference_of(arm, base, look, metric) for metric in COMPARED])
        for label, arm, look in rows_of(result, looks)
        if arm is not base
    ]
    return _compared(f"minus {base['label']}", rows)


def _contrast_tables(result: Mapping[str, Any]) -> list[str]:
    """The same for two evaluations of one arm."""
    rows = []
    for arm in result["arms"].values():
        for one, other in result["contrasts"]:
            labels = [result["evaluations"][look]["label"] for look in (one, other)]
            found = [difference_of(arm, arm, one, metric, other_look=other) for metric in COMPARED]
            rows.append((f"{arm['label']} · {' minus '.join(labels)}", found))
    return _compared("within an arm", rows)


def _compared(head: str, rows: Sequence[tuple[str, list[Estimate | None]]]) -> list[str]:
    shown = [
        [label, *(f"**{d}**" if d and d.excludes_zero else str(d) for d in found)]
        for label, found in rows
        if None not in found
    ]
    return [markdown_table([head, *SCORES, "chosen, %"], shown)] if shown else []


def _failure_table(result: Mapping[str, Any], looks: list[str]) -> str:
    rows = [
        [label, *(f"{estimate_of(arm, look, m).mean:.0f} %" for m in FAILURES)]
        for label, arm, look in rows_of(result, looks)
    ]
    return markdown_table(["pictures", "meant only", *(m.replace("_", " ") for m in FAILURES[1:])], rows)


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
                found = [run["evaluations"][look]["layers"] for run in arm["runs"]]
                means = [layer_means(f, "understanding", measure, list(f["understanding"])) for f in found]
                cells.append(" ".join(str(best_layer(values)) for values in means))
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
    """What `benchmarks/tokens.py --output` measured: every case over the masked one at the same share.

    What failed is named: a case has no numbers then, and its share no ratios if it was the base.
    """
    columns = {
        "training step": "step_seconds",
        "its memory, recomputing": "step_memory",
        "keeping": "step_memory_kept",
        "prefill": "prefill_seconds",
        "sampling step": "sample_step_seconds",
        "cache": "cache_bytes",
        "FLOPs of a 7B step": "full_flops",
    }
    cases = {(case["blocked_percent"], case["row"]): case for case in cost["cases"]}
    rows, failed = [], []
    for (share, row), case in cases.items():
        base_row = "mask" if share else "paper"
        base, name = cases[share, base_row], f"{share} % blocked, {_COST_ROWS[row]}"
        if "error" in case:
            failed.append(f"{name} ({case['error']})")
        elif case is not base and "error" not in base:
            rows.append([name + _BASES[base_row], *(f"{case[key] / base[key]:.2f}" for key in columns.values())])
    settings = cost["settings"]
    made = [f"commit {cost['commit']}", *(f"{k} {v}" for k, v in cost["versions"].items())] if "commit" in cost else []
    how = (
        f"Time and memory, over a mask that does all the work (`benchmarks/tokens.py`: {settings['tokens']} tokens, "
        f"width {settings['width']}, {settings['layers']} layers, {settings['threads']} threads, "
        f"{settings['clock']} clock; the last column is counted at full size"
        f"{''.join(f'; {part}' for part in made)}):"
    )
    parts = [how, markdown_table(["over the mask", *columns], rows)]
    return [*parts, f"Failed: {', '.join(failed)}."] if failed else parts


def filled(text: str, result: Mapping[str, Any]) -> str:
    """Placeholders in `text` replaced by mean and interval.

    - `{arm.metric}` or `{arm.evaluation.metric}`
    - `{one-other.evaluation.metric}`, `{arm.one-other.metric}`: a difference of arms or of evaluations, paired by seed;
      `(one seed)` where they share fewer than two
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
            return str(difference_of(one, other, looks[0], last, other_look=looks[-1]) or "(one seed)")
        except (KeyError, IndexError, TypeError, ValueError):
            raise UserError(f"{result['experiment']}: findings name {match[0]}, which is no arm and metric") from None

    return re.sub(r"\{([\w.-]+)\}", value, text)
