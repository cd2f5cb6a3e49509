"""One step over all its samples: known facts are read, others found, and what follows is written line by line."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice, tee
from pathlib import Path
from typing import IO, Any, TypeVar

from scone_pl.construct.items import Item, Rejected
from scone_pl.construct.models import BudgetError, Meter, Model, NoAnswerError
from scone_pl.construct.pools import Images, Pool
from scone_pl.construct.steps.base import Facts, ModelStep, Outcome, SelectStep, Step
from scone_pl.construct.store import Store
from scone_pl.data.jobs import Tick, run_jobs
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError
from scone_pl.files import read_json, write_json, writing
from scone_pl.progress import Progress
from scone_pl.vlm.client import StopJudgingError

CHUNK = 64
POOLS_FACTS = b"pools"
_T = TypeVar("_T")
UNANSWERED = "no answer yet"


@dataclass
class State:
    """What a phase did, as its `state.json` says."""

    name: str
    fingerprint: str
    """Hash of everything that decides its result."""
    items_sha256: str = ""
    """Of `items.jsonl`."""
    read: int = 0
    kept: int = 0
    """Samples written; a sample can become several."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Of samples that were not."""
    complete: bool = False
    """Whether every question was answered."""
    calls: int = 0
    dollars: float = 0.0
    seconds: float = 0.0

    @classmethod
    def of(cls, folder: Path) -> State | None:
        """The state in a folder; None if there is none."""
        file = folder / "state.json"
        try:
            return cls(**read_json(file, dict)) if file.is_file() else None
        except (TypeError, UserError):
            return None


class Writer:
    """Writes what a step decides."""

    def __init__(self, folder: Path, state: State) -> None:
        self.folder, self.state = folder, state
        self._reasons: Counter[str] = Counter()
        self._hash = hashlib.sha256()

    def __enter__(self) -> Writer:
        self._files = ExitStack()
        (self.folder / "state.json").unlink(missing_ok=True)
        self._items: IO[bytes] = self._files.enter_context(writing(self.folder / "items.jsonl"))
        self._rejected: IO[bytes] = self._files.enter_context(writing(self.folder / "rejected.jsonl"))
        self._began = time.monotonic()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._files.__exit__(kind, error, traceback)
        if error is None:
            state = self.state
            state.items_sha256, state.reasons = self._hash.hexdigest(), dict(self._reasons.most_common())
            state.complete = UNANSWERED not in self._reasons
            state.seconds = round(time.monotonic() - self._began, 2)
            write_json(asdict(state), self.folder / "state.json")

    def add(self, key: str, item: Item | None, outcome: Outcome) -> None:
        """Writes what became of one sample."""
        self.state.read += 1
        if isinstance(outcome, Rejected):
            self._reasons[outcome.reason] += 1
            line = {"key": key, "reason": outcome.reason, "detail": outcome.detail[:500]}
            if item is not None:
                line["item"] = json.loads(item.to_line())
            self._rejected.write(json.dumps(line, ensure_ascii=False).encode(errors="replace") + b"\n")
            return
        for one in outcome:
            data = one.to_line()
            self._hash.update(data)
            self._items.write(data)
        self.state.kept += len(outcome)


def read_items(files: Sequence[Path]) -> Iterator[Item]:
    """The samples in the files of earlier steps, one at a time."""
    for file in files:
        with file.open("rb") as stream:
            for line in stream:
                yield Item.from_json(json.loads(line))


def count_lines(file: Path) -> int:
    """Number of samples in the file of a step."""
    state = State.of(file.parent)
    return state.kept if state else 0


def chunks(items: Iterable[_T], size: int = CHUNK) -> Iterator[list[_T]]:
    """Lists of at most `size`."""
    stream = iter(items)
    while chunk := list(islice(stream, size)):
        yield chunk


