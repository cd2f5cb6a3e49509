"""`python -m scone_pl study COMMAND`: run, plan, status, page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scone_pl.cli.command import separated
from scone_pl.errors import UserError
from scone_pl.outputs import check_output_file, check_output_folder
from scone_pl.ranges import check_whole

if TYPE_CHECKING:
    from scone_pl.study.spec import Study

MAX_RUNS = 1000
"""Seeds, and runs side by side."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Run of a study."""

    study: str
    """YAML file of the study, or its name in experiments/studies."""
    scale: str = "mini"
    """mini, or one of the file's `scales`, such as 7b."""
    seeds: int | None = None
    """Runs of each arm; by default as the file says."""
    quick: bool = False
    """Fewer steps and items, to check that everything works."""
    arms: list[str] | None = None
    """Only these, such as a_direct,b_two_step."""
    evaluators: dict[str, Any] | None = None
    """Settings of evaluations, by the name of their evaluator: {sconeeval: {data: ../SconeEval}}."""

    def read(self, fit: list[str] | None) -> tuple[Study, int, list[str]]:
        """The study, its number of seeds and the chosen arms, checked; `fit` are arguments for every fit."""
        study = _read(self.study, self.scale, self.evaluators, fit)
        seeds = study.seeds if self.seeds is None else self.seeds
        check_whole("--seeds", seeds, minimum=1, maximum=MAX_RUNS)
        arms = separated(self.arms) or []
        for name in arms:
            study.arm(name)
        return study, seeds, arms


def run(
    selection: Selection,
    jobs: int | None = None,
    output: Path | None = None,
    fit: list[str] | None = None,
) -> None:
    """Run every arm with every seed, then write the study's JSON, its figure and the page of results.

    What is finished is not run again; an interrupted run resumes. Quick runs write to runs/evidence/quick instead, and
    so do runs of fewer seeds or arms than a kept result has (runs/evidence/partial).

    Args:
        selection: which study, arms and seeds.
        jobs: Runs in parallel; by default as the file says.
        output: Folder of results that are kept; by default docs/evidence, at another scale runs/evidence/SCALE/results.
        fit: arguments for every fit; type them after a lone --.
    """
    from scone_pl.study.kept import check_outputs, keep
    from scone_pl.study.runner import run_study

    study, seeds, arms = selection.read(fit)
    jobs = study.jobs if jobs is None else jobs
    check_whole("--jobs", jobs, minimum=1, maximum=MAX_RUNS)
    check_outputs(study, output, quick=selection.quick)
    finished = run_study(study, seeds, _fit, jobs=jobs, quick=selection.quick, arms=arms)
    for line in keep(study, finished, output, quick=selection.quick):
        print(line)


def plan(selection: Selection, fit: list[str] | None = None) -> None:
    """Print what `study run` would run; nothing is run.

    Args:
        selection: see `study run`.
        fit: see `study run`.
    """
    from scone_pl.study.status import plan_text

    print(plan_text(*selection.read(fit), quick=selection.quick))


def status(selection: Selection, fit: list[str] | None = None) -> None:
    """Print the state of every run.

    Args:
        selection: see `study run`.
        fit: see `study run`.
    """
    from scone_pl.study.status import status_text

    print(status_text(*selection.read(fit), quick=selection.quick))


def page(folder: Path | None = None) -> None:
    """Write the pages of results again from their JSON files.

    Args:
        folder: Folder of the results; by default docs/evidence, whose front page is docs/evidence.md.
    """
    from scone_pl.study.pages import DOCS, write_pages

    check_output_file((folder or DOCS).with_suffix(".md"))
    print(write_pages(folder or DOCS))


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
        study: See `study run`.
        arm: Name of the arm.
        scale: See `study run`.
        seed: Seed of data order, noise levels and noise.
        quick: See `study run`.
        evaluators: See `study run`.
        result: The file to be written, as the caller expects it; if it would be another one, nothing is run.
        runner: Process id of the parent that this run ends with.
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
    from scone_pl.cli.stages import main

    return main(args)


def _read(study: str, scale: str, evaluators: dict[str, Any] | None, fit: list[str] | None) -> Study:
    from scone_pl.study.evaluators import evaluator_class
    from scone_pl.study.spec import Overrides, Study

    for name, settings in (evaluators or {}).items():
        evaluator_class(name)
        if not isinstance(settings, dict):
            raise UserError(f"--evaluators: {name} is {settings!r}; it must be a mapping of settings")
    return Study.read(study, scale, Overrides(evaluators=evaluators or {}, fit=tuple(fit or ())))
