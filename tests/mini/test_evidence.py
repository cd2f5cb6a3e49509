"""Statistics over seeds, the page made of results, and the runner: resumable, kill-safe, the normal `fit`."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from running import ROOT

from scone_pl.errors import UserError
from scone_pl.mini.evidence.metrics import METRICS, difference_of, estimate_of
from scone_pl.mini.evidence.page import filled, section, write_page
from scone_pl.mini.evidence.plot import plot
from scone_pl.mini.evidence.runner import collect, jobs_of, run_all, run_experiment, sources_of
from scone_pl.mini.evidence.spec import Experiment, merged
from scone_pl.mini.evidence.statistics import difference, estimate


def report(com, dis):
    tasks = {
        "composition_single": {"PF": com, "SC": com, "COM": com},
        "distinction_single_cross": {"PF": com, "SC": com, "COM": com, "DIS": dis},
    }
    kept = {"distinction_single_cross": {"precision": 0.9, "recall": 0.8}}
    failures = {"none": 6, "blending": 2}
    return {"mask": True, "tasks": tasks, "kept": kept, "failures": failures, "pictures": 8, "blocked_share": 0.25}


def result(name="demo", seeds=3):
    def runs(shift):
        versions = {"python": "3.11", "torch": "2"}
        return [
            {
                "seed": s,
                "evaluations": {"main": report(5 + shift + 0.1 * s, 6 + shift)},
                "seconds": {"training": 30.0, "evaluation": 10.0},
                "commit": "abc",
                "versions": versions,
            }
            for s in range(seeds)
        ]

    arms = {"one": ("arm one", "a_direct", 0.0), "two": ("arm two", "b_two_step_without_bridge", 1.0)}
    return {
        "experiment": name,
        "title": "A table",
        "question": "Which?",
        "findings": "One has {one.DIS}, two has {two.main.COM}.",
        "paper_table": "table5_stage2",
        "baseline": "one",
        "quick": False,
        "evaluations": {"main": {"kind": "score", "label": ""}},
        "arms": {k: {"label": l, "paper": p, "settings": {}, "runs": runs(s)} for k, (l, p, s) in arms.items()},
    }


def test_intervals_are_students():
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    assert found.half_width == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5))
    assert str(found) == "3.00 ± 1.96"
    assert str(estimate([2.0])) == "2.00"
    paired = difference([1.0, 2.0, 3.0], [0.0, 1.1, 1.9])
    assert paired.mean == pytest.approx(1.0)
    assert paired.excludes_zero
    assert not difference([1.0, 2.0], [2.0, 1.0]).excludes_zero


def test_metrics_are_read_off_reports():
    arm = result()["arms"]["one"]
    means = {name: estimate_of(arm, "main", name).mean for name in METRICS}
    assert means["COM"] == pytest.approx(5.1)
    assert means["overall"] == pytest.approx((5.1 + 6) / 2)
    assert (means["exact"], means["blending"], means["omission"]) == (75.0, 25.0, 0.0)
    assert (means["precision"], means["recall"], means["blocked"]) == (90.0, 80.0, 25.0)
    alone = {**arm, "runs": arm["runs"][:1]}
    assert difference_of(arm, alone, "main", "COM") is None


def test_the_page_is_made_of_the_numbers(tmp_path):
    folder = tmp_path / "evidence"
    folder.mkdir()
    (folder / "published.yaml").write_text((ROOT / "docs/evidence/published.yaml").read_text())
    (folder / "demo.json").write_text(json.dumps(result()))
    plot(result(), folder / "demo.png")
    text = write_page(folder).read_text()
    assert "5.10 ± 0.25" in text
    assert "**What came out.** One has 6.00 ± 0.00, two has 6.10 ± 0.25." in text
    assert "| arm two - arm one |" in text
    assert "| minus arm one | " in text
    assert "**1.00 ± 0.00**" in text
    assert "agrees" in text
    assert "8.15" in text
    assert "![demo](evidence/demo.png)" in text
    paired = difference_of(result()["arms"]["two"], result()["arms"]["one"], "main", "COM")
    assert filled("{two-one.main.COM}, {one.main-main.DIS}", result()) == f"{paired}, 0.00 ± 0.00"
    for wrong in ("{three.DIS}", "{one.main-other.DIS}", "{one.main.understanding.auroc.0}", "{one.nothing}"):
        with pytest.raises(UserError, match="findings name"):
            filled(wrong, result())
    with pytest.raises(UserError, match="holds no result"):
        write_page(tmp_path / "nowhere")
    assert "quick look" in section({**result(), "quick": True}, folder)


def test_costs_stand_beside_scores(tmp_path):
    folder = tmp_path / "evidence"
    folder.mkdir()
    keys = ("step_seconds", "step_memory", "step_memory_kept", "prefill_seconds", "sample_step_seconds", "cache_bytes")
    case = dict.fromkeys((*keys, "full_flops"), 4.0)
    cases = [{**case, "row": "mask", "blocked_percent": 50}]
    cases += [{**dict.fromkeys(case, 1.0), "row": "dropped", "blocked_percent": 50}]
    cases += [{"row": "later", "blocked_percent": 50, "error": "out of memory"}]
    settings = {"tokens": 9, "width": 8, "layers": 7, "threads": 1, "clock": "wall"}
    (folder / "demo_cost.json").write_text(json.dumps({"settings": settings, "cases": cases}))
    text = section(result(), folder)
    (line,) = [line for line in text.splitlines() if line.startswith("| 50 % blocked, dropped |")]
    assert line.count("0.25 |") == 7
    assert "left out" not in text


def test_the_committed_page_is_the_one_the_files_give(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    kept = ROOT / "docs/evidence"
    if not list(kept.glob("*.json")):
        pytest.skip("no result yet")
    copy = tmp_path / "evidence"
    copy.mkdir()
    for file in kept.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert write_page(copy).read_text() == (ROOT / "docs/evidence.md").read_text()


def test_settings_merge_and_name_the_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert merged({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]}) == {"a": {"b": 3, "c": 2}, "d": [2]}
    table = Experiment.read("table5")
    arm = next(name for name, arm in table.arms.items() if arm.trained)
    assert table.settings_of(arm, 3)["data"]["seed"] == 1003
    assert table.identity(arm, "w") == table.identity(arm, "w")
    assert len({table.identity(arm, "w"), table.identity(arm, "v"), table.identity(arm, "w", quick=True)}) == 3
    with pytest.raises(UserError, match="no experiment nothing"):
        Experiment.read("nothing")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arms": None}, "has no arms"),
        ({"baseline": "plan"}, r"baseline plan is none of its arms, plain$"),
        ({"init_of": ["wrong", "plain"]}, r"it must be \[another experiment, its arm\]"),
        ({"init_of": ["table4"]}, r"it must be \[another experiment, its arm\]"),
        ({"arms": {"plain": {"label": "plain", "weights_of": ["table5"]}}}, r"plain\.weights_of is \['table5'\]"),
        ({"question": None}, "question"),
    ],
)
def test_mistakes_in_an_experiment_are_named_before_it_runs(changes, says, tmp_path, monkeypatch):
    content = {"title": "Wrong", "question": "?", "arms": {"plain": {"label": "plain"}}, **changes}
    content = {key: value for key, value in content.items() if value is not None}
    content.setdefault("arms", {})
    folder = tmp_path / "experiments/ablations/mini"
    folder.mkdir(parents=True)
    (folder / "wrong.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        Experiment.read("wrong")


@pytest.fixture
def small(mini_world, tmp_path, monkeypatch):
    """A place with an experiment of two tiny arms."""
    for name in ("data_shards", "runs/mini"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(mini_world / name)
    folder = tmp_path / "experiments/ablations/mini"
    folder.mkdir(parents=True)
    recipe = yaml.safe_load((ROOT / "experiments/ablations/mini/stage2.yaml").read_text())
    recipe["data"]["packing"]["token_budget"] = 600
    (folder / "stage2.yaml").write_text(yaml.safe_dump(recipe))
    steps = [{"name": "one", "trainer": {"max_steps": 2}}]
    bridge = {"source_layer": 0, "first_masked_layer": 1, "last_masked_layer": 5, "threshold": 0.1, "mode": "soft"}
    experiment = {
        "title": "Small",
        "question": "Does it run?",
        "init_from": "runs/mini/base",
        "recipes": ["experiments/ablations/mini/stage2.yaml"],
        "arms": {
            "plain": {"label": "plain", "settings": {"chain": steps}},
            "soft": {
                "label": "soft",
                "settings": {"chain": steps, "model": {"init_args": {"bridge": bridge, "mask_sampling": True}}},
            },
            "again": {"label": "soft, mask off", "weights_of": ["small", "soft"]},
        },
        "evaluations": {
            "main": {"per_task": 1},
            "layers": {"kind": "layers", "per_task": 2},
        },
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(experiment))
    monkeypatch.chdir(tmp_path)
    return Experiment.read("small")


@pytest.mark.slow
def test_a_run_is_killed_resumed_and_skipped(small, capfd):
    command = [sys.executable, "-m", "scone_pl", "mini", "evidence", "--table", "small", "--seeds", "1", "--jobs", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with pytest.raises(UserError, match="small has no arm agian: choose from plain, soft, again"):
        small.arm("agian")
    with pytest.raises(UserError, match="no weights in"):
        jobs_of(small, ["again"], [0])  # looks at weights that are not there yet
    assert sources_of(small, ["plain", "again"]) == {"small": ["soft"]}
    jobs = jobs_of(small, ["plain", "soft"], [0])
    run_all(jobs, side_by_side=2)
    first = [job.result.stat().st_mtime_ns for job in jobs]
    killed = subprocess.Popen(command, env=environment)
    time.sleep(1)
    killed.terminate()
    assert killed.wait() != 0
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert [job.result.stat().st_mtime_ns for job in jobs] == first
    found = json.loads(Path("docs/evidence/small.json").read_text())
    assert set(found["arms"]) == {"plain", "soft", "again"}
    run = found["arms"]["soft"]["runs"][0]
    assert run["commit"]
    assert run["versions"]["torch"]
    assert run["evaluations"]["main"]["mask"]
    assert not found["arms"]["plain"]["runs"][0]["evaluations"]["main"]["mask"]
    assert len(run["evaluations"]["layers"]["layers"]["generation"]["distinction_single_cross"]["auroc"]) == 6
    assert Path("docs/evidence/small_maps.png").is_file()
    assert "3 finished before" in _again(command, environment)
    again = run_experiment(small, 1, side_by_side=1)
    assert collect(small, again)["arms"]["soft"]["runs"][0]["seed"] == 0


def _again(command, environment):
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
