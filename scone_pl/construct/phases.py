"""One step over all its samples: known facts are read, others found, and what follows is written line by line."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import tee
from pathlib import Path
from typing import IO, Any

from scone_pl.construct.engine import CHUNK, Asking, Engine, chunks
from scone_pl.construct.items import Item, Rejected
from scone_pl.construct.models import Meter
from scone_pl.construct.pools import Images, Pool
from scone_pl.construct.steps.base import Facts, ModelStep, Outcome, SelectStep, Step
from scone_pl.data.jobs import Tick
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError
from scone_pl.files import read_json, write_json, writing
from scone_pl.progress import Progress

POOLS_FACTS = b"pools"
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
    pools: Sequence[Pool], ranges: Iterable[tuple[int, int, int]], total: int, engine: Engine, bar: Progress
) -> Iterator[list[list[Any]]]:
    """[key, item or None, reason, detail] of every entry, a list for each range."""
    waiting: deque[tuple[bytes, Facts | None]] = deque()

    def jobs() -> Iterator[tuple[int, int, int]]:
        first, second = tee(ranges)
        for (which, start, stop), name in zip(first, range_ids(pools, second), strict=True):
            known = engine.store.facts(POOLS_FACTS, [name])[0]
            waiting.append((name, known))
            yield (which, start, start if known else stop)  # an empty range costs nothing

    for found in engine.map(_read_range, pools, jobs(), total, bar):
        name, known = waiting.popleft()
        if known is None:
            engine.store.add_facts(POOLS_FACTS, [(name, found)])
        else:
            bar.advance(len(known["rows"]))
        yield (known or found)["rows"]


# ---------------------------------------------------------------------- facts
def _measure(shared: tuple[Step, Images], items: list[Item], tick: Tick) -> list[Facts]:
    step, images = shared
    facts = []
    for item in items:
        facts.append(_or_broken(lambda item=item: step.measure(item, images)))  # type: ignore[misc]  # item is bound now
        tick()
    return facts


def _or_broken(measure: Callable[[], Facts]) -> Facts:
    try:
        return measure()
    except BrokenSampleError as error:
        return {"broken": [error.reason, str(error)[:500]]}


def measured(
    step: Step, facts_id: bytes, items: Iterable[Item], total: int, engine: Engine, bar: Progress
) -> Iterator[tuple[Item, Facts]]:
    """Samples with their facts, in order; unknown facts are found by processes and stored a chunk at a time."""
    waiting: deque[tuple[list[Item], list[Facts | None]]] = deque()

    def jobs() -> Iterator[list[Item]]:
        for chunk in chunks(items):
            known = engine.store.facts(facts_id, [item.content for item in chunk])
            waiting.append((chunk, known))
            yield [item for item, facts in zip(chunk, known, strict=True) if facts is None]

    for found in engine.map(_measure, (step, engine.images), jobs(), total, bar):
        chunk, known = waiting.popleft()
        bar.advance(len(chunk) - len(found))
        new = iter(found)
        facts = [next(new) if one is None else one for one in known]
        if found:
            rows = zip(chunk, known, facts, strict=True)
            engine.store.add_facts(facts_id, [(item.content, f) for item, k, f in rows if k is None])
        yield from zip(chunk, facts, strict=True)


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
    engine: Engine,
    progress: bool,
    facts_only: bool = False,
) -> None:
    """Runs one step, or for a `SelectStep` with `facts_only`, finds facts and decides nothing.

    Raises:
        UserError: a model refuses all questions.
    """
    meter = Meter(step.budget) if isinstance(step, ModelStep) else Meter()

    def status() -> str:
        return f"{meter.calls} calls, {engine.retries} repeated, ${meter.dollars:.2f}" if meter.calls else ""

    with Progress(step.name, total, unit="samples", status=status, show=progress) as bar:
        if isinstance(step, SelectStep):
            first = True

            def rows() -> Iterator[tuple[Item, Facts]]:
                nonlocal first
                shown, first = (bar if first else Progress("", None, show=False)), False
                with shown if shown is not bar else ExitStack():
                    # The second time all facts are known.
                    yield from measured(step, facts_id, source(), total if shown is bar else 0, engine, shown)

            for item, outcome in ((item, []) for item, _ in rows()) if facts_only else step.select(rows):
                writer.add(item.key, item, outcome)
        elif isinstance(step, ModelStep):

            def add(item: Item, facts: Facts) -> None:
                writer.add(item.key, item, outcome_of(step, item, facts))

            try:
                engine.ask(Asking(step, facts_id, source(), meter, bar, add))
            finally:
                writer.state.calls, writer.state.dollars = meter.calls, round(meter.dollars, 4)
        else:
            for item, facts in measured(step, facts_id, source(), total, engine, bar):
                writer.add(item.key, item, outcome_of(step, item, facts))
