"""Where the work of steps is done: an interface, and the processes and the event loop of one machine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from scone_pl.construct.items import Item
from scone_pl.construct.models import BudgetError, Meter, Model, ModelConfig, NoAnswerError
from scone_pl.construct.pools import Images
from scone_pl.construct.steps.base import Facts, ModelStep
from scone_pl.construct.store import Answers
from scone_pl.data.jobs import Tick, run_jobs
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError
from scone_pl.progress import Progress
from scone_pl.vlm.client import StopJudgingError
from scone_pl.vlm.templates import TemplateFolders

CHUNK = 64
_FEW = 256
"""Samples for which starting processes takes longer than they save."""
Job = TypeVar("Job")
Result = TypeVar("Result")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Asking:
    """What a step asks the models about its samples."""

    step: ModelStep
    facts_id: bytes
    items: Iterable[Item]
    meter: Meter
    bar: Progress
    add: Callable[[Item, Facts], None]
    """Called with each sample and its facts, in order."""


class Engine(Protocol):
    """Does the work; results arrive in order, whoever did it."""

    images: Images
    store: Answers

    def map(
        self, task: Callable[[Any, Job, Tick], Result], shared: Any, jobs: Iterable[Job], total: int, bar: Progress
    ) -> Iterator[Result]:
        """`task(shared, job, tick)` of every job, in order; see `data.jobs.run_jobs`. `total`: number of samples."""
        ...

    def ask(self, asking: Asking) -> None:
        """Asks about every sample without facts.

        Raises:
            UserError: a model refuses all questions.
        """
        ...

    @property
    def retries(self) -> int:
        """Requests of the present step that were repeated, as far as known."""
        ...


class LocalEngine:
    """Processes of this machine for images, an event loop for questions."""

    def __init__(
        self,
        images: Images,
        configs: Mapping[str, ModelConfig],
        prompts: TemplateFolders,
        store: Answers,
        processes: int,
    ) -> None:
        self.images, self.store, self.processes = images, store, processes
        self.models = {name: Model(name, config, images, store, prompts) for name, config in configs.items()}

    def map(
        self, task: Callable[[Any, Job, Tick], Result], shared: Any, jobs: Iterable[Job], total: int, bar: Progress
    ) -> Iterator[Result]:
        """See `Engine.map`; few samples need no processes."""
        return run_jobs(task, shared, jobs, workers=max(1, min(self.processes, total // _FEW)), bar=bar)

    def ask(self, asking: Asking) -> None:
        used = [self.models[getattr(asking.step, name)] for name in asking.step.models]
        for model in used:
            model.meter = asking.meter
        try:
            asyncio.run(self._ask_all(asking, used))
        except StopJudgingError as error:
            raise UserError(str(error)) from None

    async def _ask_all(self, asking: Asking, used: Sequence[Model]) -> None:
        """Asks about many samples at a time."""
        window = 4 * max(model.config.concurrency for model in used)
        waiting: deque[tuple[Item, asyncio.Task[Facts] | Facts]] = deque()

        async def hand_on() -> None:
            item, facts = waiting[0]
            asking.add(item, await facts if isinstance(facts, asyncio.Task) else facts)
            waiting.popleft()
            asking.bar.advance()

        try:
            for chunk in chunks(asking.items):
                known = self.store.facts(asking.facts_id, [item.content for item in chunk])
                for item, facts in zip(chunk, known, strict=True):
                    waiting.append((item, self._asked(asking, item) if facts is None else facts))
                    while len(waiting) >= window:
                        await hand_on()
            while waiting:
                await hand_on()
        finally:
            await cancel([facts for _, facts in waiting if isinstance(facts, asyncio.Task)])
            for model in used:
                await model.close()

    def _asked(self, asking: Asking, item: Item) -> asyncio.Task[Facts]:
        return asyncio.create_task(ask_about(asking.step, asking.facts_id, item, self.models, self.store))

    @property
    def retries(self) -> int:
        return sum(model.retries for model in self.models.values())


async def ask_about(step: ModelStep, facts_id: bytes, item: Item, models: Mapping[str, Model], store: Answers) -> Facts:
    """Facts about one sample, stored if they are complete.

    Raises:
        StopJudgingError: a model refuses all questions.
    """
    try:
        facts = await step.ask(item, models)
    except NoAnswerError as error:
        return {"unanswered": str(error)[:500]}
    except BudgetError:
        return {"unanswered": "the budget is used up"}
    except BrokenSampleError as error:
        facts = {"broken": [error.reason, str(error)[:500]]}
    store.add_facts(facts_id, [(item.content, facts)])
    return facts


async def cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancels tasks and waits for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def chunks(items: Iterable[_T], size: int = CHUNK) -> Iterator[list[_T]]:
    """Lists of at most `size`."""
    stream = iter(items)
    while chunk := list(islice(stream, size)):
        yield chunk
