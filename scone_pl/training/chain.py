"""One stage after the other: a configuration with a `chain` is run step by step.

Each step is the configuration plus its own overrides, in a folder of its own, starting from the weights of the step
before with a fresh optimizer. Command-line arguments win over both. A step that is finished is skipped, an
interrupted one resumes, so the same command always goes on where it stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scone_pl.errors import UserError


@dataclass(kw_only=True)
class ChainStep:
    """One step of a chain."""

    name: str
    """Its folder under `output_dir`."""
    model: dict[str, Any] = field(default_factory=dict)
    """Overrides of `model`: class_path, init_args."""
    data: dict[str, Any] = field(default_factory=dict)
    """Overrides of `data`."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Overrides of `trainer`, such as max_steps."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ValueError(f"chain step name {self.name!r} must consist of letters, digits, _ and -")

    def overrides(self) -> dict[str, Any]:
        """As a configuration to lay over the common one."""
        return {key: value for key in ("model", "data", "trainer") if (value := getattr(self, key))}


def plan(args: Sequence[str], chain: Sequence[ChainStep], init_from: str, output_dir: str) -> list[list[str]]:
    """The command line that runs each step alone.

    Args:
        args: the chain's own command line, subcommand first.
        chain: its steps.
        init_from: weights that the first step starts from; each other one starts from the weights before it.
        output_dir: holds a folder for each step.
    """
    after = _after_last_config(args)
    commands = []
    for step in chain:
        folder = f"{output_dir}/{step.name}"
        own = ["--config", json.dumps(step.overrides())] if step.overrides() else []
        tail = ["--model.init_args.init_from", init_from, "--output_dir", folder]
        commands.append([*args[:after], *own, *args[after:], *tail])
        init_from = f"{folder}/weights"
    return commands


def _after_last_config(args: Sequence[str]) -> int:
    """Overrides go right behind the last --config, before everything typed after it."""
    place = 1
    for i, arg in enumerate(args):
        if arg in ("--config", "-c"):
            place = i + 2
        elif arg.startswith("--config="):
            place = i + 1
    return place


def check_names(steps: Sequence[ChainStep]) -> None:
    """Each step needs a folder of its own."""
    names = [step.name for step in steps]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"chain: two steps are called {name}; give each a name of its own")
