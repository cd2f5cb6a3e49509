"""The study without separate experts: nothing but the experts differs, and its recipes run."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from running import ROOT, run_scone
from safetensors.torch import load_file

from scone_pl.checkpoints.model import read_config
from scone_pl.errors import UserError
from scone_pl.model.experts import is_generation_parameter
from scone_pl.study.spec import Study, merged
from scone_pl.training.start import check_start
from scone_pl.worlds.shapes.base import write_base


def _recipe(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_base_is_the_same_recipe_and_stage_1_is_four_times_as_long() -> None:
    for recipe, overlay, times in (("base", "dense", 1), ("stage1", "dense_stage1", 4)):
        plain = _recipe(f"experiments/mini/{recipe}.yaml")
        dense = copy.deepcopy(merged(plain, _recipe(f"experiments/studies/recipes/{overlay}.yaml")))
        assert dense["model"]["init_args"].pop("init_from") != plain["model"]["init_args"].pop("init_from")
        assert dense.pop("output_dir") != plain.pop("output_dir")
        for one, other in zip(dense["chain"], plain["chain"], strict=True):
            assert one["trainer"].pop("max_steps") == times * other["trainer"].pop("max_steps")
            decay = [step.get("model", {}).get("init_args", {}).get("optimizer", {}) for step in (one, other)]
            assert decay[0].pop("decay_steps", 0) == times * decay[1].pop("decay_steps", 0)
        for how in (dense, plain):  # one device or ranks, and what is only watched
            del how["trainer"]
        assert dense == plain


def test_each_starts_where_the_one_before_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    end = "runs/mini/random_dense"
    experiment = Study.read("no_experts")
    for recipes in experiment.prepare:
        whole: dict = {}
        for recipe in recipes.split():
            whole = merged(whole, _recipe(recipe))
        assert whole["model"]["init_args"]["init_from"] == end
        end = f"{whole['output_dir']}/{whole['chain'][-1]['name']}/weights"
    assert experiment.init_from == end == experiment.arms["dense_stage1"].weights


def test_its_arms_are_those_of_table_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    experiment, table5 = Study.read("no_experts"), Study.read("table5")
    twins = {"b": "b_two_step", "c": "c_literal", "c_soft": "c_soft"}
    for name, twin in twins.items():
        assert experiment.settings_of(f"dense_{name}", 3) == table5.settings_of(twin, 3)
        assert experiment.arms[f"experts_{name}"].weights_of == ("table5", twin)
    assert (experiment.recipes, experiment.evaluations) == (table5.recipes, table5.evaluations)


def test_the_preset_is_mini_without_its_generation_expert(tmp_path: Path) -> None:
    for preset in ("mini", "mini_dense"):
        assert write_base(tmp_path / preset, preset=preset)
        assert not write_base(tmp_path / preset, preset=preset), "already there"
    mini, dense = (read_config(tmp_path / preset) for preset in ("mini", "mini_dense"))
    assert dense == replace(mini, decoder=replace(mini.decoder, separate_experts=False))
    both, one = (load_file(tmp_path / preset / "model.safetensors") for preset in ("mini", "mini_dense"))
    assert set(one) == {name for name in both if not is_generation_parameter(name)}
    with pytest.raises(UserError, match=r"mini base --output \S+random_dense --preset mini_dense"):
        check_start(str(tmp_path / "random_dense"))


@pytest.mark.slow
def test_a_dense_chain_on_two_sharded_ranks(mini_world: Path, tmp_path: Path) -> None:
    """Stage I, then the soft bridge; each rank holds half of the weights, and every weight of the decoder trains."""
    start = tmp_path / "random"
    write_base(start, preset="mini_dense")
    soft = json.dumps({"model": {"init_args": {"bridge": {"mode": "soft"}}}})
    stages = {"stage1": ["--trainer.limit_val_batches", "1"], "stage2": ["--config", soft]}
    for stage, more in stages.items():
        args = ["fit", "--config", f"experiments/mini/{stage}.yaml", *more, "--output_dir", str(tmp_path / stage)]
        args += ["--model.init_args.init_from", str(start), "--trainer.max_steps", "2", "--trainer.devices", "2"]
        args += ["--trainer.enable_progress_bar", "false", "--trainer.val_check_interval", "2"]
        args += ["--data.packing.token_budget", "800", "--data.num_workers", "0"]
        done = run_scone(*args, cwd=mini_world)
        assert done.returncode == 0, done.stderr
        end = tmp_path / stage / ("refined" if stage == "stage1" else "guidance") / "weights"
        before, after = (load_file(folder / "model.safetensors") for folder in (start, end))
        assert before.keys() == after.keys()
        assert not any(map(is_generation_parameter, after))
        layers = [name for name in after if ".layers." in name and name.startswith("language_model")]
        assert all(not after[name].equal(before[name]) for name in layers)
        assert read_config(end) == read_config(start)
        start = end
