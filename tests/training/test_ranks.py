"""Sharded over several ranks, every stage computes what it computes on one, and resumes on any number of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from running import run_ranks, run_scone
from safetensors.torch import load_file
from stage_runs import (
    ARGS,
    GOLDEN,
    ONE_RANK,
    SAVED,
    SECOND_BASE,
    SECOND_START,
    STAGES,
    STEPS,
    TOLERANCE,
    recorded,
    scalars,
    write_stages,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scone_pl.worlds.shapes.base import write_base

QUICK, QUICK_STEPS = ("formation",), 8
"""Stages that `make test` compares: all losses, text and a supervised bridge."""
SLOW = pytest.mark.slow


@dataclass
class Runs:
    """The same stages on one rank and on two."""

    folder: Path
    """Where commands run."""
    one: Path
    """Two packs a step, one after the other."""
    two: Path
    """Two packs a step, side by side, all stages in the same two processes."""
    steps: int
    """Of each stage."""


@pytest.fixture(scope="module")
def runs_of(mini_world: Path) -> Iterator[Callable[[tuple[str, ...], int], Runs]]:
    """Runs stages, each set once. One worker of pytest-xdist runs all tests of this file, as they take a while."""
    known: dict[tuple[str, ...], Runs] = {}

    def run(stages: tuple[str, ...], steps: int) -> Runs:
        if stages not in known:
            write_stages(mini_world, stages, steps)
            if SECOND_BASE in stages:
                write_base(mini_world / SECOND_START, preset="mini_neo")
            one, two = (mini_world / f"out/{'-'.join(stages)}/{name}" for name in ("one", "two"))
            done = [run_scone(*ARGS, *ONE_RANK, "--output_dir", str(one), cwd=mini_world)]
            args = [*ARGS, "--trainer.devices", "2", "--output_dir", str(two)]
            done += run_ranks("-m", "scone_pl", *args, ranks=2, cwd=mini_world)
            for process in done:
                assert process.returncode == 0, process.stderr
            known[stages] = Runs(mini_world, one, two, steps)
        return known[stages]

    yield run
    shutil.rmtree(mini_world / "out", ignore_errors=True)


@pytest.fixture
def quick(runs_of: Callable[[tuple[str, ...], int], Runs]) -> Runs:
    return runs_of(QUICK, QUICK_STEPS)


@pytest.fixture
def whole(runs_of: Callable[[tuple[str, ...], int], Runs]) -> Runs:
    return runs_of(STAGES, STEPS)


@pytest.fixture
def second(runs_of: Callable[[tuple[str, ...], int], Runs]) -> Runs:
    return runs_of((SECOND_BASE,), QUICK_STEPS)


COMPARED = [
    ("second", SECOND_BASE),
    *(("quick", stage) for stage in QUICK),
    *(pytest.param("whole", stage, marks=SLOW) for stage in STAGES),
]


@pytest.mark.slow  # the quick runs start from other weights
@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_the_recorded_ones(stage: str, whole: Runs) -> None:
    """Every logged part of the loss, the blocked fraction and the gradient's norm, of ten steps of two packs each."""
    expected, values = json.loads(GOLDEN.read_text())[stage], recorded(whole.one)[stage]
    assert values.keys() == expected.keys()
    for name in expected:
        assert values[name] == pytest.approx(expected[name], rel=TOLERANCE, abs=1e-6), name


@pytest.mark.parametrize(("runs", "stage"), COMPARED)
@pytest.mark.slow
def test_two_ranks_are_one(runs: str, stage: str, request: pytest.FixtureRequest) -> None:
    found: Runs = request.getfixturevalue(runs)
    folders = [run / stage for run in (found.one, found.two)]
    one, two = (scalars(folder, "train/loss") for folder in folders)
    assert len(one) == found.steps
    assert len({round(loss, 4) for loss in one}) > found.steps // 2, "nothing was learned, so nothing was compared"
    assert two == pytest.approx(one, rel=1e-5)
    norms = [scalars(folder, "gradient/norm") for folder in folders]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    weights = [load_file(folder / "weights/model.safetensors") for folder in folders]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize(
    ("ranks", "runs", "stage"), [(1, "quick", QUICK[0]), (3, "quick", QUICK[0]), (1, "second", SECOND_BASE)]
)
@pytest.mark.slow
def test_resumes_on_another_number_of_ranks(ranks: int, runs: str, stage: str, request: pytest.FixtureRequest) -> None:
    found: Runs = request.getfixturevalue(runs)
    steps = found.steps
    out = found.folder / f"out/resumed-{stage}-{ranks}"
    shutil.copytree(found.two / stage, out / stage)
    shutil.rmtree(out / f"{stage}/checkpoints/step-{steps:06d}")
    shutil.rmtree(out / f"{stage}/weights")
    shutil.rmtree(out / f"{stage}/tensorboard")
    write_stages(found.folder, (stage,), steps)
    args = [*ARGS, "--trainer.devices", str(ranks), "--trainer.accumulate_grad_batches", "2" if ranks == 1 else "1"]
    result = run_scone(*args, "--output_dir", str(out), cwd=found.folder)
    assert result.returncode == 0, result.stderr
    assert f"data.train: resuming at pack {2 * SAVED} " in result.stderr
    events = EventAccumulator(str(out / f"{stage}/tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert sorted(losses) == list(range(SAVED, steps))
    if ranks == 1:  # the same two packs a step as before, so the same losses
        straight = scalars(found.one / stage, "train/loss")
        assert [losses[step] for step in range(SAVED, steps)] == pytest.approx(straight[SAVED:], rel=1e-5)
