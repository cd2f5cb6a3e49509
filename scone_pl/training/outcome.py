"""How a run ended: `outcome.json` in its folder, written by the first rank when training ends.

| reason           | what                                                     | the same command again     |
|------------------|----------------------------------------------------------|----------------------------|
| `finished`       | `trainer.max_steps` reached                              | nothing to do, status 0    |
| `early_stopping` | EarlyStopping ended it as configured                     | nothing to do, status 0    |
| `max_time`       | `trainer.max_time` passed                                | resumes                    |
| `stopped`        | another callback set `trainer.should_stop`               | resumes                    |
| `signal`         | SIGTERM, SIGUSR1 or Ctrl-C                               | resumes                    |

No file: it is running, or was killed and resumes as well.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, Timer

from scone_pl.files import read_json, write_json
from scone_pl.training.trainer_attributes import callbacks_of

UNFINISHED_STATUS = 75
"""Exit status of a run that ended before it was finished, without a signal: sysexits' EX_TEMPFAIL."""
LEFT_OUT_STATUS = 65
"""Exit status of `predict` when some prompts could not be used and all others are done: sysexits' EX_DATAERR."""
FINISHED = ("finished", "early_stopping")


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    reason: str
    steps: int
    """Optimizer steps made."""
    max_steps: int
    """`trainer.max_steps` as it was then."""
    early_stopping: str = "[]"
    """Settings of the EarlyStopping callbacks as they were then."""

    @property
    def finished(self) -> bool:
        return self.reason in FINISHED

    def write(self, file: Path) -> None:
        """Replaces `file`."""
        write_json(dataclasses.asdict(self), file)


def read_outcome(file: Path) -> Outcome | None:
    """None if there is no such file.

    Raises:
        UserError: it is damaged.
    """
    if not file.is_file():
        return None
    content = read_json(file, dict)
    steps, max_steps = content.get("steps"), content.get("max_steps")
    return Outcome(
        reason=str(content.get("reason")),
        steps=steps if isinstance(steps, int) else 0,
        max_steps=max_steps if isinstance(max_steps, int) else -1,
        early_stopping=str(content.get("early_stopping", "[]")),
    )


def reason_of_end(trainer: pl.Trainer) -> str:
    """Why `trainer.fit` returned; the same on all ranks."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        reason = "finished"
    elif any(_has_stopped(callback) for callback in trainer.early_stopping_callbacks):
        reason = "early_stopping"
    elif any(_is_over(callback) for callback in callbacks_of(trainer) if isinstance(callback, Timer)):
        reason = "max_time"
    else:
        reason = "stopped"
    return trainer.strategy.broadcast(reason)


def _has_stopped(callback: EarlyStopping) -> bool:
    reason = getattr(callback, "stopping_reason", None)  # Lightning 2.6
    return reason.value != 0 if reason is not None else callback.wait_count >= callback.patience


def forget_stops(trainer: pl.Trainer) -> None:
    """When training starts: forgets that EarlyStopping stopped the run before the snapshot, but not its best value."""
    for callback in trainer.early_stopping_callbacks:
        if (reason := getattr(callback, "stopping_reason", None)) is not None:
            callback.stopping_reason = type(reason)(0)


def _is_over(timer: Timer) -> bool:
    left = timer.time_remaining()
    return left is not None and left <= 0


def early_stopping_settings(trainer: Mapping[str, Any]) -> str:
    """The EarlyStopping callbacks among parsed trainer settings, as text that is equal if they are."""
    listed = trainer.get("callbacks") or []
    entries = [c.as_dict() for c in (listed if isinstance(listed, list) else [listed]) if hasattr(c, "as_dict")]
    return json.dumps([e for e in entries if "EarlyStopping" in e.get("class_path", "")], sort_keys=True, default=str)


class TimeLimit(Timer):
    """`trainer.max_time`, counted from each start of a stage: what earlier starts took is not remembered."""

    def __init__(self, duration: Any) -> None:
        """`duration`: DD:HH:MM:SS, a timedelta or its arguments."""
        super().__init__(duration)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a resumed run has all of its time again."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
