"""Runs a pipeline: pools, then each step over what its inputs let through, then shards."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from scone_pl.construct.engine import Engine, LocalEngine
from scone_pl.construct.items import Item, Rejected
from scone_pl.construct.phases import (
    POOLS_FACTS,
    State,
    Writer,
    pool_ranges,
    range_ids,
    read_items,
    read_pools,
    run_step,
)
from scone_pl.construct.pools import Images
from scone_pl.construct.ray_engine import RayEngine
from scone_pl.construct.settings import Construction
from scone_pl.construct.shards import write_outputs
from scone_pl.construct.steps.base import Outcome, Step
from scone_pl.construct.store import Store
from scone_pl.errors import UserError
from scone_pl.progress import Progress
from scone_pl.vlm.templates import TemplateFolders

POOLS = "pools"


class Pipeline:
    """A checked pipeline with opened pools."""

    def __init__(self, settings: Construction) -> None:
        """Opens the pools.

        Raises:
            UserError: a setting or a pool is not valid.
        """
        self.settings = settings
        self.steps = settings.parsed_steps()
        self.outputs = settings.parsed_outputs(self.steps)
        self.folder = Path(settings.output)
        self.store_file = self.folder / "construct.sqlite"
        self.pools = [config.open() for config in settings.pool_configs()]
        self.images = Images({pool.config.name: pool for pool in self.pools}, self.folder / "blobs")
        self.model_configs = settings.model_configs()
        self.prompts = TemplateFolders(*settings.prompt_folders())
        if not len(self) and not any(step.own for step in self.steps):
            raise UserError("the pools have no entries")

    def __len__(self) -> int:
        """Number of entries of all pools, valid or not."""
        return sum(map(len, self.pools))

    @cached_property
    def numbers(self) -> Sequence[int] | range:
        """The chosen entries, over all pools."""
        if self.settings.sample is not None and self.settings.sample < len(self):
            generator = random.Random(f"sample {self.settings.seed}")
            return sorted(generator.sample(range(len(self)), self.settings.sample))
        limit = len(self) if self.settings.limit is None else min(self.settings.limit, len(self))
        return range(limit)

    @cached_property
    def model_identities(self) -> dict[str, str]:
        """By name, what decides a model's answers."""
        files = sorted(file for folder in self.prompts.folders for file in folder.glob("*.md"))
        prompts = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
        return {
            name: json.dumps([config.model, config.parameters, config.image_pixels, prompts], sort_keys=True)
            for name, config in self.model_configs.items()
        }

    def step_folder(self, name: str) -> Path:
        """Folder of a step's results."""
        names = [POOLS, *(step.name for step in self.steps)]
        if name not in names:
            raise UserError(f"there is no step {name!r}; there are {', '.join(names)}")
        return self.folder / "steps" / f"{names.index(name):02d}-{name}"

    def state(self, name: str) -> State | None:
        """What a step did; None if it has not finished, or was something else."""
        state = State.of(self.step_folder(name))
        return state if state is not None and state.fingerprint == self.fingerprint(name) else None

    def fingerprint(self, name: str) -> str:
        """Hash of everything that decides a step's result; empty if an input is not there yet."""
        if name == POOLS:
            chosen = self.numbers if isinstance(self.numbers, list) else [len(self.numbers)]
            content: Any = [[pool.identity() for pool in self.pools], chosen]
        else:
            step = self.step(name)
            inputs = [self.state(one) for one in self.input_names(step)]
            if not all(inputs):
                return ""
            used = [self.model_identities[getattr(step, option)] for option in getattr(step, "models", ())]
            content = [step.settings, step.input, used, [state.items_sha256 for state in inputs if state]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def input_names(self, step: Step) -> list[str]:
        """Steps that a step reads; a pool's name stands for its part of `pools`."""
        names = {step.name for step in self.steps}
        return list(dict.fromkeys(name if name in names else POOLS for name in step.input))

    def source(self, step: Step) -> Iterator[Item]:
        """The samples that a step reads."""
        yield from step.blanks()
        pools = {pool.config.name for pool in self.pools}
        for name in step.input:
            files = [self.step_folder(POOLS if name in pools else name) / "items.jsonl"]
            for item in read_items(files):
                if name not in pools or item.metadata.get("pool") == name:
                    yield item

    def total(self, step: Step) -> int:
        """Number of samples that a step reads; its inputs have been run."""
        return step.own + sum(state.kept for state in map(self.state, self.input_names(step)) if state)

    def local(self, store: Store) -> LocalEngine:
        """The engine of this machine."""
        return LocalEngine(self.images, self.model_configs, self.prompts, store, self.settings.processes)

    # ------------------------------------------------------------------ running
    def on_ray(self, address: str | None) -> RayEngine:
        """The engine of a Ray cluster, not started yet; see `RayEngine`."""
        return RayEngine(self.images, self.model_configs, self.prompts, self.store_file, self.settings.workers, address)

    def run(self, *, progress: bool = True, on: RayEngine | None = None) -> None:
        """Runs every step whose result is not there, by default on this machine, and writes the shards.

        Raises:
            UserError: a model refuses all questions, or nothing is left to write.
        """
        if on is None:
            with Store(self.store_file) as store:
                self.run_steps(self.local(store), progress=progress)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            with on:
                self.run_steps(on, progress=progress)
        write_outputs(self, progress=progress)

    def run_steps(self, engine: Engine, *, progress: bool = True, only: str = "") -> None:
        """Runs every step, or `only` one, whose result is not there."""
        if not self.is_finished(POOLS) and only in ("", POOLS):
            self._run_pools(engine, progress)
        for step in self.steps:
            if self.is_finished(step.name) or only not in ("", step.name):
                continue
            state = State(step.name, self.fingerprint(step.name))
            total = self.total(step)
            with Writer(self.step_folder(step.name), state) as writer:
                run_step(
                    step,
                    partial(self.source, step),
                    total,
                    writer,
                    facts_id=step.facts_id(self.model_identities),
                    engine=engine,
                    progress=progress,
                )

    def unknown_ranges(self, store: Store, ranges: Sequence[tuple[int, int, int]]) -> int:
        """Number of ranges of entries that have not been read yet."""
        names = list(range_ids(self.pools, ranges))
        return sum(facts is None for facts in store.facts(POOLS_FACTS, names))

    def is_finished(self, name: str) -> bool:
        """Whether a step's result is there, with nothing left to be asked."""
        state = self.state(name)
        return state is not None and state.complete

    def _run_pools(self, engine: Engine, progress: bool) -> None:
        folder = self.step_folder(POOLS)
        state = State(POOLS, self.fingerprint(POOLS))
        ranges = pool_ranges(self.pools, self.numbers)
        with (
            Writer(folder, state) as writer,
            Progress("pools", len(self.numbers), unit="entries", show=progress) as bar,
        ):
            for rows in read_pools(self.pools, ranges, len(self.numbers), engine, bar):
                for key, item, reason, detail in rows:
                    outcome: Outcome = Rejected(reason, detail) if item is None else [Item.from_json(item)]
                    writer.add(key, None, outcome)
