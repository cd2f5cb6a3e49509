"""No recipe can rot: each is parsed and instantiated, and those for a laptop are trained for two steps a stage."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from running import ROOT, run_scone
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scone_pl.cli.lightning import SconeCLI
from scone_pl.cli.stages import commands
from scone_pl.training.parts import part_of

RECIPES = sorted(
    p.relative_to(ROOT)
    for p in (ROOT / "experiments").rglob("*.yaml")
    if p.name != "predict.yaml"
    and p.parent.name != "base_weights"
    and not {"ablations", "studies", "icons", "neo"} & set(p.parts)
)
"""Of `fit`; tests/sampling/test_predict_jsonl.py runs predict.yaml; tests/study covers ablations and studies,
tests/worlds/test_icons_model.py world 2, tests/training/test_second_base_fit.py the second base model."""
LARGE = [p for p in RECIPES if p.parts[1] not in ("mini", "photos")]
SMALL = [p for p in RECIPES if p.parts[1] in ("mini", "photos")]

SMALLER_PHOTOS = [  # `make photos` runs the recipe's own sizes
    "--data.packing.token_budget=4000",
    "--data.packing.vae_resize={max_size: 512, min_size: 256}",
    "--data.packing.vit_resize={max_size: 224, min_size: 112}",
]


def test_there_are_recipes_of_both_sizes() -> None:
    assert {"stage1.yaml", "stage2.yaml"} <= {p.name for p in LARGE}
    assert len(SMALL) >= 3


@pytest.mark.parametrize("recipe", LARGE, ids=str)
def test_large_recipes_build_on_the_meta_device(
    recipe: Path, bagel_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["scone_pl"])
    here = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    for name in ("single_candidate_base", "single_candidate_refined", "multi_candidate", "validation"):
        (tmp_path / "data_shards/scone_s2i" / name).mkdir(parents=True)
    start = ["--model.init_args.init_from", str(bagel_folder)]
    planned = commands(["fit", "--config", str(ROOT / recipe), *here, *start])
    quantized = recipe.stem.startswith("qlora")
    assert len(planned) == (1 if quantized else 2)
    for command in planned:
        cli = SconeCLI([*command, "--model.init_args.init_from", str(bagel_folder)], until="build")
        model = cli.model.network.on_meta()
        num_parameters = sum(p.numel() for p in model.parameters())
        assert num_parameters < 3e9 if quantized else 14.5e9 < num_parameters < 14.8e9  # quantised ones are buffers
        assert {part_of(n) for n, p in model.named_parameters() if p.requires_grad} == set(cli.model.settings.trainable)
        assert cli.datamodule.packing.token_budget == (8192 if "24gb" in recipe.stem else 26496)
        assert cli.trainer.max_steps in (1000, 2000, 6000)


@pytest.mark.parametrize(
    # test_base.py runs the steps of base.yaml.
    "recipe",
    [pytest.param(p, marks=pytest.mark.slow) if "photos" in p.parts or p.stem != "stage2" else p for p in SMALL],
    ids=str,
)
def test_small_recipes_train(recipe: Path, mini_world: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    args = ["fit", "--config", str(recipe), "--output_dir", str(output), "--trainer.max_steps", "2"]
    args += ["--trainer.log_every_n_steps", "1", "--data.num_workers", "0", "--trainer.enable_progress_bar", "false"]
    args += SMALLER_PHOTOS if recipe.parts[1] == "photos" else ["--data.packing.token_budget", "800"]
    args += ["--model.init_args.init_from", str(_start(mini_world, recipe))]
    done = run_scone(*args, cwd=mini_world)
    assert done.returncode == 0, done.stderr
    stages = [p for p in output.iterdir() if p.is_dir()]
    assert len(stages) >= 2
    for stage in stages:
        assert json.loads((stage / "weights/training.json").read_text())["steps"] == 2
        losses = _scalars(stage / "tensorboard", "train/loss")
        assert len(losses) == 2
        assert all(math.isfinite(loss) for loss in losses)
    again = run_scone(*args, cwd=mini_world)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("already trained for 2 steps") == len(stages)


def _start(mini_world: Path, recipe: Path) -> Path:
    return mini_world / "runs" / ("photos" if recipe.parts[1] == "photos" else "mini") / "base"


def _scalars(folder: Path, name: str) -> list[float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


@pytest.mark.slow
def test_a_chain_on_two_sharded_ranks(mini_world: Path, tmp_path: Path) -> None:
    args = ["fit", "--config", "experiments/mini/stage1.yaml", "--output_dir", str(tmp_path)]
    args += ["--trainer.max_steps", "2"]
    args += ["--trainer.devices", "2", "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"]
    args += ["--data.packing.token_budget", "600", "--data.num_workers", "0"]
    args += ["--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "2"]
    done = run_scone(*args, cwd=mini_world)
    assert done.returncode == 0, done.stderr
    stages = sorted((p for p in tmp_path.iterdir() if p.is_dir()), key=lambda p: (p / "config.yaml").stat().st_mtime)
    base, *_, refined = (load_file(p / "weights/model.safetensors") for p in stages)
    start = load_file(mini_world / "runs/mini/base/model.safetensors")
    assert base.keys() == start.keys()
    changed = [name for name in start if not refined[name].equal(start[name])]
    assert {part_of(n) for n in changed} >= {"understanding", "generation", "connector", "latent_projections"}
    assert any(not refined[name].equal(base[name]) for name in base)
    assert all(math.isfinite(loss) for loss in _scalars(stages[-1] / "tensorboard", "train/loss"))
    assert all(list((p / "previews").glob("*.png")) for p in stages)
