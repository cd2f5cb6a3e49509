"""`python -m scone_pl estimate`: what a recipe needs, before anything is bought, loaded or started."""

from __future__ import annotations

import argparse
import json
from typing import NoReturn

from rich.console import Console

from scone_pl.errors import UserError
from scone_pl.estimate.estimate import estimate
from scone_pl.estimate.report import as_json, tables
from scone_pl.estimate.settings import read_recipe
from scone_pl.gpus import GPUS, Gpu, read_gpus
from scone_pl.model.config import PRESETS
from scone_pl.ranges import check_number, check_whole

_MAX_DEVICES = 1_000_000
WIDTH = 120
"""Columns of the tables in a file or pipe, at least."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of a page."""
        raise UserError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m scone_pl estimate",
        description="Parameters, memory, FLOPs, time and cost of a recipe. Everything else that is typed is taken as "
        "`fit` takes it: --config FILE, and any override.",
        allow_abbrev=False,
    )
    parser.add_argument("--devices", help="numbers of GPUs, such as 1,2,4,8,32 (default: the recipe's)")
    parser.add_argument(
        "--gpu",
        nargs="+",
        default=["h100", "a100-80"],
        help=f"of {', '.join(GPUS)} or --gpu_file's (default: %(default)s)",
    )
    parser.add_argument("--gpu_file", help="YAML table of GPUs, laid over the built-in one: {h100: {price: 2.5}}")
    parser.add_argument(
        "--mfu", type=float, default=0.4, help="share of the peak reached, see speed/mfu in TensorBoard (%(default)s)"
    )
    parser.add_argument("--references", type=int, default=2, help="reference images of a sample (%(default)s)")
    parser.add_argument("--labels", type=int, default=0, help="tokens of a pack with a text loss (%(default)s)")
    parser.add_argument("--preset", choices=list(PRESETS), help="sizes, where the recipe's weights are not there")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    return parser


def main(args: list[str]) -> int:
    """Prints an estimate."""
    options, rest = _parser().parse_known_args(args)
    check_number("--mfu", options.mfu, above=0, maximum=1)
    check_whole("--references", options.references, minimum=1, maximum=1000)
    check_whole("--labels", options.labels)
    gpus = _chosen(options.gpu, read_gpus(options.gpu_file))
    recipe = read_recipe(rest, options.preset)
    ranks = _numbers(options.devices) if options.devices else [recipe.stages[0].plan.ranks]
    found = estimate(recipe, ranks, gpus, options.mfu, options.references, options.labels)
    if options.json:
        print(json.dumps(as_json(found)))
        return 0
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    for item in tables(found):
        console.print(item)
    return 0


def _chosen(names: list[str], table: dict[str, Gpu]) -> dict[str, Gpu]:
    for name in names:
        if name not in table:
            raise UserError(f"--gpu {name}: one of {', '.join(table)}, or describe it in a --gpu_file")
    return {name: table[name] for name in names}


def _numbers(text: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1 or numbers[-1] > _MAX_DEVICES:
        raise UserError(f"--devices {text}: give numbers of GPUs, such as 1,2,4,8")
    return numbers
