"""`python -m scone_pl study COMMAND`: run, plan, status, page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scone_pl.cli.command import separated
from scone_pl.errors import UserError
from scone_pl.outputs import check_output_file, check_output_folder
from scone_pl.ranges import check_whole

if TYPE_CHECKING:
    from scone_pl.study.spec import Study


def run(
    study: str,
    scale: str = "mini",
    seeds: int | None = None,
    jobs: int | None = None,
    quick: bool = False,
    arms: list[str] | None = None,
    evaluators: dict[str, Any] | None = None,
    output: Path | None = None,
    fit: list[str] | None = None,
) -> None:
    """Runs every arm with every seed, then writes the study's JSON, its figure and the page of results.

    What is finished is not run again; an interrupted run resumes. Quick runs write to runs/evidence/quick instead, and
    so do runs of fewer seeds or arms than a kept result has (runs/evidence/partial).

    Args:
        study: YAML file of the study, or its name in experiments/studies.
        scale: mini, or one of the file's `scales`, such as 7b.
        seeds: runs of each arm; by default as the file says.
        jobs: runs side by side; by default as the file says.
        quick: fewer steps and items, to see whether all works.
        arms: only these, such as a_direct,b_two_step.
        evaluators: settings of evaluations, by the name of their evaluator: {sconeeval: {data: ../SconeEval}}.
        output: folder of results that are kept; by default docs/evidence, at another scale runs/evidence/SCALE/results.
        fit: arguments for every fit; type them behind a lone --.
    """
    from scone_pl.study.kept import check_outputs, keep
    from scone_pl.study.runner import run_study

    read, arms = _read(study, scale, evaluators, fit), separated(arms)
    chosen = _checked(read, seeds, jobs, arms)
    check_outputs(read, output, quick=quick)
    finished = run_study(read, chosen["seeds"], _fit, jobs=chosen["jobs"], quick=quick, arms=arms or ())
    for line in keep(read, finished, output, quick=quick):
        print(line)


def plan(
    study: str,
    scale: str = "mini",
    seeds: int | None = None,
    quick: bool = False,
    arms: list[str] | None = None,
    evaluators: dict[str, Any] | None = None,
    fit: list[str] | None = None,
) -> None:
    """Prints what `study run` would run, and runs nothing.

    Args:
        study: see `study run`.
        scale: see `study run`.
        seeds: see `study run`.
        quick: see `study run`.
        arms: see `study run`.
        evaluators: see `study run`.
        fit: see `study run`.
    """
    from scone_pl.study.status import plan_text

    read, arms = _read(study, scale, evaluators, fit), separated(arms)
    print(plan_text(read, _checked(read, seeds, None, arms)["seeds"], arms or (), quick=quick))


def status(
    study: str,
    scale: str = "mini",
    seeds: int | None = None,
    quick: bool = False,
    arms: list[str] | None = None,
    evaluators: dict[str, Any] | None = None,
    fit: list[str] | None = None,
) -> None:
    """Prints the state of every run.

    Args:
        study: see `study run`.
        scale: see `study run`.
        seeds: see `study run`.
        quick: see `study run`.
        arms: see `study run`.
        evaluators: see `study run`.
        fit: see `study run`.
    """
    from scone_pl.study.status import status_text

    read, arms = _read(study, scale, evaluators, fit), separated(arms)
    print(status_text(read, _checked(read, seeds, None, arms)["seeds"], arms or (), quick=quick))


def page(folder: Path | None = None) -> None:
    """Writes the page of results again from their JSON files.

    Args:
        folder: of the results; by default docs/evidence, whose page is docs/evidence.md.
    """
    from scone_pl.study.page import DOCS, write_page

    check_output_file((folder or DOCS).with_suffix(".md"))
    print(write_page(folder or DOCS))


def arm(
    study: str,
    arm: str,
    scale: str = "mini",
    seed: int = 0,
    quick: bool = False,
    evaluators: dict[str, Any] | None = None,
    result: Path | None = None,
    runner: int | None = None,
    fit: list[str] | None = None,
) -> None:
    """One run of one arm, as `study run` starts it: trains, evaluates, writes result-....json.

    Args:
        study: see `study run`.
        arm: name of the arm.
        scale: see `study run`.
        seed: decides data order, noise levels and noise.
        quick: see `study run`.
        evaluators: see `study run`.
        result: the file to be written, as the caller expects it; if it would be another one, nothing is run.
        runner: process id of the parent that this run ends with.
        fit: see `study run`.
    """
    from scone_pl.study.run import ROOT
    from scone_pl.study.run import run as run_arm
    from scone_pl.study.runner import end_with

    check_whole("--seed", seed)
    if runner is not None:
        end_with(runner)
    read = _read(study, scale, evaluators, fit)
    read.arm(arm)
    check_output_folder(ROOT)
    print(run_arm(read, arm, seed, fit=_fit, quick=quick, expected=result))


def _fit(args: list[str]) -> int:
    from scone_pl.cli.lightning import main

    return main(args)


def _read(study: str, scale: str, evaluators: dict[str, Any] | None, fit: list[str] | None) -> Study:
    from scone_pl.study.evaluators import evaluator_class
    from scone_pl.study.spec import Overrides, Study

    for name, settings in (evaluators or {}).items():
        evaluator_class(name)
        if not isinstance(settings, dict):
            raise UserError(f"--evaluators: {name} is {settings!r}; it must be a mapping of settings")
    return Study.read(study, scale, Overrides(evaluators=evaluators or {}, fit=tuple(fit or ())))


def _checked(study: Study, seeds: int | None, jobs: int | None, arms: list[str] | None) -> dict[str, int]:
    numbers = {
        "seeds": study.seeds if seeds is None else seeds,
        "jobs": study.jobs if jobs is None else jobs,
    }
    for name, number in numbers.items():
        check_whole(f"--{name}", number, minimum=1, maximum=1000)
    for name in arms or ():
        study.arm(name)
    return numbers
