"""The steps of an evaluation after generation: judging and tables. They need neither weights nor a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.bootstrap import compare as compare_records
from scone_pl.evaluation.calls import Judgement, Planner, all_questions
from scone_pl.evaluation.folder import EvaluationFolder
from scone_pl.evaluation.groups import Records
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.judge import Judge, missing_calls
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.records import Record, record_of, write_records
from scone_pl.evaluation.summary import Summary
from scone_pl.evaluation.tables import (
    comparison_markdown,
    detail_markdown,
    extra_markdown,
    latex,
    main_markdown,
)
from scone_pl.evaluation.templates import Templates
from scone_pl.files import write_json, write_text
from scone_pl.vlm.costs import Usage, price_of
from scone_pl.vlm.store import AnswerStore


def check_judge(config: JudgeConfig, benchmark: Benchmark, items: Sequence[Item]) -> None:
    """Checks that prices and all prompts for these items can be read.

    Raises:
        UserError: one of them cannot be read, or a setting has no effect on this benchmark.
    """
    benchmark.check_judge(config)
    price_of(config.model, config.prices)
    templates = Templates.of(benchmark, config)
    for item in items:
        for question in all_questions(benchmark, item, config):
            templates.of_question(question)


def plan_judgements(
    folder: EvaluationFolder,
    benchmark: Benchmark,
    items: Sequence[Item],
    config: JudgeConfig,
    rounds: int,
    scorings: int,
) -> list[Judgement]:
    """All questions, answered or not, per sampling, scoring and item."""
    planner = Planner(benchmark, config, Templates.of(benchmark, config))
    return [
        planner.judgement(item, folder.image(item, sampling), sampling, scoring)
        for scoring in range(1, scorings + 1)
        for sampling in folder.samplings(rounds)
        for item in items
    ]


def judge(
    folder: EvaluationFolder,
    benchmark: Benchmark,
    judgements: Sequence[Judgement],
    config: JudgeConfig,
    *,
    progress: bool = True,
) -> list[Record]:
    """Asks all open questions, then writes `scores.jsonl`, also if judging was interrupted.

    Raises:
        UserError: see `Judge.run`; or another process is judging in the same folder.
    """
    store = AnswerStore(folder.answers)
    with store:
        judge_run = Judge(config, store, progress=progress)
        try:
            judge_run.run(judgements)
        finally:
            generation = {sampling: folder.generation(sampling) for sampling in {j.sampling for j in judgements}}
            ordered = sorted(judgements, key=lambda j: (j.sampling, j.scoring))  # stable: items as in the data
            records = [record_of(benchmark, judgement, store, generation[judgement.sampling]) for judgement in ordered]
            write_records(records, folder.scores)
    complete = sum(benchmark.is_complete(record) for record in records)
    usage = usage_of(judgements, store, config)
    print_line(
        f"judged: {complete} of {len(records)} records complete; this run: {judge_run.usage.answers} answers, "
        f"{judge_run.usage}"
    )
    print_line(f"in total {usage.answers} answers, {usage}")
    for reason, count in judge_run.failures.most_common(3):
        print_line(f"{count} questions failed: {reason}")
    if complete < len(records):
        print_line(
            "incomplete records count in no average (reasons: tables and report); run the same command to ask again"
        )
    print_line(f"scores: {folder.scores}")
    return records


def describe_plan(folder: EvaluationFolder, judgements: Sequence[Judgement], config: JudgeConfig) -> str:
    """What `judge` would do: number of questions, open questions, and the cost of the answers so far."""
    store = AnswerStore(folder.answers)
    calls = {call.ask for judgement in judgements for call in judgement.calls}
    missing = [call for call, _ in missing_calls(judgements, store, retry_failed=config.retry_failed)]
    usage = usage_of(judgements, store, config)
    unasked = sum(judgement.failure is not None for judgement in judgements)
    known = dict.fromkeys(call.question.kind for judgement in judgements for call in judgement.calls)
    kinds = ", ".join(f"{sum(c.question.kind == kind for c in missing)} {kind}" for kind in known)
    estimate = (
        f"; at their average, {usage.dollars / usage.answers * len(missing):.2f} dollars more" if usage.dollars else ""
    )
    return (
        f"{len(judgements)} judgements, {unasked} without an image\n"
        f"{len(calls)} questions, {len(missing)} to ask ({kinds})\n"
        f"answered so far: {usage.answers} answers, {usage}{estimate}"
    )


def usage_of(judgements: Sequence[Judgement], store: AnswerStore, config: JudgeConfig) -> Usage:
    """Usage of all stored answers to these questions."""
    usage = Usage(price_of(config.model, config.prices))
    for ask in {call.ask for judgement in judgements for call in judgement.calls}:
        for answer in store.of(ask):
            if answer.text is not None:
                usage.add(answer.usage)
    return usage


def compare_all(
    records: Records, others: Sequence[tuple[str, Records]], benchmark: Benchmark, seed: int
) -> list[dict[str, Any]]:
    """Paired comparisons of a model with others."""
    return [{"with": name, **compare_records(records, other, benchmark, seed=seed)} for name, other in others]


def tables_markdown(summaries: Sequence[Summary], comparisons: Sequence[dict[str, Any]]) -> str:
    """The main table, and the details of the first model."""
    first = summaries[0]
    parts = [f"## {first.benchmark.title}\n\n{main_markdown(summaries)}", *filter(None, [first.benchmark.note])]
    parts.append(f"### {first.name}\n\n{detail_markdown(first)}")
    parts += [
        f"### {first.name} against {other['with']}\n\n{comparison_markdown(other, first.name, other['with'])}"
        for other in comparisons
    ]
    return "\n\n".join([*parts, *filter(None, [extra_markdown(first)])]) + "\n"


def as_json(summaries: Sequence[Summary], comparisons: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All results; `groups` and `combined` are the first model's."""
    content = summaries[0].as_dict()
    if comparisons:
        content["comparisons"] = list(comparisons)
    return content


def write_tables(
    folder: Path, summaries: Sequence[Summary], comparisons: Sequence[dict[str, Any]], *, plots: bool = True
) -> list[Path]:
    """Writes table.md, table.tex, table.json and the plots; returns the plots' PNG files."""
    write_text(tables_markdown(summaries, comparisons), folder / "table.md")
    write_text(latex(summaries), folder / "table.tex")
    write_json(as_json(summaries, comparisons), folder / "table.json")
    if not plots:
        return []
    from scone_pl.evaluation.plots import write_plots

    return write_plots(summaries, folder)


def print_line(text: str) -> None:
    """Prints a line to standard output at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_json(content: dict[str, Any]) -> None:
    """Prints JSON to standard output."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
