"""`python -m scone_pl construct plan|run|status|sheet|merge|demo`: training data from pools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scone_pl.construct.settings import MAX_WORKERS, Construction
from scone_pl.errors import UserError
from scone_pl.outputs import check_output_folder
from scone_pl.ranges import check_number, check_whole

if TYPE_CHECKING:
    from scone_pl.construct.pipeline import Pipeline

MAX_TASKS = 100_000
MAX_SHEET = 1000


def plan(settings: Construction) -> None:
    """Print what every step would ask, and its tokens, cost and time; nothing is asked or written.

    Args:
        settings: the pipeline.
    """
    from scone_pl.construct.plan import plan_text

    settings.check(keys=False)
    print(plan_text(_pipeline(settings)))


def run(
    settings: Construction,
    tasks: int | None = None,
    task: int | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
) -> None:
    """Run every step and write the shards; run the same command again to resume.

    Args:
        settings: the pipeline.
        tasks: Number of parts, such as the size of a Slurm array; each computes its part, and `merge` continues.
        task: Which part this is, from 0.
        engine: ray = run the steps on a Ray cluster; pip install 'scone_pl[ray]'.
        address: HOST:PORT of a running Ray cluster, or auto; by default one is started on this machine.
    """
    if (tasks is None) != (task is None):
        raise UserError("give both --tasks (how many) and --task (which, from 0), or neither")
    if tasks is not None and task is not None:
        check_whole("--tasks", tasks, minimum=1, maximum=MAX_TASKS)
        check_whole("--task", task, maximum=tasks - 1)
    if engine == "ray":
        from scone_pl.construct.ray_engine import check_ray

        if tasks is not None:
            raise UserError("give --engine ray or --tasks, not both: Ray divides the work itself")
        check_ray(address)
    elif address is not None:
        raise UserError("--address is that of a Ray cluster: give --engine ray, too")
    settings.folder  # noqa: B018 (checks it)
    settings.check(keys=True)
    if tasks is not None and task is not None:
        from scone_pl.construct.tasks import run_task

        print(run_task(_pipeline(settings), tasks, task))
        return
    from scone_pl.construct.status import status_text

    pipeline = _pipeline(settings)
    pipeline.run(on=pipeline.on_ray(address) if engine == "ray" else None)
    print(status_text(pipeline))


def merge(settings: Construction) -> None:
    """Take what the tasks have found out into the store, and run as many steps as need no more tasks.

    Args:
        settings: the pipeline.
    """
    settings.folder  # noqa: B018 (checks it)
    settings.check(keys=False)
    from scone_pl.construct.tasks import merge_tasks

    print(merge_tasks(_pipeline(settings)))


def status(settings: Construction) -> None:
    """Print what passed each step, and why others did not.

    Args:
        settings: the pipeline.
    """
    from scone_pl.construct.status import status_text

    settings.check(keys=False)
    print(status_text(_pipeline(settings)))


def sheet(settings: Construction, show: int = 24) -> None:
    """Write a page of kept and rejected samples with scores and reasons, and a contact sheet for each step.

    Args:
        settings: the pipeline.
        show: Samples of each step, and for each reason of rejection.
    """
    check_whole("--show", show, minimum=1, maximum=MAX_SHEET)
    settings.folder  # noqa: B018 (checks it)
    settings.check(keys=False)
    from scone_pl.construct.sheet import write_sheet

    for file in write_sheet(_pipeline(settings), show):
        print(file)


def demo(
    output: Path = Path("runs/construct-demo"),
    pairs: int = 60,
    sets: int = 40,
    errors: list[float] | None = None,
    workers: int | None = None,
) -> None:
    """Construct data of icons with planted faults, with a fake model server, and compare with the truth.

    Args:
        output: Folder for pools, shards, pages and report.
        pairs: Pairs with one reference.
        sets: Samples with several references.
        errors: Fractions of the fake models' answers that are wrong; by default 0, 0.05 and 0.2.
        workers: processes; by default one per core.
    """
    rates = [0.0, 0.05, 0.2] if errors is None else errors
    for rate in rates:
        check_number("--errors", rate, minimum=0, maximum=1)
    check_whole("--pairs", pairs, minimum=1, maximum=100_000)
    check_whole("--sets", sets, minimum=1, maximum=100_000)
    if workers is not None:
        check_whole("--workers", workers, minimum=1, maximum=MAX_WORKERS)
    check_output_folder(output, files=("report.md", "report.json"), folders=("pools",))
    from scone_pl.worlds.planted.demo import run_demo

    run_demo(output, pairs, sets, rates, workers)


def _pipeline(settings: Construction) -> Pipeline:
    from scone_pl.construct.pipeline import Pipeline

    return Pipeline(settings)
