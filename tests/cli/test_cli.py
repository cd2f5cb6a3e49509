"""What a person at the keyboard meets: help, and one line for each likely mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from running import ROOT, run_scone

from scone_pl.__main__ import main
from scone_pl.cli.stages import stages
from scone_pl.errors import UserError
from scone_pl.training.resume_settings import check_unchanged, recorded_settings

STAGE1 = str(ROOT / "experiments/mini/stage1.yaml")


@pytest.fixture(autouse=True)
def _elsewhere(mini_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mini_world)
    monkeypatch.setattr("sys.argv", ["scone_pl"])


def error_of(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The single line that these arguments end in."""
    assert main(list(args)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


def changed(tmp_path: Path, key: str, value: object) -> str:
    """The mini Stage I recipe with one key set."""
    content = yaml.safe_load(Path(STAGE1).read_text())
    *path, last = key.split(".")
    inner = content
    for name in path:
        inner = inner[name]
    inner[last] = value
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.init_args.lr", 1, "error: model: Option 'lr' is not accepted"),
        (
            "model.init_args.optimizer.lr",
            "fast",
            "error: model.optimizer.lr: Expected a float. Got value: fast",
        ),
        ("model.init_args.trainable", ["und"], "error: model.trainable: Must be one of 'understanding'"),
        (
            "model.class_path",
            "scone_pl.training.stages.Nope",
            "error: model: no stage Nope; choose from Composition",
        ),
        ("model.class_path", "BridgeGuidanc", "error: model: no stage BridgeGuidanc; did you mean BridgeGuidance?"),
        ("trainer.callbacks", [{"class_path": "Nope"}], "error: trainer.callbacks: no class Nope; give its class path"),
        ("data.pack", 1, "did you mean 'packing'?"),
        ("data.packing.tokenbudget", 1, "error: data.packing: Option 'tokenbudget' is not accepted; did you mean"),
        ("trainer.max_step", 1, "did you mean 'max_steps'?"),
        ("chain", [{"nam": "a"}], "did you mean 'name'?"),
        ("data.train", [{"path": "nowhere"}], "error: nowhere: no such folder"),
        ("data.train", ["nowhere"], "error: data.train: a data set is written {path: nowhere}"),
        ("model.init_args.init_from", "nowhere", "python -m scone_pl download ByteDance-Seed/"),
        (
            "model.init_args.bridge",
            {"source_layer": 5, "first_masked_layer": 2, "last_masked_layer": 5},
            "-1 <= source_layer < first_masked_layer",
        ),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(
    key: str, value: object, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = changed(tmp_path, key, value)
    line = error_of(capsys, "fit", "--config", file, "--output_dir", str(tmp_path / "out"))
    assert expected in line
    assert len(line) < 500


def test_missing_files_and_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nope.yaml" in error_of(capsys, "fit", "--config", "nope.yaml")
    assert "--trainer.max_stepz" in error_of(capsys, "fit", "--config", STAGE1, "--trainer.max_stepz", "3")
    assert "fit.model" in error_of(capsys, "fit")
    assert "no verb train" in error_of(capsys, "train")
    line = error_of(capsys, "validate", "--config", STAGE1, "--output_dir", str(tmp_path / "never_trained"))
    assert "no checkpoint folder" in line


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["fit", "--config", STAGE1, "--trainer.max_step", "3"], "--trainer.max_steps"),
        (["validate", "--config", STAGE1, "--trainer.limit_val_batch", "1"], "--trainer.limit_val_batches"),
        (["test", "--config", STAGE1, "--ckpt", "last"], ""),
        (["predict", "--config", STAGE1, "--output_di", "x"], "--output_dir"),
        (["estimate", "--config", STAGE1, "--trainer.max_step", "3"], "--trainer.max_steps"),
        (["estimate", "--config", STAGE1, "--device", "2"], ""),
        (["generate", "--checkpoint", "x", "--instructio", "y", "--output", "z.png"], "--instruction"),
        (["shards", "verify", "x", "--worker", "1"], "--workers"),
        (["shards", "verfy", "x"], "verify"),
        (["mini", "shards", "--outpu", "x"], "--output"),
        (["mini", "shard"], "shards"),
        (["layers", "--checkpoin", "x", "--data", "y"], "--checkpoint"),
        (["export", "run", "out", "--weight", "ema"], "--weights"),
        (["parity", "--folde", "x"], "--folder"),
        (["study", "run", "table5", "--seed", "1"], "--seeds"),
        (["judge", "--benchmark", "sconeeval", "--dat", "x"], "--data"),
        (["fti"], "fit"),
        (["evaluate", "--outpu", "x"], "--output"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_names_are_not_cut_short(typed: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, *typed)
    assert f"did you mean {meant}" in line or not meant


def test_a_stage_goes_by_its_short_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["fit", "--config", STAGE1, "--chain", "null", "--model", "BridgeGuidance", "--output_dir", str(tmp_path)]
    ((_, settings),) = stages(args)
    assert settings.model.class_path in ("scone_pl.training.stages.BridgeGuidance", "scone_pl.BridgeGuidance")
    assert settings.model.init_args.init_from == "experiments/mini/base_weights"
    line = error_of(capsys, "fit", "--config", STAGE1, "--model", "BridgeGidance")
    assert "BridgeGidance" in line
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model.help", "BridgeGuidance"])
    assert stop.value.code == 0
    assert "--model.bridge" in capsys.readouterr().out


def test_the_seed_that_decides_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "use --data.seed" in error_of(capsys, "fit", "--config", STAGE1, "--seed_everything", "7")


def test_7b_without_weights_says_what_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, "fit", "--config", str(ROOT / "experiments/stage2.yaml"))
    for part in ("runs/scone-7b/stage1/refined/weights", "ByteDance-Seed/BAGEL-7B-MoT", "experiments/mini/stage1.yaml"):
        assert part in line


def test_help_and_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["fit", "--help", "all"], ["fit", "--config", STAGE1, "--print_config"]):
        with pytest.raises(SystemExit) as stop:
            main(args)
        assert stop.value.code == 0
        printed = capsys.readouterr().out
        assert "output_dir" in printed
        assert "chain" in printed
    assert yaml.safe_load(printed)["model"]["init_args"]["init_from"] == "experiments/mini/base_weights"