# ---------------------------------------------------------------------- pools
def pool_ranges(pools: Sequence[Pool], numbers: Sequence[int] | range) -> Iterator[tuple[int, int, int]]:
    """(index of the pool, start, stop) of ranges of at most `CHUNK` entries, of sorted numbers over all pools."""
    ends, total = [], 0
    for pool in pools:
        total += len(pool)
        ends.append(total)
    which, before, start, last = 0, 0, -1, -2
    for number in numbers:
        while number >= ends[which]:
            if start >= 0:
                yield which, start - before, last + 1 - before
                start = -1
            before, which = ends[which], which + 1
        if start >= 0 and (number != last + 1 or number - start >= CHUNK):
            yield which, start - before, last + 1 - before
            start = -1
        start, last = (number if start < 0 else start), number
    if start >= 0:
        yield which, start - before, last + 1 - before


def range_ids(pools: Sequence[Pool], ranges: Iterable[tuple[int, int, int]]) -> Iterator[bytes]:
    """Under what the entries of each range are stored."""
    identities = [hashlib.sha256(json.dumps(pool.identity()).encode()).digest() for pool in pools]
    for which, start, stop in ranges:
        yield hashlib.sha256(identities[which] + f"{start} {stop}".encode()).digest()[:16]


def _read_range(pools: Sequence[Pool], job: tuple[int, int, int], tick: Tick) -> Facts:
    which, start, stop = job
    rows: list[list[Any]] = []
    for key, item in pools[which].items(start, stop):
        if isinstance(item, BrokenSampleError):
            rows.append([key, None, item.reason, str(item)[:500]])
        else:
            rows.append([key, json.loads(item.to_line()), "", ""])
        tick()
    return {"rows": rows}


def read_pools(
    pools: Sequence[Pool], ranges: Iterable[tuple[int, int, int]], store: Store, workers: int, bar: Progress
) -> Iterator[list[list[Any]]]:
    """[key, item or None, reason, detail] of every entry, a list for each range."""
    waiting: deque[tuple[bytes, Facts | None]] = deque()

    def jobs() -> Iterator[tuple[int, int, int]]:
        first, second = tee(ranges)
        for (which, start, stop), name in zip(first, range_ids(pools, second), strict=True):
            known = store.facts(POOLS_FACTS, [name])[0]
            waiting.append((name, known))
            yield (which, start, start if known else stop)  # an empty range costs nothing

    for found in run_jobs(_read_range, pools, jobs(), workers=workers, bar=bar):
        name, known = waiting.popleft()
        if known is None:
            store.add_facts(POOLS_FACTS, [(name, found)])
        else:
            bar.advance(len(known["rows"]))
        yield (known or found)["rows"]


# ---------------------------------------------------------------------- facts
def _measure(shared: tuple[Step, Images], items: list[Item], tick: Tick) -> list[Facts]:
    step, images = shared
    facts = []
    for item in items:
        facts.append(_or_broken(lambda item=item: step.measure(item, images)))  # type: ignore[misc]
        tick()
    return facts


def _or_broken(measure: Callable[[], Facts]) -> Facts:
    try:
        return measure()
    except BrokenSampleError as error:
        return {"broken": [error.reason, str(error)[:500]]}


def measured(
    step: Step, facts_id: bytes, items: Iterable[Item], images: Images, store: Store, workers: int, bar: Progress
) -> Iterator[tuple[Item, Facts]]:
    """Samples with their facts, in order; unknown facts are found by processes and stored a chunk at a time."""
    waiting: deque[tuple[list[Item], list[Facts | None]]] = deque()

    def jobs() -> Iterator[list[Item]]:
        for chunk in chunks(items):
            known = store.facts(facts_id, [item.content for item in chunk])
            waiting.append((chunk, known))
            yield [item for item, facts in zip(chunk, known, strict=True) if facts is None]

    for found in run_jobs(_measure, (step, images), jobs(), workers=workers, bar=bar):
        chunk, known = waiting.popleft()
        bar.advance(len(chunk) - len(found))
        new = iter(found)
        facts = [next(new) if one is None else one for one in known]
        if found:
            rows = zip(chunk, known, facts, strict=True)
            store.add_facts(facts_id, [(item.content, f) for item, k, f in rows if k is None])
        yield from zip(chunk, facts, strict=True)


