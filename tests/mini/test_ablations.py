"""No ablation can rot: 7B overlays are built on the meta device, mini-world experiments have equal budgets."""

import dataclasses

import pytest
import yaml
from running import ROOT

from scone_pl.cli import SconeCLI, commands
from scone_pl.mini.evidence.spec import Experiment, merged
from scone_pl.mini.world import WorldConfig

LARGE = sorted((ROOT / "experiments/ablations").glob("*.yaml"))
TABLES = [f.stem for f in sorted((ROOT / "experiments/ablations/mini").glob("*.yaml")) if "arms:" in f.read_text()]


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
        bridges.append(cli.model.bridge)
        if overlay.stem.startswith(("table6", "table5_c", "soft", "quantile", "source")):
            assert cli.model.bridge is not None
    assert steps == 2000
    assert len(set(bridges)) == 1, "every step has the bridge that the file says"
    if overlay.stem == "table5_c_bridge":
        paper = {"source_layer": 8, "first_masked_layer": 9, "last_masked_layer": 15, "threshold": 0.88}
        described = dataclasses.asdict(bridges[0])
        assert described == {**described, **paper, "mode": "hard", "quantile": None, "hide_references_early": False}


@pytest.mark.parametrize("table", TABLES)
def test_experiments_parse_and_arms_have_equal_budgets(table, monkeypatch):
    monkeypatch.chdir(ROOT)
    experiment = Experiment.read(table)
    assert experiment.question
    for look in experiment.evaluations.values():
        WorldConfig(**look.world)
    budgets = {}
    for name, arm in experiment.arms.items():
        if arm.weights or arm.weights_of:
            continue
        content = merged(yaml.safe_load((ROOT / experiment.recipes[0]).read_text()), experiment.settings_of(name, 0))
        steps = sum(step["trainer"]["max_steps"] for step in content["chain"])
        rates = {step.get("model", {}).get("init_args", {}).get("optimizer", {}).get("lr") for step in content["chain"]}
        rates.add(content["model"]["init_args"]["optimizer"]["lr"])
        data = yaml.safe_dump([content["data"]["train"], content["data"]["packing"]])
        budgets[name] = (steps, tuple(sorted(rate for rate in rates if rate)), data)
    assert len(set(budgets.values())) <= 1, budgets
