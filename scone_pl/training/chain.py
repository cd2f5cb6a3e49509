"""One stage after the other: a configuration with a `chain` is run step by step.

Each step is the configuration plus its own overrides, in a folder of its own, starting from the weights of the step
before with a fresh optimizer. Arguments typed after --config win over both. A step that is finished is skipped, an
interrupted one resumes, so the same command always resumes where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from scone_pl.errors import UserError
from scone_pl.processes import PREEMPTION_SIGNALS, child_environment


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
        """Raises `UserError` for a name that is no name of a folder, or overrides that would not act."""
        if not re.fullmatch(r"[\w-]{1,80}", self.name):
            raise UserError(f"chain step name {self.name!r:.100} must consist of 1 to 80 letters, digits, _ and -")
        arguments = self.model.get("init_args", {})
        if not isinstance(arguments, dict):
            raise UserError(f"chain step {self.name}: model.init_args must be a mapping (`key: value` lines)")
        if "init_from" in arguments:
            raise UserError(f"chain step {self.name} starts from the weights before it; leave out its init_from")

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
        # No chain within a step: Lightning starts the other ranks with the step's command line.
        tail = ["--model.init_args.init_from", init_from, "--output_dir", folder, "--chain", "null"]
        commands.append([*args[:after], *own, *args[after:], *tail])
        init_from = f"{folder}/weights"
    return commands


def needs_own_process(devices: Any) -> bool:
    """Whether a step must not share its process with the next one.

    Lightning starts the ranks of one fit as children of this process and leaves a process group whose other
    members are gone when the next fit begins. Under torchrun or Slurm the ranks, and so the group, stay.
    """
    launched = any(name in os.environ for name in ("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "LOCAL_RANK"))
    return not launched and devices not in (1, "1")


def run_in_own_process(command: Sequence[str]) -> int:
    """Runs `python -m scone_pl COMMAND`, passing on `PREEMPTION_SIGNALS` and leaving Ctrl-C to it; its exit status.

    The process ends with this one, even if this one is killed.
    """
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        if process is None:
            raise SystemExit(128 + number)  # nothing has begun yet
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PREEMPTION_SIGNALS}
    try:
        process = subprocess.Popen([sys.executable, "-m", "scone_pl", *command], env=child_environment())
        while True:
            with contextlib.suppress(KeyboardInterrupt):  # the terminal sent it to the child as well
                status = process.wait()
                return status if status >= 0 else 128 - status  # as a shell reports a child that a signal ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _after_last_config(args: Sequence[str]) -> int:
    """Index for a step's overrides: right after the last --config, before everything typed after it."""
    index = 1
    for i, arg in enumerate(args):
        if arg in ("--config", "-c"):
            index = i + 2
        elif arg.startswith("--config="):
            index = i + 1
    return index


def check_names(steps: Sequence[ChainStep]) -> None:
    """Each step needs a folder of its own."""
    names = [step.name for step in steps]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"chain: two steps are called {name}; give each a name of its own")
