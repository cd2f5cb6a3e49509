"""A study at scale 7b: its recipes, overlays and evaluator, with tiny weights and a loopback judge."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from running import ROOT, run_scone
from tiny_checkpoints import TINY, write_folder

import scone_pl.cli.stages
import scone_pl.training.chain
from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.evaluation.judged import SconeEvalEvaluator
from scone_pl.files import read_json
from scone_pl.study.kept import keep
from scone_pl.study.run import folder_of, result_file, run
from scone_pl.study.runner import jobs_of, run_study
from scone_pl.study.spec import Overrides, Study, study_names

sys.path.insert(0, str(ROOT / "tests/evaluation"))
from fake_judge import serving

STUDIES = ROOT / "experiments/studies"
BENCHMARK = ROOT / "tests/evaluation/benchmarks/sconeeval"
LAYERS = 16
"""The recipe masks layers up to 15."""
SMALL = json.dumps({"max_size": 32, "min_size": 32})
FIT = (
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"),
    *("--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--trainer.enable_progress_bar", "false"),
    *("--model.init_args.attention", "split", "--data.num_workers", "0", "--data.packing.token_budget", "200"),
    *("--data.packing.vae_resize", SMALL, "--data.packing.vit_resize", SMALL, "--previews.num_samples", "0"),
)
PREDICT = (
    *("--model.init_args.sampling.num_inference_steps", "2", "--trainer.accelerator", "cpu"),
    *("--trainer.devices", "1"),
)


@pytest.fixture
def here(mini_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recipes, data and finished Stage I weights where the 7B recipes expect them."""
    config = dataclasses.replace(TINY, decoder=dataclasses.replace(TINY.decoder, num_layers=LAYERS))
    weights = write_folder(tmp_path / "runs/scone-7b/stage1/refined/weights", config)
    (weights / "training.json").write_text(json.dumps({"stage": "Composition", "steps": 2000}))
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    for name, source in {"single_candidate_refined": "refined_single", "multi_candidate": "multi_candidate"}.items():
        (tmp_path / "data_shards/scone_s2i").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data_shards/scone_s2i" / name).symlink_to(mini_world / "data_shards/mini" / source)
    (tmp_path / "data_shards/scone_s2i/single_candidate_base").symlink_to(mini_world / "data_shards/mini/base_single")
    (tmp_path / "data_shards/scone_s2i/validation").symlink_to(mini_world / "data_shards/mini/validation")
    (tmp_path / "docs/evidence").mkdir(parents=True)
    (tmp_path / "docs/evidence/published.yaml").symlink_to(ROOT / "docs/evidence/published.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["scone_pl"])
    return tmp_path


def judged(url: str, **more: object) -> dict[str, dict[str, object]]:
    """Settings of the evaluator: the tests' benchmark, an item a task, the judge at `url`."""
    judge = {"base_url": url, "model": "fake", "first_wait": 0.01}
    settings = {"data": str(BENCHMARK), "limit": 1, "rounds": 1, "scorings": 1, "judge": judge, "predict": [*PREDICT]}
    return {"sconeeval": {**settings, **more}}


@pytest.mark.slow
def test_an_arm_of_table_5_is_trained_generated_judged_and_collected(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scone_pl.training.chain, "run_in_own_process", main)  # another one would import for seconds
    with serving() as server:
        study = Study.read("table5", "7b", Overrides(evaluators=judged(server.url), fit=FIT))
        assert (study.seeds, study.jobs, study.threads) == (1, 1, 0)
        run(study, "c_literal", 0, fit=scone_pl.cli.stages.main)
        asked = len(server.requests)
        assert asked == 24
        jobs = run_study(study, 1, scone_pl.cli.stages.main, jobs=1, arms=["c_literal"])  # finished: nothing starts
        assert len(server.requests) == asked
    result = read_json(jobs[0].result, dict)
    assert result["training"]["stage"] == "BridgeGuidance"
    assert result["training"]["bridge"]["last_masked_layer"] == 15
    assert result["recipes"] == ["experiments/stage2.yaml", "experiments/ablations/table5_c_bridge.yaml"]
    assert [start["commit"] for start in result["trained"]] == [result["commit"]]
    report = result["evaluations"]["main"]
    assert report["complete"] == 1.0
    assert report["provenance"]["models"] == ["fake"]
    lines = keep(study, jobs)
    assert lines == ["runs/evidence/7b/results/table5.json   runs/evidence/7b/results.md"]
    page = (here / "runs/evidence/7b/results/table5.md").read_text()
    evaluator = SconeEvalEvaluator
    row = next(line for line in page.splitlines() if line.startswith("| (c) two steps"))
    for metric in ("PF", "COM", "DIS", "overall"):
        assert f"{evaluator.metrics[metric](report):.2f}" in row
    assert "paper (SconeEval, 14.6 B parameters)" in page


@pytest.mark.slow
def test_layers_are_read_from_data_with_and_without_boxes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scone_pl.training.chain, "run_in_own_process", main)
    (here / "prompts.jsonl").write_text(
        "".join(
            json.dumps({"key": str(n), "instruction": f"a {word}", "input_images": [str(image)]}) + "\n"
            for n, (word, image) in enumerate(zip("ab", sorted((BENCHMARK / "images").iterdir()), strict=False))
        )
    )
    for data, measures in (("data_shards/scone_s2i/multi_candidate", {"auroc", "effect"}), ("prompts.jsonl", set())):
        evaluators = {"layers": {"data": data, "samples": 2}}
        study = Study.read("figure11", "7b", Overrides(evaluators=evaluators))
        run(study, "stage1", 0, fit=scone_pl.cli.stages.main)
        (job,) = jobs_of(study, ["stage1"], [0])
        report = read_json(job.result, dict)["evaluations"]["layers"]
        assert measures <= report["layers"]["understanding"]["all"].keys()
        assert len(report["layers"]["generation"]["all"]["sensitivity"]) == LAYERS
        keep(study, [job], here / f"results of {len(measures)}")
        page = (here / f"results of {len(measures)}/figure11.md").read_text()
        assert "mean sensitivity" in page
        assert ("mean effect" in page) == bool(measures)


