"""One-line messages on stderr through `logging`, so that no filter of Python warnings hides them.

Lightning emits many Python warnings. Those that never apply here are silenced individually, with the reason; the others
are shown in one line each.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

from lightning_utilities.core.rank_zero import rank_zero_only

logger = logging.getLogger("scone_pl")

IGNORED_WARNINGS = {
    r"The '\w+_dataloader' does not have many workers": "data.num_workers is the recipe's choice",
    r"It is recommended to use `self\.log\(.*sync_dist": "values are reduced over ranks before they are logged",
    r"Checkpoint directory .* exists and is not empty": "a run goes on in its own folder",
    r"`ModelCheckpoint\(.*": "snapshots are `checkpoint`'s",
    r"You're resuming from a checkpoint that ended before the epoch ended": "the data module resumes at the pack",
    r"Found \d+ module\(s\) in eval mode at the start of training": "frozen parts stay as they are",
    r".*Trying to infer the `batch_size` from an ambiguous collection": "a batch is one pack",
    r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`": "a step without gradient was left out",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated": "between Lightning and torch",
    r"The `srun` command is available on your system but is not used": "one process is one rank here",
}
"""Silenced Python warnings (regular expressions matched at the beginning) -> reason."""
_IGNORED = ("litlogger", "TPU available", "MEMBER: 1/1", "Starting with 1 processes")
"""Irrelevant log lines of Lightning: absent hardware, product advertisements, single processes."""


class _Lines(logging.Handler):
    """Prints `warning: ...` to the current `sys.stderr`."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        print(f"{level}{' '.join(record.getMessage().split())}", file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Logs a warning in one line, on rank 0 only."""
    if getattr(rank_zero_only, "rank", 0) == 0:
        logger.warning(message)


def warn_without_effect(section: str, names: Sequence[str]) -> None:
    """Logs which settings of `section`, if any, its other settings leave without effect."""
    if names:
        warn(f"{section}: {', '.join(names)} has no effect with the other settings given")


def configure() -> None:
    """Sets up the command line's logging: messages and other libraries' warnings as one line each on stderr."""
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.distributed"):
        logging.getLogger(name).addFilter(_is_relevant)
    for beginning in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=beginning)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"


def _is_relevant(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _IGNORED)
