"""Parts of a run for a job array: each finds out facts about its part, written aside; a merge takes them over."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from scone_pl.construct.engine import chunks
from scone_pl.construct.items import Item
from scone_pl.construct.phases import State, Writer, pool_ranges, read_items, read_pools, run_step
from scone_pl.construct.pipeline import POOLS, Pipeline
from scone_pl.construct.shards import write_outputs
from scone_pl.construct.status import status_text
from scone_pl.construct.steps.base import SelectStep, Step
from scone_pl.construct.store import Store
from scone_pl.errors import UserError
from scone_pl.progress import Progress

TASKS = "tasks"


def part(total: int, tasks: int, task: int) -> range:
    """The range of a task."""
    return range(total * task // tasks, total * (task + 1) // tasks)


def run_task(pipeline: Pipeline, tasks: int, task: int) -> str:
    """Finds out the facts of one part of all samples, as far as no step compares them with others.

    Raises:
        UserError: see `Pipeline.run`.
    """
    name = f"{task:05d}-of-{tasks:05d}"
    folder = pipeline.folder / TASKS / name
    others = [pipeline.store_file] if pipeline.store_file.is_file() else []
    lines = []
    with Store(folder.with_name(f"{name}.sqlite"), others) as store:
        engine = pipeline.local(store)
        if not pipeline.is_finished(POOLS):
            ranges = list(pool_ranges(pipeline.pools, pipeline.numbers))
            mine = [ranges[i] for i in part(len(ranges), tasks, task)]
            total = sum(stop - start for _, start, stop in mine)
            with Progress(POOLS, total, unit="entries") as bar:
                for _ in read_pools(pipeline.pools, mine, total, engine, bar):
                    pass
            return f"{name}: {bar.completed} entries read; next: construct merge"
        made = set[str]()
        for step in pipeline.steps:
            if pipeline.is_finished(step.name):
                continue
            names = pipeline.input_names(step)
            if not all(one in made or pipeline.is_finished(one) for one in names):
                continue
            if all(pipeline.is_finished(one) for one in names):
                chosen = part(pipeline.total(step), tasks, task)
                total, source = len(chosen), partial(_range, pipeline, step, chosen)
            else:
                folders = [folder / f"{one}.items" for one in names]
                total = sum(state.kept for one in folders if (state := State.of(one)))
                source = partial(read_items, [one / "items.jsonl" for one in folders])
            state = State(step.name, "")
            with Writer(folder / f"{step.name}.items", state) as writer:
                run_step(
                    step,
                    source,
                    total,
                    writer,
                    facts_id=step.facts_id(pipeline.model_identities),
                    engine=engine,
                    progress=True,
                    facts_only=True,
                )
            lines.append(f"{name}: {step.name}: {state.read} samples")
            if not isinstance(step, SelectStep):
                made.add(step.name)
    return "\n".join([*lines, "next: construct merge"]) if lines else f"{name}: there is nothing to do"


def _range(pipeline: Pipeline, step: Step, chosen: range) -> Iterator[Item]:
    return islice(pipeline.source(step), chosen.start, chosen.stop)


def merge_tasks(pipeline: Pipeline) -> str:
    """Takes over what tasks have written aside, and runs the steps of which all facts are known.

    Raises:
        UserError: a task is still running; or see `write_outputs`.
    """
    files = sorted((pipeline.folder / TASKS).glob("*.sqlite"))
    lines = []
    with Store(pipeline.store_file) as store:
        for file in files:
            with _unlocked(file):
                facts, answers = store.absorb(file)
            lines.append(f"{file.stem}: {facts} facts and {answers} answers were new")
        if not pipeline.is_finished(POOLS):
            ranges = list(pool_ranges(pipeline.pools, pipeline.numbers))
            if missing := pipeline.unknown_ranges(store, ranges):
                lines.append(f"{POOLS}: {missing} of {len(ranges)} ranges are not read yet; run the tasks again")
                return "\n".join(lines)
        for name in (POOLS, *(step.name for step in pipeline.steps)):
            if pipeline.is_finished(name):
                continue
            if name != POOLS and (missing := unknown_facts(pipeline, pipeline.step(name), store)):
                lines.append(f"{name}: nothing is known yet of {missing} samples; run the tasks again")
                return "\n".join(lines)
            pipeline.run_steps(pipeline.local(store), only=name)
    write_outputs(pipeline)
    return "\n".join([*lines, status_text(pipeline)])


def unknown_facts(pipeline: Pipeline, step: Step, store: Store) -> int:
    """Number of samples of which a step knows nothing yet."""
    facts_id = step.facts_id(pipeline.model_identities)
    return sum(
        facts is None
        for chunk in chunks(pipeline.source(step))
        for facts in store.facts(facts_id, [item.content for item in chunk])
    )


@contextmanager
def _unlocked(file: Path) -> Iterator[None]:
    """Raises a `UserError` if a task is still writing a store."""
    descriptor = os.open(file.with_name(f"{file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{file}: its task is still running; merge when all have ended") from None
    finally:
        os.close(descriptor)
