"""Progress of the trainer's loops in a log: lines, as many as time allows, no bar."""

from __future__ import annotations

import pytest

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
