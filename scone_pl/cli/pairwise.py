"""`python -m scone_pl judge --pairwise`: images of several models, compared pair by pair."""

from __future__ import annotations

from collections.abc import Sequence

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.folder import EvaluationFolder
from scone_pl.evaluation.items import Item
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.steps import describe_plan, print_line

PAIRWISE = ("pairwise.md", "pairwise.json")


def compare_pairs(
    folder: EvaluationFolder,
    benchmark: Benchmark,
    items: Sequence[Item],
    texts: Sequence[str],
    config: JudgeConfig,
    scorings: int,
    *,
    dry_run: bool,
) -> int:
    """Asks about all pairs of images in both orders and writes the ratings; returns the exit status.

    Raises:
        UserError: fewer than two folders, or no item with images of two models.
    """
    from scone_pl.evaluation.judge import Judge
    from scone_pl.evaluation.pairwise import judgements_of, markdown, outcomes, plan_pairs, ratings, systems_of
    from scone_pl.files import write_json, write_text
    from scone_pl.vlm.store import AnswerStore

    systems = systems_of(texts)
    pairs, missing = plan_pairs(benchmark, items, systems, config, scorings)
    if not pairs:
        raise UserError(f"--pairwise {texts[0]}: no item has an image of two models; they must be TASK/KEY.png")
    judgements = judgements_of(pairs)
    if dry_run:
        print_line(describe_plan(folder, judgements, config))
        return 0
    folder.begin(benchmark)
    with AnswerStore(folder.answers) as store:
        Judge(config, store).run(judgements)
        results = outcomes(pairs, store)
    if not results:
        print_line("no pair has both answers; run the same command to ask again")
        return 1
    found = ratings(results, [system.name for system in systems])
    unanswered = len(pairs) - len(results)
    write_json({**found, "missing": missing, "unanswered": unanswered, "results": results}, folder.path / PAIRWISE[1])
    text = markdown(found, missing)
    write_text(text, folder.path / PAIRWISE[0])
    print_line(text)
    if unanswered:
        print_line(f"{unanswered} pairs lack an answer and do not count; run the same command to ask again")
    return 0
