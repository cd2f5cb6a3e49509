"""`python -m scone_pl export`: a training run's weights as a folder in the published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from scone_pl.checkpoints.training_record import FILE
from scone_pl.dtypes import DTYPES
from scone_pl.errors import UserError
from scone_pl.outputs import check_output_folder
from scone_pl.training.results import export_snapshot
from scone_pl.training.runs import RunFolder


def export(
    checkpoint: Path,
    output: Path,
    start: Path | None = None,
    weights: Literal["raw", "ema"] = "raw",
    dtype: Literal["start", "float32", "bfloat16"] = "start",
) -> None:
    """Write the weights of a run as a checkpoint folder, with one tensor in memory at a time; an interrupted export
    leaves nothing behind.

    Args:
        checkpoint: A run's output_dir (its newest snapshot counts), or a snapshot: checkpoints/step-...
        output: The folder to write: weights, configs, tokenizer, autoencoder, as BAGEL and Scone are published.
        start: Checkpoint folder that training started from, if it has been moved.
        weights: raw = as trained; ema = their average (model.ema).
        dtype: Dtype of the weights; start = each tensor's dtype in the folder that training started from.
    """
    check_output_folder(output)
    snapshot = _snapshot(checkpoint)
    if output.exists() and not (output / FILE).is_file():
        raise UserError(f"{output}: exists and is no exported folder; choose another")
    training = export_snapshot(snapshot, output, start=start, ema=weights == "ema", dtype=DTYPES.get(dtype))
    print(f"{output}: {training['stage']} after step {training['steps']} of {snapshot}")


def _snapshot(checkpoint: Path) -> Path:
    if checkpoint.is_file():
        return checkpoint
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: no such folder; give a run's output_dir or one of its checkpoints/step-...")
    if (checkpoint / "checkpoints").is_dir():
        last = RunFolder(checkpoint).last_snapshot
        if last is None:
            raise UserError(f"{checkpoint}: has no snapshot yet")
        return last
    chain = sorted(p.parent.name for p in checkpoint.glob("*/checkpoints"))
    if chain:
        raise UserError(f"{checkpoint}: a chain; give one of its steps, {', '.join(chain)}")
    return checkpoint
