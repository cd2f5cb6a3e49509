"""`python -m scone_pl estimate`: what a recipe needs, before anything is bought, loaded or started."""

from __future__ import annotations

import json as jsonlib

from rich.console import Console

from scone_pl.cli.lightning import stages
from scone_pl.errors import UserError
from scone_pl.estimate.estimate import estimate as estimate_recipe
from scone_pl.estimate.report import as_json, tables
from scone_pl.estimate.settings import recipe_of
from scone_pl.gpus import choose_gpus, read_gpus
from scone_pl.ranges import check_number, check_whole

_MAX_DEVICES = 1_000_000
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
) -> None:
    """Print parameters, memory, FLOPs, time and cost of a recipe.

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
    """
    check_number("--mfu", mfu, above=0, maximum=1)
    check_whole("--references", references, minimum=1, maximum=1000)
    check_whole("--labels", labels)
    gpus = choose_gpus(gpu or ["h100", "a100-80"], read_gpus(gpu_file))
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


def _numbers(text: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1 or numbers[-1] > _MAX_DEVICES:
        raise UserError(f"--devices {text}: give numbers of GPUs, such as 1,2,4,8")
    return numbers
