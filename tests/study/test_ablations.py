"""No ablation can rot: 7B overlays are built on the meta device, studies in the mini-world have equal budgets."""

import dataclasses

import pytest
import yaml
from running import ROOT

from scone_pl.cli.lightning import SconeCLI
from scone_pl.cli.stages import commands
from scone_pl.study.result import Result
from scone_pl.study.spec import Study

LARGE = sorted((ROOT / "experiments/ablations").glob("*.yaml"))
STUDIES = [f.stem for f in sorted((ROOT / "experiments/studies").glob("*.yaml"))]


@pytest.mark.parametrize("overlay", LARGE, ids=lambda f: f.stem)
@pytest.mark.slow
def test_7b_overlays_build(overlay, bagel_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["scone_pl"])
    for name in ("single_candidate_refined", "multi_candidate", "validation"):
        (tmp_path / "data_shards/scone_s2i" / name).mkdir(parents=True)
    start = ["--model.init_args.init_from", str(bagel_folder)]
    here = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    planned = commands(
        ["fit", "--config", str(ROOT / "experiments/stage2.yaml"), "--config", str(overlay), *here, *start]
    )
    steps, bridges = 0, []
    for command in planned:
        cli = SconeCLI([*command, *start], until="build")
        steps += cli.trainer.max_steps
        bridges.append(cli.model.settings.bridge)
        assert cli.model.settings.attention == "varlen", "the kernel of the recipe, whatever the bridge"
        if overlay.stem.startswith(("table6", "table5_c", "soft", "quantile", "drop", "source")):
            assert cli.model.settings.bridge is not None
    assert steps == 2000
    assert len(set(bridges)) == 1, "every step has the bridge that the file says"
    if overlay.stem == "table5_c_bridge":
        paper = {"source_layer": 8, "first_masked_layer": 9, "last_masked_layer": 15, "threshold": 0.88}
        described = dataclasses.asdict(bridges[0])
        assert described == {**described, **paper, "mode": "hard", "quantile": None, "hide_references_early": False}


@pytest.mark.parametrize("name", STUDIES)
def test_studies_parse_and_arms_have_equal_budgets(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = Study.read(name)
    assert study.question
    budgets = {}
    for key, arm in study.arms.items():
        if arm.trained:
            content = study.recipe_of(key)
            steps = [step["trainer"]["max_steps"] for step in content["chain"]]
            data = yaml.safe_dump([content["data"]["train"], content["data"]["packing"]])
            budgets[key] = (steps, data)
    first = next(iter(budgets.values()), None)
    assert all(budget == first for budget in budgets.values()), budgets


@pytest.mark.parametrize(("table", "rates"), [("table5", "rates"), ("table5_long", "rates_long")])
def test_every_arm_has_the_rate_that_the_rule_gives(table, rates, monkeypatch):
    monkeypatch.chdir(ROOT)
    tried = Result.read(ROOT / f"docs/evidence/{rates}.json")
    table, rates = Study.read(table), Study.read(rates)
    names = {trial.rpartition("_")[0] for trial in tried.arms}
    assert {"a_direct", "b_two_step", "c_literal", "c_soft"} <= names
    for name in names:
        scores = {}
        for trial in (t for t in tried.arms if t.rpartition("_")[0] == name):
            rate = rates.recipe_of(trial)["model"]["init_args"]["optimizer"]["lr"]
            scores[rate] = tried.estimate(trial, "main", "overall").mean
        assert len(scores) >= 3
        assert table.recipe_of(name)["model"]["init_args"]["optimizer"]["lr"] == max(scores, key=scores.get)
