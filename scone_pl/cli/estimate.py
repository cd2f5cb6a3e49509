"""`python -m scone_pl estimate`: what a recipe needs, before anything is bought, loaded or started."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from scone_pl.cli.stages import stages
from scone_pl.errors import UserError
from scone_pl.estimate.estimate import estimate as estimate_recipe
from scone_pl.estimate.judges import JudgeEstimate, OpenJudge, estimate_judge, judge_of
from scone_pl.estimate.report import as_json, tables
from scone_pl.estimate.settings import recipe_of
from scone_pl.gpus import choose_gpus, read_gpus
from scone_pl.markdown import markdown_table
from scone_pl.ranges import check_number, check_whole

_MAX_DEVICES = 1_000_000
_MAX_QUESTIONS = 1_000_000_000
WIDTH = 120
"""Columns of the tables in a file or pipe, at least."""


def estimate(
    recipe: list[str],
    devices: str | None = None,
    gpu: list[str] | None = None,
    gpu_file: str | None = None,
    mfu: float = 0.4,
    references: int = 2,
    labels: int = 0,
    preset: str | None = None,
    json: bool = False,
    judge: str | None = None,
    questions: int = 1000,
    images: int = 3,
    concurrency: int = 16,
) -> None:
    """Print parameters, memory, FLOPs, time and cost of a recipe, or of an open judge.

    All other options are those of `fit`: --config FILE, and any override.

    Args:
        recipe: Options of `fit`.
        devices: Numbers of GPUs, such as 1,2,4,8,32; by default the recipe's.
        gpu: GPUs by name (h100, h200, a100-80, a100-40, ...) or as in --gpu_file; by default h100 a100-80.
        gpu_file: YAML table of GPUs that is laid over the built-in one: {h100: {price: 2.5}}.
        mfu: Fraction of the peak FLOPs that is reached, see speed/mfu in TensorBoard.
        references: Reference images per sample.
        labels: Tokens per pack with a text loss.
        preset: Sizes of the model, where the recipe's weights are not there.
        json: Print everything as one JSON object.
        judge: Instead of a recipe, an open judge, such as qwen3-vl-32b or its hub id.
        questions: With --judge, number of questions; judge --dry_run counts them.
        images: With --judge, images in a question, the generated one included.
        concurrency: With --judge, questions at once.
    """
    check_number("--mfu", mfu, above=0, maximum=1)
    check_whole("--references", references, minimum=1, maximum=1000)
    check_whole("--labels", labels)
    gpus = choose_gpus(gpu or ["h100", "a100-80"], read_gpus(gpu_file))
    if judge is not None:
        other = [name for name, value in (("--devices", devices), ("--preset", preset)) if value is not None]
        if unused := [*recipe[:1], *other]:
            raise UserError(f"{unused[0]}: has no effect with --judge; leave it out")
        for name, number in (("questions", questions), ("images", images), ("concurrency", concurrency)):
            check_whole(f"--{name}", number, minimum=1, maximum=_MAX_QUESTIONS)
        rows = estimate_judge(judge_of(judge), list(gpus.values()), questions, images, concurrency, mfu)
        _print_judge(judge_of(judge), rows, json)
        return
    changed = {"--questions": questions != 1000, "--images": images != 3, "--concurrency": concurrency != 16}
    if unused := [name for name, is_changed in changed.items() if is_changed]:
        raise UserError(f"{unused[0]}: has no effect without --judge")
    ranks = _numbers(devices) if devices else None
    read = recipe_of(stages(["fit", *recipe]), preset)
    result = estimate_recipe(read, ranks or [read.stages[0].plan.ranks], gpus, mfu, references, labels)
    if json:
        print(jsonlib.dumps(as_json(result)))
        return
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    for item in tables(result):
        console.print(item)


def _print_judge(judge: OpenJudge, rows: Sequence[JudgeEstimate], json: bool) -> None:
    if json:
        print(jsonlib.dumps({"judge": asdict(judge), "gpus": [asdict(row) for row in rows]}))
        return
    heads = ["GPU", "number", "weights GiB", "cache GiB", "hours", "USD"]
    cells = [
        [
            row.gpu.name,
            "more than 8" if row.gpus is None else str(row.gpus),
            f"{row.weights_gib:.1f}",
            f"{row.cache_gib:.1f}",
            "-" if row.hours is None else f"{row.hours:.2f}",
            "-" if row.dollars is None else f"{row.dollars:.2f}",
        ]
        for row in rows
    ]
    print(f"{judge.model} in bf16, counted, not measured\n")
    print(markdown_table(heads, cells))


def _numbers(text: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1 or numbers[-1] > _MAX_DEVICES:
        raise UserError(f"--devices {text}: give numbers of GPUs, such as 1,2,4,8")
    return numbers