@pytest.mark.slow
def test_the_other_verbs(mini_world: Path, tmp_path: Path) -> None:
    common = ["--config", STAGE1, "--output_dir", str(tmp_path), "--data.num_workers", "0"]
    common += ["--trainer.enable_progress_bar", "false"]
    fit = run_scone("fit", *common, "--trainer.max_steps", "1", "--data.packing.token_budget", "800", cwd=mini_world)
    assert fit.returncode == 0, fit.stderr
    found = run_scone("validate", *common, cwd=mini_world)
    assert found.returncode == 0, found.stderr
    assert "val/loss" in found.stdout
    one = ["--trainer.limit_predict_batches", "3", "--data.predict+={path: data_shards/mini/validation}"]
    predicted = run_scone("predict", *common, *one, cwd=mini_world)
    assert predicted.returncode == 0, predicted.stderr
    pictures = sorted((tmp_path / "refined/predictions").glob("*.png"))
    assert len(pictures) == 3
    tested = run_scone("test", *common, cwd=mini_world)
    assert tested.returncode == 2
    assert "data.test" in tested.stderr


@pytest.mark.slow
def test_what_would_silently_mean_something_else_is_refused(
    mini_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["fit", "--config", STAGE1, "--output_dir", str(tmp_path), "--data.num_workers", "0"]
    args += ["--trainer.enable_progress_bar", "false", "--data.packing.token_budget", "800"]
    assert run_scone(*args, "--trainer.max_steps", "1", cwd=mini_world).returncode == 0
    line = error_of(capsys, *args, "--trainer.max_steps", "2")
    first = Path(line.split()[1])
    assert first.parent == tmp_path
    assert "would train on to 2 steps, but" in line
    single = ["fit", "--config", str(first / "config.yaml"), "--trainer.max_steps", "2"]  # what the run left
    other_rate = "--model.init_args.optimizer.lr=0.5"
    assert "began with another model.optimizer" in error_of(capsys, *single, other_rate)
    assert "of trainer.strategy fully_sharded" in error_of(capsys, *single, "--trainer.strategy", "auto")
    assert "would round the weights" in error_of(capsys, *single, "--trainer.precision", "bf16-true")
    snapshot = str(next((first / "checkpoints").iterdir()))
    elsewhere = ["--output_dir", str(tmp_path / "other"), "--ckpt_path", snapshot]
    elsewhere += ["--model.init_args.init_from", str(first / "weights")]
    refused = run_scone(*single, *elsewhere, cwd=mini_world)
    assert refused.returncode == 2
    assert "goes with the weights that it started from" in refused.stderr
    given = run_scone("validate", *single[1:], "--ckpt_path", snapshot, cwd=mini_world)
    assert given.returncode == 0, given.stderr
    moved = run_scone("validate", *single[1:], "--trainer.limit_val_batches", "1", cwd=mini_world)
    assert moved.returncode == 0, moved.stderr
    assert f"weights: {first / 'weights'}" in moved.stderr
    capsys.readouterr()
    assert main([*single[:3], "--trainer.max_steps", "1", "--trainer.gradient_clip_val", "0.5"]) == 0  # it is finished
    assert "warning: trainer.gradient_clip_val: was 1.0 when " in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "[]", "model: 1", "model: {class_path: a}", "a: [", "\x00", "model: {init_args: 1}"]
)
def test_a_damaged_record_of_a_run_s_settings_is_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml: not the configuration of a run; move it aside"):
        recorded_settings(file)


def test_a_stage_may_be_recorded_by_any_of_its_paths(tmp_path: Path) -> None:
    file, content = tmp_path / "config.yaml", {"model": {"class_path": "", "init_args": {}}, "trainer": {}}
    for path in ("scone_pl.training.stages.BridgeGuidance", "scone_pl.BridgeGuidance"):
        content["model"] = {"class_path": path, "init_args": {}}
        file.write_text(yaml.safe_dump(content))
        check_unchanged(file, {**content, "model": {"class_path": "scone_pl.BridgeGuidance", "init_args": {}}})
    with pytest.raises(UserError, match=r"began with another model\.class_path"):
        check_unchanged(file, {**content, "model": {"class_path": "scone_pl.BridgeFormation", "init_args": {}}})


def test_every_step_s_data_is_looked_for_before_the_first_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(Path(STAGE1).read_text())
    content["chain"][1]["data"] = {"train": [{"path": "nowhere"}]}
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump(content))
    line = error_of(capsys, "fit", "--config", str(file), "--output_dir", str(tmp_path / "out"))
    assert "nowhere: no such folder" in line
    assert not (tmp_path / "out").exists()
