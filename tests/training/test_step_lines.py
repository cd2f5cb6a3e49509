"""Progress of the trainer's loops in a log: lines, as many as time allows, no bar."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from scone_pl import progress
from scone_pl.training.progress import StepLines


def lines(capsys: pytest.CaptureFixture[str], interval: float, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(progress, "INTERVAL", interval)
    shown = StepLines()
    for step in range(1, 6):
        shown._show("training: step", step, 5, {"loss": 0.123456, "note": "text"})
    shown._show("validate: pack", 1, float("inf"))
    return capsys.readouterr().err.splitlines()


def test_first_last_and_some_between(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ends = ["training: step 1 of 5, loss 0.1235", "training: step 5 of 5, loss 0.1235", "validate: pack 1"]
    assert lines(capsys, 1e9, monkeypatch) == ends
    assert len(lines(capsys, 0.0, monkeypatch)) == 6


def test_other_ranks_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = StepLines()
    shown.disable()
    shown._show("training: step", 1, 5)
    assert capsys.readouterr().err == ""


class Nothing(pl.LightningModule):
    """Computes nothing."""

    def validation_step(self, batch: torch.Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    test_step = predict_step = validation_step


@pytest.mark.parametrize("loop", ["validate: pack", "test: pack", "predict: sample"])
@pytest.mark.parametrize("loaders", [1, 2])
def test_evaluation_loops_of_a_real_trainer(
    loop: str, loaders: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[StepLines()], **options)
    run = getattr(trainer, loop.partition(":")[0])
    run(Nothing(), [DataLoader(torch.zeros(3, 1)) for _ in range(loaders)])
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith(loop)]
    assert shown[0] == f"{loop} 1 of 3"
    assert shown[-1] == f"{loop} 3 of 3"
