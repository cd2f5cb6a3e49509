"""Sharded over several ranks, every stage computes what it computes on one, and resumes on any number of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import environment, run_scone
from safetensors.torch import load_file
from stage_runs import ARGS, GOLDEN, ONE_RANK, SAVED, STAGES, STEPS, TOLERANCE, recorded, scalars, write_stages
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module")
def folder(mini_world: Path) -> Path:
    """Where the stages run. One worker of pytest-xdist runs all tests of this file, as these runs take a while."""
    write_stages(mini_world)
    return mini_world


@pytest.fixture(scope="module")
def one_rank(folder: Path) -> Path:
    """Two packs a step, one after the other."""
    out = folder / "out/one"
    result = run_scone(*ARGS, *ONE_RANK, "--output_dir", str(out), cwd=folder)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> Path:
    """Two packs a step, side by side, all stages in the same two processes."""
    out = folder / "out/two"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "scone_pl"]
    command += [*ARGS, "--trainer.devices", "2", "--output_dir", str(out)]
    result = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    return out


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_the_recorded_ones(stage: str, one_rank: Path) -> None:
    """Every logged part of the loss, the blocked fraction and the gradient's norm, of ten steps of two packs each."""
    expected, values = json.loads(GOLDEN.read_text())[stage], recorded(one_rank)[stage]
    assert values.keys() == expected.keys()
    for name in expected:
        assert values[name] == pytest.approx(expected[name], rel=TOLERANCE, abs=1e-6), name


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_are_one(stage: str, one_rank: Path, two_ranks: Path) -> None:
    one, two = (scalars(run / stage, "train/loss") for run in (one_rank, two_ranks))
    assert len(one) == STEPS
    assert len({round(loss, 4) for loss in one}) > STEPS // 2, "nothing was learned, so nothing was compared"
    assert two == pytest.approx(one, rel=1e-5)
    norms = [scalars(run / stage, "gradient/norm") for run in (one_rank, two_ranks)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    weights = [load_file(run / stage / "weights/model.safetensors") for run in (one_rank, two_ranks)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("ranks", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_resumes_on_another_number_of_ranks(ranks: int, folder: Path, one_rank: Path, two_ranks: Path) -> None:
    out = folder / f"out/resumed-{ranks}"
    shutil.copytree(two_ranks / "composition", out / "composition")
    shutil.rmtree(out / f"composition/checkpoints/step-{STEPS:06d}")
    shutil.rmtree(out / "composition/weights")
    shutil.rmtree(out / "composition/tensorboard")
    settings = json.loads((folder / "stages.json").read_text())
    settings["chain"] = settings["chain"][:1]
    (folder / "first.json").write_text(json.dumps(settings))
    args = [arg if arg != "stages.json" else "first.json" for arg in ARGS]
    args += ["--trainer.devices", str(ranks), "--trainer.accumulate_grad_batches", "2" if ranks == 1 else "1"]
    result = run_scone(*args, "--output_dir", str(out), cwd=folder)
    assert result.returncode == 0, result.stderr
    assert f"data.train: resuming at pack {2 * SAVED} " in result.stderr
    events = EventAccumulator(str(out / "composition/tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert sorted(losses) == list(range(SAVED, STEPS))
    if ranks == 1:  # the same two packs a step as before, so the same losses
        straight = scalars(one_rank / "composition", "train/loss")
        assert [losses[step] for step in range(SAVED, STEPS)] == pytest.approx(straight[SAVED:], rel=1e-5)
