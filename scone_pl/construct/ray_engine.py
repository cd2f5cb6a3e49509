"""`--engine ray`: the same steps on the nodes of a Ray cluster.

Plain actors rather than `ray.data.map_batches`: facts are looked up before anything is sent, each answer is stored
before the next question of its sample, a budget holds for all actors together, and results keep their order, whoever
is killed. Ray Data would store a block at a time, and run a lost one again.

One actor on the driver's node, the keeper, writes the same SQLite file as the local engine; the others measure images
and hold the models' clients. All nodes need scone_pl, the models' keys in their environment, and the same paths.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from scone_pl.construct.engine import Asking, Job, Result, ask_about, cancel, chunks
from scone_pl.construct.items import Item
from scone_pl.construct.models import Budget, BudgetError, Meter, Model, ModelConfig
from scone_pl.construct.pools import Images
from scone_pl.construct.steps.base import Facts, ModelStep
from scone_pl.construct.store import Answers, Store
from scone_pl.data.jobs import Tick, run_jobs
from scone_pl.errors import UserError
from scone_pl.progress import Progress
from scone_pl.vlm.client import StopJudgingError
from scone_pl.vlm.store import Answer
from scone_pl.vlm.templates import TemplateFolders

_ASKED_AT_ONCE = 16
"""Samples that an actor is given at a time to ask about."""
_PENDING = 3
"""Such parts, or chunks of images, that an actor has before the first is done."""
_RETRIES = 3
"""Times that a part is run again after its actor died."""
_LOCK_SECONDS = 30.0
"""A killed driver's keeper ends soon after it."""
_STORE_BYTES = 200 * 2**20
T = TypeVar("T")


def check_ray(address: str | None) -> None:
    """Checks what can be checked without a cluster.

    Raises:
        UserError: Ray is not installed, or the address is that of a Ray client.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("--engine ray needs Ray: pip install 'scone_pl[ray]'")
    if address is not None and ("://" in address or not address.strip()):
        raise UserError(
            f"--address {address!r:.80}: give HOST:PORT or auto, and run the command on a node of the cluster"
        )


# ---------------------------------------------------------------------- actors
class Keeper:
    """Owns the store and the budget of the present step."""

    def __init__(self, file: Path) -> None:
        self.meter = Meter()
        self.store = Store(file, wait=_LOCK_SECONDS).__enter__()

    def call(self, name: str, *args: Any) -> Any:
        """A method of the store."""
        return getattr(self.store, name)(*args)

    def begin(self, budget: Budget) -> None:
        """Begins a step."""
        self.meter = Meter(budget)

    def spend(self) -> bool:
        """Whether one more call is allowed; counts it."""
        try:
            self.meter.spend()
        except BudgetError:
            return False
        return True

    def pay(self, dollars: float) -> None:
        self.meter.pay(dollars)

    def spent(self) -> tuple[int, float]:
        """Calls and dollars of the present step."""
        return self.meter.calls, self.meter.dollars


class RemoteStore:
    """The keeper's store, as `construct.store.Answers`."""

    def __init__(self, keeper: Any) -> None:
        self.keeper = keeper

    def facts(self, step: bytes, items: Sequence[bytes]) -> list[dict[str, Any] | None]:
        return _get(self.keeper.call.remote("facts", step, list(items)))  # type: ignore[no-any-return]  # Ray is untyped

    def add_facts(self, step: bytes, facts: Iterable[tuple[bytes, Mapping[str, Any]]]) -> None:
        _get(self.keeper.call.remote("add_facts", step, list(facts)))

    def answers(self, ask: str) -> list[Answer]:
        return _get(self.keeper.call.remote("answers", ask))  # type: ignore[no-any-return]  # Ray is untyped

    def add_answer(self, answer: Answer) -> None:
        _get(self.keeper.call.remote("add_answer", answer))


class _RemoteMeter(Meter):
    """The keeper's meter."""

    def __init__(self, keeper: Any) -> None:
        super().__init__()
        self.keeper = keeper

    def spend(self) -> None:
        if not _get(self.keeper.spend.remote()):
            raise BudgetError

    def pay(self, dollars: float) -> None:
        if dollars:
            _get(self.keeper.pay.remote(dollars))


