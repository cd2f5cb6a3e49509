"""The gradient's norm over shards, and what happens when it is not finite."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from running import run_ranks, run_script
from torch import nn

from scone_pl.errors import UserError
from scone_pl.training.gradients import MAX_SKIPPED, GradientGuard, gradient_norms

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parent / "sharded_gradients.py"
TWO_RANKS = [
    *("fit", "--config", "experiments/mini/stage1.yaml", "--chain", "null", "--trainer.devices", "2"),
    *("--model.init_args.init_from", "runs/mini/base"),
    *("--trainer.strategy.class_path", "scone_pl.training.sharding.FullySharded"),
    *("--trainer.strategy.init_args.process_group_backend", "gloo"),
    *("--model.init_args.sharding.compute_dtype", "float32", "--trainer.enable_progress_bar", "false"),
    *("--data.packing.token_budget", "600", "--data.num_workers", "0", "--trainer.limit_val_batches", "0"),
    *("--trainer.log_every_n_steps", "1", "--trainer.max_steps", "4", "--checkpoint.every_n_steps", "1"),
]


def named(*gradients: float) -> list[tuple[str, nn.Parameter]]:
    """Parameters of one element each, of all groups in turn."""
    names = ["language_model.a", "language_model.a_moe_gen", "connector.fc1.weight", "vae2llm.weight"]
    result = []
    for name, gradient in zip(names, gradients, strict=False):
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.tensor([gradient])
        result.append((name, parameter))
    return result


def test_two_sharded_ranks_equal_one_process() -> None:
    first, second = run_script(SCRIPT, 2, "--sharded", "--clip", "0.5")
    (alone,) = run_script(SCRIPT, 1, "--clip", "0.5")
    assert first == second, "every rank clips by the same and stops with the same words"
    assert alone["total"] > 1
    assert first["total"] == pytest.approx(alone["total"], rel=1e-6)
    assert first["groups"] == pytest.approx(alone["groups"], rel=1e-6)
    assert first["groups"].keys() == {"understanding", "generation", "connector", "other"}
    assert first["total"] == pytest.approx(math.sqrt(sum(n**2 for n in first["groups"].values())))
    assert first["clipped"] == pytest.approx(0.5, rel=1e-6)
    assert first["complaint"].startswith("step 7: the gradient is not finite")
    assert "rank 0: sample0; rank 1: sample1" in first["complaint"]
    assert "other nan" in first["complaint"]


def test_norms_and_clipping_of_one_process() -> None:
    parameters = named(3.0, 4.0, 12.0, 84.0)
    norms = GradientGuard().apply(parameters, None, 1, CPU)
    assert norms.groups == {"understanding": 3.0, "generation": 4.0, "connector": 12.0, "other": 84.0}
    assert norms.total == 85.0
    assert parameters[0][1].grad == 3.0, "without a limit nothing is scaled"
    GradientGuard().apply(parameters, 8.5, 1, CPU)
    assert [p.grad.item() for _, p in parameters] == pytest.approx([0.3, 0.4, 1.2, 8.4])
    GradientGuard().apply(parameters, 100.0, 1, CPU)
    assert gradient_norms(parameters, CPU).total == pytest.approx(8.5)
    assert gradient_norms([], CPU).total == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_stop_names_step_and_samples(bad: float) -> None:
    guard = GradientGuard()
    guard.remember(["a", "b"])
    guard.apply(named(1.0), 1.0, 1, CPU)
    guard.remember([f"k{i}" for i in range(20)])
    with pytest.raises(UserError, match=r"step 2: .*weights are those of step 1\. .*rank 0: k0, .*k11 and 8 more"):
        guard.apply(named(1.0, bad), 1.0, 2, CPU)


def test_skip_leaves_the_step_out_until_there_are_too_many() -> None:
    guard = GradientGuard("skip")
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.1)
    for step in range(1, MAX_SKIPPED + 1):
        parameter.grad = torch.full((3,), math.nan)
        guard.apply([("connector.fc1.weight", parameter)], 1.0, step, CPU)
        optimizer.step()
        assert parameter.equal(torch.ones(3))
    assert guard.skipped == MAX_SKIPPED
    parameter.grad = torch.full((3,), math.nan)
    with pytest.raises(UserError, match=f"as in {MAX_SKIPPED} steps before it"):
        guard.apply([("connector.fc1.weight", parameter)], 1.0, 9, CPU)
    guard = GradientGuard("skip")
    for step in range(2 * MAX_SKIPPED):
        guard.apply(named(math.nan if step % 2 else 1.0), 1.0, step + 1, CPU)
    assert guard.skipped == MAX_SKIPPED


@pytest.mark.slow
def test_a_run_on_two_ranks_stops_before_it_spoils_its_weights(mini_world: Path, tmp_path: Path) -> None:
    """A rate beyond reason: step 1 throws the weights out of range, so that step 2 has no finite gradient."""
    args = [*TWO_RANKS, "--output_dir", str(tmp_path / "out")]
    rate = ["--model.init_args.optimizer.lr", "1e30", "--model.init_args.optimizer.warmup_steps", "1"]
    ranks = run_ranks("-m", "scone_pl", *args, *rate, ranks=2, cwd=mini_world)
    for done in ranks:
        assert done.returncode == 2
        line = next(line for line in done.stderr.splitlines() if line.startswith("error: step 2:"))
        assert "the gradient is not finite" in line
        assert "rank 0: " in line
        assert "rank 1: " in line
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/weights").exists()
