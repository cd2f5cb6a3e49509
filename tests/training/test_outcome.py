"""How a run ended is written down, and what the same command then does follows from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.training.outcome import UNFINISHED_STATUS, Outcome, read_outcome
from scone_pl.training.runs import RunFolder

EARLY = {
    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
    "init_args": {"monitor": "val/loss", "patience": 1, "min_delta": 10.0},
}
STOPPER = """
import lightning.pytorch as pl
class Stop(pl.Callback):
    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.global_step >= 2
"""


@pytest.fixture
def fit(mini_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a stage of the mini recipe; its status."""
    monkeypatch.chdir(mini_world)
    monkeypatch.setattr("sys.argv", ["scone_pl"])

    def run(verb: str, *more: str, chain: str = "null") -> int:
        return main(
            [
                *(verb, "--config", str(ROOT / "experiments/mini/stage1.yaml"), "--output_dir", str(tmp_path / "run")),
                *("--trainer.enable_progress_bar", "false", "--data.packing.token_budget", "600"),
                *("--data.num_workers", "0", "--data.val_packs", "1", "--previews.num_samples", "0", "--chain", chain),
                *("--trainer.val_check_interval", "1", *more),
            ]
        )

    return run


def steps_of(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in sorted((folder / "checkpoints").iterdir())]


def outcome(folder: Path) -> Outcome:
    result = read_outcome(folder / "outcome.json")
    assert result is not None
    return result


@pytest.mark.slow
def test_a_chain_whose_time_is_over_stops_there_and_has_it_anew(fit, tmp_path: Path) -> None:
    chain = json.dumps([{"name": "a", "trainer": {"max_steps": 5000}}, {"name": "b", "trainer": {"max_steps": 5000}}])
    first = tmp_path / "run/a"
    made = 0
    for _ in range(2):
        assert fit("fit", "--trainer.max_time", "00:00:00:01", chain=chain) == UNFINISHED_STATUS
        assert outcome(first).reason == "max_time"
        assert outcome(first).steps == steps_of(first)[-1] > made
        made = outcome(first).steps
        assert not (first / "weights").exists()
        assert not (tmp_path / "run/b").exists()


@pytest.mark.slow
def test_early_stopping_finishes_a_step_of_a_chain(fit, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chain = json.dumps([{"name": "a", "trainer": {"max_steps": 1}}, {"name": "b", "trainer": {"max_steps": 50}}])
    args = ("--trainer.callbacks", json.dumps([EARLY]))
    assert fit("fit", *args, chain=chain) == 0
    assert outcome(tmp_path / "run/a").reason == "finished"
    assert outcome(tmp_path / "run/b").reason == "early_stopping"
    ended = outcome(tmp_path / "run/b").steps
    assert ended == RunFolder(tmp_path / "run/b").finished_steps < 50
    before = (tmp_path / "run/b/weights/training.json").stat().st_mtime_ns
    assert fit("fit", *args, chain=chain) == 0
    assert (tmp_path / "run/b/weights/training.json").stat().st_mtime_ns == before
    longer = chain.replace("50", "60")
    assert fit("fit", *args, chain=longer) == 0
    assert outcome(tmp_path / "run/b").steps > ended


@pytest.mark.slow
def test_another_callback_that_stops_leaves_the_run_unfinished(
    fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stopping_callback.py").write_text(STOPPER)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("stopping_callback", None)
    args = ("--trainer.max_steps", "3", "--trainer.callbacks", "[{class_path: stopping_callback.Stop}]")
    assert fit("fit", *args) == UNFINISHED_STATUS
    assert (outcome(tmp_path / "run").reason, outcome(tmp_path / "run").steps) == ("stopped", 2)
    assert "stopped after step 2 of 3, as a callback set should_stop" in capsys.readouterr().err
    assert fit("fit", *args, "--trainer.min_steps", "3") == 0
    assert fit("fit", *args) == 0
    assert fit("fit", "--trainer.max_steps", "2") == 2
    assert "is of step 3, beyond trainer.max_steps 2" in capsys.readouterr().err


def test_finished_by_early_stopping_until_its_settings_change(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert not run.is_finished(10)
    run.weights.mkdir()
    (run.weights / "training.json").write_text('{"steps": 4}')
    assert run.is_finished(4)
    assert not run.is_finished(10)
    Outcome("early_stopping", 4, 10, "[1]").write(run.outcome_file)
    assert run.is_finished(10, "[1]")
    assert not run.is_finished(11, "[1]")
    assert not run.is_finished(10, "[2]")
    Outcome("max_time", 4, 10, "[1]").write(run.outcome_file)
    assert not run.is_finished(10, "[1]")
    run.outcome_file.write_text("[]")
    with pytest.raises(UserError, match=r"outcome\.json"):
        run.is_finished(10)