async def ask_all(
    step: ModelStep,
    facts_id: bytes,
    items: Iterable[Item],
    models: Mapping[str, Model],
    store: Store,
    bar: Progress,
    add: Callable[[Item, Facts], None],
) -> None:
    """Asks about every sample without facts, many at a time, and hands each with its facts to `add`, in order."""
    used = [models[getattr(step, name)] for name in step.models]
    window = 4 * max(model.config.concurrency for model in used)
    waiting: deque[tuple[Item, asyncio.Task[Facts] | Facts]] = deque()

    async def one(item: Item) -> Facts:
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

    async def hand_on() -> None:
        item, facts = waiting[0]
        add(item, await facts if isinstance(facts, asyncio.Task) else facts)
        waiting.popleft()
        bar.advance()

    try:
        for chunk in chunks(items):
            known = store.facts(facts_id, [item.content for item in chunk])
            for item, facts in zip(chunk, known, strict=True):
                waiting.append((item, asyncio.create_task(one(item)) if facts is None else facts))
                while len(waiting) >= window:
                    await hand_on()
        while waiting:
            await hand_on()
    finally:
        tasks = [facts for _, facts in waiting if isinstance(facts, asyncio.Task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for model in used:
            await model.close()


# ---------------------------------------------------------------------- phases
def outcome_of(step: Step, item: Item, facts: Facts) -> Outcome:
    """What a step decides about a sample."""
    if "broken" in facts:
        return Rejected(*facts["broken"])
    if "unanswered" in facts:
        return Rejected(UNANSWERED, facts["unanswered"])
    return step.decide(item, facts)


def run_step(
    step: Step,
    source: Callable[[], Iterator[Item]],
    total: int,
    writer: Writer,
    *,
    facts_id: bytes,
    images: Images,
    store: Store,
    models: Mapping[str, Model],
    workers: int,
    progress: bool,
    facts_only: bool = False,
) -> None:
    """Runs one step, or for a `SelectStep` with `facts_only`, finds facts and decides nothing.

    Raises:
        UserError: a model refuses all questions.
    """
    meter = Meter()
    if isinstance(step, ModelStep):
        meter = Meter(step.budget)
        for name in step.models:
            models[getattr(step, name)].meter = meter

    def status() -> str:
        retries = sum(model.retries for model in models.values())
        return f"{meter.calls} calls, {retries} repeated, ${meter.dollars:.2f}" if meter.calls else ""

    with Progress(step.name, total, unit="samples", status=status, show=progress) as bar:
        if isinstance(step, SelectStep):
            first = True

            def rows() -> Iterator[tuple[Item, Facts]]:
                nonlocal first
                shown, first = (bar if first else Progress("", None, show=False)), False
                with shown if shown is not bar else ExitStack():
                    # The second time all facts are known.
                    yield from measured(step, facts_id, source(), images, store, workers if shown is bar else 1, shown)

            for item, outcome in ((item, []) for item, _ in rows()) if facts_only else step.select(rows):
                writer.add(item.key, item, outcome)
        elif isinstance(step, ModelStep):

            def add(item: Item, facts: Facts) -> None:
                writer.add(item.key, item, outcome_of(step, item, facts))

            try:
                asyncio.run(ask_all(step, facts_id, source(), models, store, bar, add))
            except StopJudgingError as error:
                raise UserError(str(error)) from None
            finally:
                writer.state.calls, writer.state.dollars = meter.calls, round(meter.dollars, 4)
        else:
            for item, facts in measured(step, facts_id, source(), images, store, workers, bar):
                writer.add(item.key, item, outcome_of(step, item, facts))