class Worker:
    """Measures images in its threads, and asks in an event loop of its own, with clients that stay connected."""

    def __init__(
        self, keeper: Any, cwd: str, images: Images, configs: Mapping[str, ModelConfig], prompts: Sequence[Path]
    ) -> None:
        with suppress(OSError):  # `lacking` says so
            os.chdir(cwd)
        self.store, self.meter = RemoteStore(keeper), _RemoteMeter(keeper)
        templates = TemplateFolders(*prompts)
        self.models = {name: Model(name, config, images, self.store, templates) for name, config in configs.items()}
        for model in self.models.values():
            model.meter = self.meter
        self._limits: dict[str, int] = {}
        self._shared: tuple[Any, Any] = (None, None)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def lacking(self, folders: Sequence[str], keys: Sequence[str]) -> list[str]:
        """Which of the driver's folders and variables are not there on this node."""
        missing = [one for one in folders if not Path(one).is_dir()]
        return missing + [f"${one}" for one in keys if one not in os.environ]

    def run(self, task: Callable[[Any, Any, Tick], Any], shared: list[Any], job: Any) -> tuple[Any, int]:
        """The result of a job, and how often it ticked; `shared` holds a reference, fetched once."""
        import ray

        known, (ref,) = self._shared, shared
        if known[0] != ref:
            self._shared = known = (ref, ray.get(ref))
        ticks = 0

        def tick() -> None:
            nonlocal ticks
            ticks += 1

        return task(known[1], job, tick), ticks

    def ask(self, step: ModelStep, facts_id: bytes, items: Sequence[Item], limits: Mapping[str, int]) -> list[Facts]:
        """Facts about samples; `limits` are the concurrent requests of each model that this actor may have."""
        return asyncio.run_coroutine_threadsafe(self._ask(step, facts_id, items, dict(limits)), self._loop).result()

    async def _ask(
        self, step: ModelStep, facts_id: bytes, items: Sequence[Item], limits: dict[str, int]
    ) -> list[Facts]:
        if limits != self._limits:  # another step
            self._limits = limits
            for name, limit in limits.items():
                await self.models[name].close()
                self.models[name].config = replace(self.models[name].config, concurrency=limit)
        tasks = [asyncio.create_task(ask_about(step, facts_id, item, self.models, self.store)) for item in items]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            await cancel(tasks)


