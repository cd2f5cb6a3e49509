"""What is checked of a command line with all its stages before the first one runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scone_pl.errors import UserError
from scone_pl.training.ckpt_path import Step
from scone_pl.training.outcome import early_stopping_settings


def check_seed(args: Sequence[str]) -> None:
    """Raises `UserError` where `--seed_everything` is typed and would change nothing.

    Order, dropout and noise follow from `data.seed` and the pack, so that resuming repeats them. (Recipes may have
    `seed_everything`, for callbacks that draw from global generators.)
    """
    typed = {arg.partition("=")[0] for arg in args}
    if "--seed_everything" in typed and "--data.seed" not in typed:
        raise UserError("--seed_everything: order, dropout and noise do not follow from it; use --data.seed")


def check_data(settings: Sequence[Any]) -> None:
    """Raises `UserError` if a data set that any step of a chain needs does not exist; `settings` are the steps'."""
    for step in settings:
        for source in [*(step.data.train or []), *(step.data.val or [])]:
            if "://" not in source.path and not Path(source.path).exists():
                raise UserError(f"{source.path}: no such folder; {step.output_dir} needs it (see `shards convert`)")


def check_stale(steps: Sequence[Step]) -> None:
    """Raises `UserError` if a step would train on, and so change the weights that a later one has started from."""
    for i, step in enumerate(steps):
        trainer = step.settings.trainer
        finished = step.folder.is_finished(trainer.max_steps, early_stopping_settings(trainer))
        begun = [s.settings.output_dir for s in steps[i + 1 :] if s.folder.last_snapshot]
        if not finished and begun:
            end = f"to {trainer.max_steps} steps" if trainer.max_steps >= 0 else "until it is stopped"
            raise UserError(
                f"{step.settings.output_dir} would train on {end}, but {' and '.join(begun)} "
                "started from its present weights; choose another --output_dir, or move the latter aside"
            )
