"""Sharded over several ranks, every stage computes what it computes on one, and goes on with any number of them."""

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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# One worker of xdist runs all of these: the runs that they look at take a while.
STEPS, SAVED = 10, 5  # an odd number of packs a rank: 2 a step must begin anew there
STAGES = ("composition", "formation", "guidance", "adapters")
ARGS = [
    *("fit", "--config", "experiments/mini/stage2.yaml", "--config", "stages.json"),
    *("--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"),
    *("--trainer.limit_val_batches", "0", "--data.packing.token_budget", "600", "--data.num_workers", "0"),
    *("--checkpoint.every_n_steps", str(SAVED), "--checkpoint.keep_last", "5"),
]


def scalars(folder: Path, name: str) -> list[float]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    by_step = {event.step: event.value for event in events.Scalars(name)}
    assert sorted(by_step) == list(range(len(by_step)))
    return [by_step[step] for step in sorted(by_step)]


@pytest.fixture(scope="module")
def place(mini_world: Path) -> Path:
    """A chain of all stages, with words and masks."""
    bridge = {"source_layer": 0, "first_masked_layer": 1, "last_masked_layer": 5, "threshold": 0.4}
    stage = "scone_pl.training.stages."
    common = {"bridge": bridge, "optimizer": {"lr": 1e-3, "warmup_steps": 5, "eps": 1e-6}}
    chain = [
        {"name": name, "trainer": {"max_steps": STEPS}, "model": {"class_path": stage + cls, "init_args": init}}
        for name, cls, init in (
            (
                "composition",
                "Composition",
                {**common, "bridge": None, "mask_sampling": False, "alignment": {"weight": 0.0}},
            ),
            ("formation", "BridgeFormation", common),
            ("guidance", "BridgeGuidance", common),
            ("adapters", "BridgeGuidance", {**common, "lora": {"rank": 4}, "ema": {"decay": 0.5}}),
        )
    ]
    settings = {"chain": chain, "model": {"init_args": {"init_from": "runs/mini/base", "alignment": {"weight": 0.0}}}}
    (mini_world / "stages.json").write_text(json.dumps(settings))
    return mini_world


@pytest.fixture(scope="module")
def one_rank(place: Path) -> Path:
    """Two packs a step, one after the other."""
    out = place / "out/one"
    found = run_scone(*ARGS, "--trainer.accumulate_grad_batches", "2", "--output_dir", str(out), cwd=place)
    assert found.returncode == 0, found.stderr
    return out


@pytest.fixture(scope="module")
def two_ranks(place: Path) -> Path:
    """Two packs a step, side by side, all stages in the same two processes."""
    out = place / "out/two"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "scone_pl"]
    command += [*ARGS, "--trainer.devices", "2", "--output_dir", str(out)]
    found = subprocess.run(
        command, cwd=place, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr
    return out


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_are_one(stage: str, one_rank: Path, two_ranks: Path) -> None:
    one, two = (scalars(folder / stage, "train/loss") for folder in (one_rank, two_ranks))
    assert len(one) == STEPS
    assert len({round(loss, 4) for loss in one}) > STEPS // 2, "nothing was learned, so nothing was compared"
    assert two == pytest.approx(one, rel=1e-5)
    norms = [scalars(folder / stage, "gradient/norm") for folder in (one_rank, two_ranks)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    weights = [load_file(folder / stage / "weights/model.safetensors") for folder in (one_rank, two_ranks)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("ranks", [1, 3])
def test_resumes_on_another_number_of_ranks(ranks: int, place: Path, one_rank: Path, two_ranks: Path) -> None:
    out = place / f"out/resumed-{ranks}"
    shutil.copytree(two_ranks / "composition", out / "composition")
    shutil.rmtree(out / f"composition/checkpoints/step-{STEPS:06d}")
    shutil.rmtree(out / "composition/weights")
    shutil.rmtree(out / "composition/tensorboard")
    settings = json.loads((place / "stages.json").read_text())
    settings["chain"] = settings["chain"][:1]
    (place / "first.json").write_text(json.dumps(settings))
    args = [arg if arg != "stages.json" else "first.json" for arg in ARGS]
    args += ["--trainer.devices", str(ranks), "--trainer.accumulate_grad_batches", "2" if ranks == 1 else "1"]
    found = run_scone(*args, "--output_dir", str(out), cwd=place)
    assert found.returncode == 0, found.stderr
    assert f"data.train: resuming at pack {2 * SAVED} " in found.stderr
    events = EventAccumulator(str(out / "composition/tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert sorted(losses) == list(range(SAVED, STEPS))
    if ranks == 1:  # the same two packs a step as before, so the same losses
        straight = scalars(one_rank / "composition", "train/loss")
        assert [losses[step] for step in range(SAVED, STEPS)] == pytest.approx(straight[SAVED:], rel=1e-5)
