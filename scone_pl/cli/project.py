"""`python -m scone_pl init` and `demo`: recipes and base weights of the mini-world outside a checkout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scone_pl.errors import UserError
from scone_pl.files import appearing
from scone_pl.outputs import check_output_folder, unwritable

_PACKAGE = Path(__file__).parents[1]
_STARTER = Path(__file__).parent / "starter"
_LEFT_OUT = ("photos", "bridge_weights", "README.md", "__pycache__")
"""Of the recipes: what needs data sets that are only in the repository, and its own README."""
_SMALL_SETS = (
    "--base_single=200",
    "--refined_single=100",
    "--multi_candidate=200",
    "--questions=200",
    "--validation=20",
)
_TWO_STEPS = ("--trainer.max_steps=2", "--data.packing.token_budget=800", "--data.num_workers=0")


def recipes_folder() -> Path:
    """`experiments`: part of an installed package, beside it in a checkout.

    Raises:
        UserError: it is in neither.
    """
    for folder in (_PACKAGE / "experiments", _PACKAGE.parent / "experiments"):
        if (folder / "mini/stage1.yaml").is_file():
            return folder
    raise UserError(f"{_PACKAGE / 'experiments'}: the recipes are missing from this installation; install it again")


def init(folder: str) -> int:
    """Start a project: recipes for a laptop and for 7B, base weights of the mini-world, a Makefile and a README.

    Args:
        folder: Where to write; nothing that is there is replaced.
    """
    target = Path(folder)
    names = ("experiments", "Makefile", "README.md", ".gitignore")
    check_output_folder(target, files=names[1:], folders=names[:1])
    if present := [name for name in names if (target / name).exists()]:
        raise UserError(f"{target / present[0]}: is there already and is not replaced; choose another folder")
    _write_recipes(target)
    for name in names[1:]:
        shutil.copyfile(_STARTER / name.removeprefix("."), target / name)
    print(target)
    print(f"next: cd {target} && make demo")
    return 0


def demo(output: str = "scone_demo", quick: bool = False) -> int:
    """Train both stages in the mini-world and score them, in minutes on two cores; run it again to resume.

    Args:
        output: Folder for recipes, data, runs and images.
        quick: Two steps and few samples, only to see that everything works.
    """
    target = Path(output)
    check_output_folder(target, folders=("experiments", "data_shards", "runs"))
    if not (target / "experiments/mini/stage1.yaml").is_file():
        _write_recipes(target)
    from scone_pl.training.chain import run_in_own_process

    with _working_in(target):
        for command in demo_commands(quick=quick):
            print(f"python -m scone_pl {' '.join(command)}", flush=True)
            if status := run_in_own_process(command):
                return status
    after = target / "runs/mini/after/images.png"
    print(f"\nimages:      {after} (before: {target / 'runs/mini/before/images.png'})")
    print(f"TensorBoard: tensorboard --logdir {target / 'runs'}")
    return 0


def demo_commands(*, quick: bool = False) -> list[list[str]]:
    """The commands of the demo, in their order."""
    small, steps, tests = (_SMALL_SETS, _TWO_STEPS, ("--per_task=1",)) if quick else ((), (), ())
    scores = [f"runs/mini/{when}/scores.json" for when in ("before", "after")]

    def score(weights: str, when: str) -> list[str]:
        return ["mini", "evaluate", "--checkpoint", weights, "--output", f"runs/mini/{when}", *tests]

    return [
        ["mini", "shards", "--output", "data_shards/mini", "--plain", "0", "--question_pairs", "0", *small],
        ["fit", "--config", "experiments/mini/stage1.yaml", *steps],
        score("runs/mini/stage1/refined/weights", "before"),
        ["fit", "--config", "experiments/mini/stage2.yaml", *steps],
        score("runs/mini/stage2/guidance/weights", "after"),
        ["mini", "report", "--scores", *scores, "--names", "before Stage II", "after Stage II"],
    ]


def _write_recipes(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    recipes = target / "experiments"

    def copy(source: str, destination: str) -> None:
        try:
            shutil.copy2(source, destination)
        except OSError as error:  # `copytree` would go on, and raise a list of all files
            raise unwritable(recipes, error) from error

    with appearing(recipes) as whole:
        ignored = shutil.ignore_patterns(*_LEFT_OUT)
        shutil.copytree(recipes_folder(), whole, dirs_exist_ok=True, ignore=ignored, copy_function=copy)


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
