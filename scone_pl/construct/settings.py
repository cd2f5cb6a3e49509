"""The pipeline's file: pools, models, steps and outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scone_pl.construct.models import FOLDER, ModelConfig, check_key
from scone_pl.construct.pools import PoolConfig, merged
from scone_pl.construct.steps.base import ModelStep, Step
from scone_pl.construct.steps.registry import parse_steps
from scone_pl.construct.strict import build
from scone_pl.data.fields import FieldNames
from scone_pl.data.members import is_key
from scone_pl.data.selection import ConvertConfig
from scone_pl.errors import UserError
from scone_pl.outputs import check_output_folder
from scone_pl.ranges import check_whole

MAX_WORKERS = 256


@dataclass(frozen=True, kw_only=True)
class Construction:
    """What is constructed, of what, and how."""

    output: str = ""
    """Folder for everything: results of steps, models' answers, shards, pages."""
    pools: list[dict[str, Any]] = field(default_factory=list)
    """Where samples come from; keys: name, path, layout, image_root, fields, subset, where, license, origin."""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name, OpenAI-compatible servers: model, base_url, api_key_env, concurrency, ..."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Steps in order; `step` names one, other keys are its settings."""
    outputs: dict[str, Any] = field(default_factory=dict)
    """Folders of shards below OUTPUT/shards: name -> step, or list of steps, whose samples they hold; by default one
    folder, samples, of the last step."""
    shards: ConvertConfig = field(default_factory=ConvertConfig)
    """How samples are stored."""
    prompts: str | None = None
    """Folder of prompt templates that come before the package's."""
    where: list[str] = field(default_factory=list)
    """Conditions on numbers for all pools, such as 'vlm_filter_cot.score_final >= 3.5'."""
    fields: FieldNames = field(default_factory=FieldNames)
    """Names of fields for all pools that have none of their own."""
    limit: int | None = None
    """Maximum number of entries, the first of the pools."""
    sample: int | None = None
    """Number of entries to draw at random."""
    seed: int = 0
    """Seed of all random draws."""
    workers: int | None = None
    """Processes; by default one per core."""

    def __post_init__(self) -> None:
        for name in ("limit", "sample"):
            if getattr(self, name) is not None:
                check_whole(f"--{name}", getattr(self, name), minimum=1)
        if self.limit is not None and self.sample is not None:
            raise UserError("give --limit (the first entries) or --sample (some at random), not both")
        check_whole("--seed", self.seed)
        if self.workers is not None:
            check_whole("--workers", self.workers, minimum=1, maximum=MAX_WORKERS)

    @property
    def folder(self) -> Path:
        """The output folder.

        Raises:
            UserError: none is given, or it cannot be written to.
        """
        if not self.output.strip():
            raise UserError("--output: give a folder (or `output:` in the file)")
        check_output_folder(self.output, files=("construct.sqlite", "sheet.html"), folders=("shards", "steps"))
        return Path(self.output)

    @property
    def processes(self) -> int:
        """Number of processes."""
        return len(os.sched_getaffinity(0)) if self.workers is None else self.workers

    def pool_configs(self) -> list[PoolConfig]:
        """The pools' settings.

        Raises:
            UserError: there is none, one is not valid, or two have the same name.
        """
        if not self.pools and not any(step.own for step in parse_steps(self.steps, self.seed)):
            raise UserError("pools: give at least one, such as `pools: [{name: mine, path: my/rows.jsonl}]`")
        configs = [build(PoolConfig, one, f"pools[{number}]") for number, one in enumerate(self.pools)]
        names = [config.name for config in configs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"pools: two are called {twice[0]}")
        return [merged(config, tuple(self.where), self.fields) for config in configs]

    def model_configs(self) -> dict[str, ModelConfig]:
        """The models' settings."""
        return {name: build(ModelConfig, one, f"models.{name}") for name, one in self.models.items()}

    def parsed_steps(self) -> list[Step]:
        """The steps, each with its input.

        Raises:
            UserError: one is not valid, or names a model or an input that does not exist.
        """
        pools = [str(pool.get("name")) for pool in self.pools if isinstance(pool, Mapping)]
        steps = parse_steps(self.steps, self.seed)
        known = {"pools", *pools}
        previous = ("pools",)
        done = []
        for step in steps:
            step = step if step.own else replace(step, input=step.input or previous)
            for name in step.input:
                if name not in known:
                    raise UserError(f"step {step.name}: input {name!r} is none of {', '.join(known)}")
            if isinstance(step, ModelStep):
                for option in step.models:
                    if getattr(step, option) not in self.models:
                        raise UserError(f"step {step.name}: {option} is {getattr(step, option)!r}, not in `models`")
            if step.name in known:
                raise UserError(f"two steps or pools are called {step.name}; give one of them another `name`")
            known.add(step.name)
            previous = (step.name,)
            done.append(step)
        return done

    def parsed_outputs(self, steps: list[Step]) -> dict[str, tuple[str, ...]]:
        """Name of a folder of shards -> names of steps.

        Raises:
            UserError: a step does not exist, or a name is no name of a folder.
        """
        if not self.outputs:
            return {"samples": (steps[-1].name if steps else "pools",)}
        known = {"pools", *(step.name for step in steps)}
        outputs = {}
        for name, value in self.outputs.items():
            names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else ()
            if not is_key(name) or not names or not all(isinstance(one, str) for one in names):
                raise UserError(f"outputs: {name!r:.60} must be a name of letters, digits, _ or -, with steps")
            if unknown := [one for one in names if one not in known]:
                raise UserError(f"outputs.{name}: {unknown[0]!r} is no step; there are {', '.join(sorted(known))}")
            outputs[name] = names
        return outputs

    def prompt_folders(self) -> list[Path]:
        """Folders of prompt templates."""
        return [*([Path(self.prompts)] if self.prompts else []), FOLDER]

    def check(self, *, keys: bool) -> None:
        """Checks everything that can be checked before a pool is opened.

        Args:
            keys: whether to look for the models' keys.

        Raises:
            UserError: anything that the user can correct.
        """
        self.pool_configs()
        steps = self.parsed_steps()
        self.parsed_outputs(steps)
        configs = self.model_configs()
        for step in steps:
            step.check()
            if keys and isinstance(step, ModelStep):
                for option in step.models:
                    check_key(configs[getattr(step, option)], getattr(step, option))