@pytest.mark.slow
def test_the_command_runs_two_arms_with_processes_of_their_own(here: Path) -> None:
    with serving() as server:
        options = ["--scale", "7b", "--arms", "[a_direct, c_literal]", "--evaluators", json.dumps(judged(server.url))]
        command = ["study", "run", "experiments/studies/table5.yaml", *options, "--", *FIT]
        for _ in range(2):
            done = run_scone(*command, cwd=here)
            assert done.returncode == 0, done.stdout + done.stderr
        assert "2 runs, 2 already finished" in done.stdout
    assert set(read_json(here / "runs/evidence/7b/results/table5.json", dict)["arms"]) == {"a_direct", "c_literal"}


def test_what_is_missing_shows_before_anything_is_trained(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def fit(command: list[str]) -> int:
        raise AssertionError(command)

    study = Study.read("table5", "7b")
    with pytest.raises(
        UserError, match=r"table5, evaluations\.main: data is '../SconeEval', no folder .* --evaluators"
    ):
        run_study(study, 1, fit, jobs=1)
    study = Study.read("table5", "7b", Overrides(evaluators={"sconeeval": {"data": str(BENCHMARK)}}))
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        run_study(study, 1, fit, jobs=1)
    with pytest.raises(UserError, match="judge has no modell: see JudgeConfig"):
        Study.read("table5", "7b", Overrides(evaluators={"sconeeval": {"judge": {"modell": "x"}}}))


@pytest.mark.parametrize("name", study_names(STUDIES, "7b"))
def test_every_study_of_scale_7b_is_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = Study.read(name, "7b")
    small = Study.read(name)
    assert study.title == small.title
    assert study.question != small.question, "with the layers, rates and masks of its own recipes"
    assert not study.findings, "those of the mini-world"
    steps = set()
    for key, arm in study.arms.items():
        if arm.trained:
            recipe = study.recipe_of(key)
            assert recipe["trainer"]["devices"] == 8
            steps.add(sum(step["trainer"]["max_steps"] for step in recipe["chain"]))
        elif arm.weights_of:
            assert study.other(arm.weights_of[0]).arm(arm.weights_of[1]).trained
    assert len(steps) <= 1, "equal budgets"


def test_where_the_judge_is_reached_decides_no_score(here: Path) -> None:
    def file(**judge: object) -> Path:
        settings = {"sconeeval": {"data": str(BENCHMARK), "judge": {"model": "a", **judge}}}
        study = Study.read("table5", "7b", Overrides(evaluators=settings))
        return result_file(study, folder_of(study, "stage1", 0))

    assert file(base_url="http://127.0.0.1:1/v1") == file(base_url="http://127.0.0.1:2/v1", concurrency=3)
    assert file(parameters={"max_tokens": 9}) != file()


def test_arguments_for_fit_name_another_run(here: Path) -> None:
    one, other = (
        Study.read("table5", "7b", Overrides(evaluators={"sconeeval": {"data": str(BENCHMARK)}}, fit=arguments))
        for arguments in ((), ("--model.init_args.optimizer.lr", "0.1"))
    )
    assert jobs_of(one, ["c_literal"], [0])[0].folder != jobs_of(other, ["c_literal"], [0])[0].folder
    assert jobs_of(other, ["c_literal"], [0])[0].command[-3:] == ["--", "--model.init_args.optimizer.lr", "0.1"]