# ---------------------------------------------------------------------- driver
class RayEngine:
    """A context manager; see `engine.Engine`."""

    def __init__(
        self,
        images: Images,
        configs: Mapping[str, ModelConfig],
        prompts: TemplateFolders,
        store_file: Path,
        workers: int | None,
        address: str | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            images: of the pipeline.
            configs: of the models.
            prompts: their templates.
            store_file: the pipeline's.
            workers: number of actors; None = one for each CPU of the cluster.
            address: of a cluster; None = one on this machine, for this run.
        """
        self.images, self.configs, self.prompts = images, configs, prompts
        self.store_file, self.workers, self.address = store_file.absolute(), workers, address
        self.retries = 0

    def __enter__(self) -> RayEngine:
        """Connects and starts the actors.

        Raises:
            UserError: there is no cluster at the address, it is too small, or a node lacks something.
        """
        check_ray(self.address)
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where: dict[str, Any] = {"address": self.address}
        if self.address is None:
            cpus = self.workers or len(os.sched_getaffinity(0))
            where = {"num_cpus": cpus, "_node_ip_address": "127.0.0.1", "include_dashboard": False}
            where |= {"object_store_memory": _STORE_BYTES, "address": "local"}
        try:
            ray.init(**where, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"--address {self.address}: no Ray cluster answers ({error!s:.200})") from None
        try:
            available = int(ray.cluster_resources().get("CPU", 0))
            if (self.workers or 1) > available:
                raise UserError(f"--workers is {self.workers}; the Ray cluster has {available} CPUs")
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            keeper = ray.remote(Keeper).options(num_cpus=0, scheduling_strategy=here, max_concurrency=1)
            self.keeper = keeper.remote(self.store_file)
            self.store: Answers = RemoteStore(self.keeper)
            # One at a time until the file is locked, so that a second run ends before it starts anything.
            _get(self.keeper.begin.remote(Budget()))
            worker = ray.remote(Worker).options(
                num_cpus=1,
                scheduling_strategy="SPREAD",
                max_restarts=-1,
                max_task_retries=_RETRIES,
                max_concurrency=_PENDING,
            )
            folders = [Path(folder).absolute() for folder in self.prompts.folders]
            arguments = (self.keeper, os.getcwd(), self.images, dict(self.configs), folders)
            self.actors = [worker.remote(*arguments) for _ in range(self.workers or available)]
            self._check_nodes()
        except BaseException:
            ray.shutdown()
            raise
        return self

    def _check_nodes(self) -> None:
        keys = {config.api_key_env for config in self.configs.values() if config.key()}
        folders = [os.getcwd(), str(self.store_file.parent)]
        asked = [actor.lacking.remote(folders, sorted(keys)) for actor in self.actors]
        for missing in map(_get, asked):
            if missing:
                raise UserError(
                    f"{missing[0]} is not there on every node of the Ray cluster: folders must have the same path on "
                    "all, and keys be in the environment of `ray start`"
                )

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    def map(
        self, task: Callable[[Any, Job, Tick], Result], shared: Any, jobs: Iterable[Job], total: int, bar: Progress
    ) -> Iterator[Result]:
        import ray

        if not total:  # everything is known
            yield from run_jobs(task, shared, jobs, workers=1, bar=bar)
            return
        ref = [ray.put(shared)]
        for found, ticks in self._ordered(self.actors, "run", ((task, ref, job) for job in jobs)):
            bar.advance(ticks)
            yield found

    def ask(self, asking: Asking) -> None:
        """See `Engine.ask`; a model's `concurrency` is that of all actors together."""
        step, meter = asking.step, asking.meter
        _get(self.keeper.begin.remote(meter.budget))
        limits = {getattr(step, name): self.configs[getattr(step, name)].concurrency for name in step.models}
        askers = self.actors[: max(1, min(limits.values()))]
        each = {name: limit // len(askers) for name, limit in limits.items()}
        waiting: deque[tuple[list[Item], list[Facts | None]]] = deque()

        def parts() -> Iterator[tuple[Any, ...]]:
            for chunk in chunks(asking.items, _ASKED_AT_ONCE):
                known = self.store.facts(asking.facts_id, [item.content for item in chunk])
                waiting.append((chunk, known))
                new = [item for item, facts in zip(chunk, known, strict=True) if facts is None]
                yield step, asking.facts_id, new, each

        try:
            for found in self._ordered(askers, "ask", parts()):
                chunk, known = waiting.popleft()
                new = iter(found)
                for item, facts in zip(chunk, known, strict=True):
                    asking.add(item, next(new) if facts is None else facts)
                meter.calls, meter.dollars = _get(self.keeper.spent.remote())
                asking.bar.advance(len(chunk))
        except StopJudgingError as error:
            raise UserError(str(error)) from None
        finally:
            with suppress(UserError):
                meter.calls, meter.dollars = _get(self.keeper.spent.remote())

    def _ordered(self, actors: Sequence[Any], method: str, calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Results of calls of a `Worker` method, in order; each goes to the actor with the fewest unfinished ones."""
        waiting: deque[tuple[Any, int]] = deque()
        load = Counter(dict.fromkeys(range(len(actors)), 0))

        def first() -> Any:
            ref, number = waiting.popleft()
            load[number] -= 1
            return _get(ref)

        for arguments in calls:
            number = min(load, key=lambda one: load[one])
            load[number] += 1
            waiting.append((getattr(actors[number], method).remote(*arguments), number))
            if len(waiting) > _PENDING * len(actors):
                yield first()
        while waiting:
            yield first()


def _get(ref: Any) -> Any:
    """The result of a call; what it raised is raised as it was.

    Raises:
        UserError: an actor died too often.
    """
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError | StopJudgingError | BudgetError):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"Ray: {first:.300}; run the same command again to resume") from None
