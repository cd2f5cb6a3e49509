"""The runs of a study: the normal `fit`, resumable, kill-safe, and never of other data than they began with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from running import ROOT

from scone_pl.errors import UserError
from scone_pl.files import read_json
from scone_pl.study import training
from scone_pl.study.result import collect
from scone_pl.study.run import _whole, check_evaluations, folder_of, prepare, run
from scone_pl.study.runner import jobs_of, run_all, run_study, sources_of
from scone_pl.study.spec import FOLDER, Study, merged
from scone_pl.training.runs import RunFolder
from scone_pl.worlds.shapes.evaluator import ShapesEvaluator

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def study(*arguments):
    """A command line."""
    return [sys.executable, "-m", "scone_pl", "study", *arguments]


def not_called(command):
    pytest.fail("trained")


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def small(mini_world, tmp_path, monkeypatch):
    """A folder with a study of two tiny arms."""
    for name in ("data_shards", "runs/mini"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(mini_world / name)
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    recipe = yaml.safe_load((ROOT / FOLDER / "recipes/stage2.yaml").read_text())
    recipe["data"]["packing"]["token_budget"] = 600
    (tmp_path / "stage2.yaml").write_text(yaml.safe_dump(recipe))
    steps = [{"name": "one", "trainer": {"max_steps": 2}}]
    bridge = {"source_layer": 0, "first_masked_layer": 1, "last_masked_layer": 5, "threshold": 0.1, "mode": "soft"}
    content = {
        "title": "Small",
        "question": "Does it run?",
        "init_from": "runs/mini/base",
        "recipes": ["stage2.yaml"],
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
    (folder / "small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return Study.read("small")


def with_changes(small, changes):
    """`small` with other keys in its file."""
    file = small.file
    file.write_text(yaml.safe_dump(merged(yaml.safe_load(file.read_text()), changes), sort_keys=False))
    return Study.read(small.name)


@pytest.mark.slow
def test_a_run_is_stopped_and_resumed(small):
    settings = {"checkpoint": {"every_n_steps": 5}, "chain": [{"name": "one", "trainer": {"max_steps": 80}}]}
    file = FOLDER / "small.yaml"
    content = yaml.safe_load(file.read_text()) | {"evaluations": {"main": {"per_task": 1}}}
    content["arms"] = {"plain": {"label": "plain", "settings": settings}}
    file.write_text(yaml.safe_dump(content))
    small = Study.read("small")
    (job,) = jobs_of(small, ["plain"], [0])
    fit = RunFolder(job.folder / "fit/one")
    command = study("run", "experiments/studies/small.yaml", "--seeds", "1", "--jobs", "1")
    runner = subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True)
    try:
        until(lambda: fit.last_snapshot)
        runner.terminate()
        assert runner.wait(60) == 128 + signal.SIGTERM
        fit.occupy().close()  # or it says that another run is using it
        reached = fit.last_snapshot.name
        assert not fit.weights.exists()
        assert "step-000000" < reached < "step-000080"
    finally:
        runner.kill()
    subprocess.run(command, env=ENVIRONMENT, check=True)
    log = (job.folder / "log.txt").read_text()
    assert f"checkpoints/{reached}" in log.split("state saved")[1]
    result = json.loads(Path("docs/evidence/small.json").read_text())["arms"]["plain"]["runs"][0]
    assert len(result["trained"]) == 2
    assert all(start["commit"] and start["versions"]["torch"] and start["seconds"] > 0 for start in result["trained"])
    assert result["seconds"]["training"] == sum(start["seconds"] for start in result["trained"])
    assert fit.finished_steps == 80


def test_a_child_ends_with_its_runner_however_that_ends(tmp_path):
    child = "import os, time; from scone_pl.study.runner import end_with; end_with(os.getppid()); " + (
        "open('ready', 'w').write(str(os.getpid())); time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    runner = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE)
    ready = tmp_path / "ready"
    until(lambda: ready.is_file() and ready.read_text())
    os.kill(int(ready.read_text()), signal.SIGHUP)  # as the terminal sends to all, when the runner is to say so
    runner.kill()
    runner.communicate(timeout=60)  # the child had the pipe's other end open


def test_a_signal_while_a_run_is_started_loses_no_child(small, monkeypatch):
    started = []

    def start(self):
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        os.kill(os.getpid(), signal.SIGHUP)
        return started[0]

    jobs = jobs_of(small, ["plain"], [0])
    monkeypatch.setattr(type(jobs[0]), "start", start)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    try:
        with pytest.raises(SystemExit) as stop:
            run_all(jobs, side_by_side=1)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stop.value.code == 128 + signal.SIGHUP
    assert [process.returncode for process in started] == [-signal.SIGTERM]


def test_what_changed_under_a_study_is_refused_at_once(small):
    (job,) = jobs_of(small, ["plain"], [0])
    changed = with_changes(small, {"evaluations": {"main": {"per_task": 2}}})
    with pytest.raises(UserError, match="small plain: recipes, evaluations or code changed since the start"):
        run(changed, "plain", 0, fit=not_called, expected=job.result)


def test_a_run_resumes_with_its_own_data_alone(small):
    calls = []
    folder = jobs_of(small, ["plain"], [0])[0].folder
    settings = _whole(small, "plain")
    for times in (1, 2):
        training.train(calls.append, ["fit"], settings, folder, folder / "fit/one/weights")
        starts = json.loads((folder / training.STARTS).read_text())["starts"]
        assert len(starts) == len(calls) == times
        assert set(starts[0]["data"]) == {"data_shards/mini/refined_single", "data_shards/mini/multi_candidate"}
    with pytest.raises(UserError, match=f"{folder}: the recipe changed .*; move that folder aside"):
        training.train(calls.append, ["fit"], {**settings, "previews": {}}, folder, folder / "fit/one/weights")
    here = Path("data_shards/mini").resolve()
    Path("data_shards").unlink()
    Path("data_shards/mini/multi_candidate").mkdir(parents=True)
    Path("data_shards/mini/multi_candidate/manifest.json").write_text("{}")
    Path("data_shards/mini/refined_single").symlink_to(here / "refined_single")
    with pytest.raises(
        UserError, match=f"{folder}: data_shards/mini/multi_candidate changed .*; move that folder aside"
    ):
        jobs_of(small, ["plain"], [0])
    assert len(calls) == 2


def test_recipes_that_were_prepared_are_prepared_again_only_if_unfinished(small):
    recipe = Path("prepared.yaml")
    recipe.write_text("output_dir: prepared\ntrainer: {max_steps: 9}\nchain: [{name: one}]\n")
    small = with_changes(small, {"prepare": ["prepared.yaml"]})
    calls = []

    def fit(command):
        calls.append(command)
        weights = Path("prepared/one/weights")
        weights.mkdir(parents=True)
        (weights / "training.json").write_text('{"steps": 9}')

    prepare(small, fit)
    prepare(small, fit)
    assert calls == [["fit", "--config", "prepared.yaml"]]
    recipe.write_text(recipe.read_text() + "model: {}\n")
    with pytest.raises(UserError, match=r"^prepared: the recipe changed"):
        prepare(small, fit)


def test_an_evaluation_of_a_bridge_needs_one(small):
    bridged = {"bridged": {"bridge": {"threshold": 0.0}}}
    with pytest.raises(UserError, match=r"^small plain, evaluations\.bridged: .* does not sample with"):
        run_study(with_changes(small, {"evaluations": bridged}), 1, not_called, jobs=1)
    small = with_changes(small, {"evaluations": bridged})
    check_evaluations(small, ["soft", "again"])
    small = with_changes(small, {"evaluations": {"both": {"sampling": {"attention_rebalancing": {}}}}})
    with pytest.raises(UserError, match=r"small soft, evaluations\.both: attention_rebalancing and bridge both"):
        check_evaluations(small, ["soft"])
    small = with_changes(small, {"evaluations": {"bridged": {"bridge": {"drop_blocked": True}}}})
    with pytest.raises(UserError, match=r"small again, evaluations\.bridged: bridge\.drop_blocked needs"):
        check_evaluations(small, ["again"])
    given = {"source_layer": 0, "first_masked_layer": 1, "last_masked_layer": 5, "threshold": 2.0}
    masked = ShapesEvaluator(mask="given", bridge=given, per_task=1).evaluate(Path("runs/mini/base"), Path("unused"))
    assert (masked["mask"], masked["blocked_share"]) == (True, 1.0), "no similarity reaches 2"
    with pytest.raises(UserError, match=r"^runs/mini/base: bridge .* does not sample with"):
        ShapesEvaluator(bridge={"threshold": 0.0}, per_task=1).evaluate(Path("runs/mini/base"), Path("unused"))


def test_a_commit_is_dirty_with_files_that_git_does_not_know(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m first"):
        subprocess.run(["git", *command.split()], check=True)
    (tmp_path / "notes.txt").touch()
    clean = training.commit(tmp_path)
    assert len(clean) == 12
    (tmp_path / "scone_pl").mkdir()
    (tmp_path / "scone_pl/new.py").touch()
    assert training.commit(tmp_path) == f"{clean}-dirty"


def test_only_evaluations_that_are_missing_are_made(small, monkeypatch):
    """After an interruption, and where a study has gained or renamed one; other settings are evaluated anew."""
    evaluated = []

    def evaluate(self, weights, folder):
        if self.per_task == 2:
            raise KeyboardInterrupt
        evaluated.append(self.per_task)
        return {"pictures": self.per_task}

    def result_of(**counts):
        content = yaml.safe_load(small.file.read_text())
        content["arms"] = {"base": {"label": "base", "weights": "runs/mini/base"}}
        content["evaluations"] = {name: {"per_task": count, "label": name} for name, count in counts.items()}
        small.file.write_text(yaml.safe_dump(content))
        return read_json(run(Study.read("small"), "base", 0, fit=not_called), dict)

    monkeypatch.setattr(ShapesEvaluator, "evaluate", evaluate)
    monkeypatch.setattr("scone_pl.study.run.commit", lambda: f"commit{len(evaluated)}")
    monkeypatch.setattr("scone_pl.study.run.versions", lambda: {"torch": "1", f"new{len(evaluated)}": "2"})
    with pytest.raises(KeyboardInterrupt):
        result_of(first=1, second=2)
    assert result_of(first=1)["evaluations"] == {"first": {"pictures": 1}}
    renamed = result_of(third=3, also_first=1)
    assert renamed["evaluations"] == {"third": {"pictures": 3}, "also_first": {"pictures": 1}}
    assert evaluated == [1, 3]
    assert renamed["commit"] == "commit0, commit1"
    assert renamed["versions"] == {"torch": "1", "new0": "2", "new1": "2"}
    assert result_of(first=4)["evaluations"] == {"first": {"pictures": 4}}


def test_weights_are_evaluated_once_whichever_arms_and_studies_ask(small, monkeypatch):
    evaluated = []

    def evaluate(self, weights, folder):
        evaluated.append((weights.parent.name, self.per_task))
        return {"pictures": len(evaluated)}

    def fit(command):
        for step in ("zero", "one"):
            weights = Path(command[command.index("--output_dir") + 1]) / step / "weights"
            shutil.copytree("runs/mini/base", weights, dirs_exist_ok=True)
            (weights / "training.json").write_text(json.dumps({"step": step, "start": len(evaluated)}))
        return 0

    def result_of(study, arm, fit=not_called):
        return read_json(run(study, arm, 0, fit=fit), dict)["evaluations"]

    monkeypatch.setattr(ShapesEvaluator, "evaluate", evaluate)
    content = yaml.safe_load(small.file.read_text())
    (step,) = content["arms"]["plain"]["settings"]["chain"]
    content["arms"]["plain"]["settings"]["chain"] = [{**step, "name": "zero"}, step]
    content["arms"] |= {
        "again": {"label": "plain", "weights_of": ["small", "plain"]},
        "zero": {"label": "its first step", "weights_of": ["small", "plain", "zero"]},
        "last": {"label": "its last step", "weights_of": ["small", "plain", "one"]},
    }
    content["evaluations"] = {"main": {"per_task": 1}}
    small.file.write_text(yaml.safe_dump(content))
    small = Study.read("small")
    for arm in ("plain", "again", "last"):
        assert result_of(small, arm, fit) == {"main": {"pictures": 1}}
    assert result_of(small, "zero") == {"main": {"pictures": 2}}
    other = {
        **{key: content[key] for key in ("title", "question", "recipes")},
        "init_of": ["small", "plain"],
        "arms": {
            "untrained": {"label": "-", "untrained": True},
            "zero": {"label": "-", "weights_of": ["small", "plain", "zero"]},
        },
        "evaluations": {"few": {"per_task": 1}, "many": {"per_task": 2}},
    }
    small.file.with_name("other.yaml").write_text(yaml.safe_dump(other))
    other = Study.read("other")
    assert result_of(other, "untrained") == {"few": {"pictures": 1}, "many": {"pictures": 3}}
    assert result_of(other, "zero") == {"few": {"pictures": 2}, "many": {"pictures": 4}}
    assert evaluated == [("one", 1), ("zero", 1), ("one", 2), ("zero", 2)]
    other = with_changes(other, {"frontier": ["cpu_seconds", "DIS"], "evaluations": {"more": {"per_task": 3}}})
    assert result_of(other, "zero")["few"] == {"pictures": 5}  # costs are compared in runs made together
    fit(["--output_dir", str(folder_of(small, "plain", 0) / "fit")])  # trained again, with another result
    assert result_of(small, "again") == {"main": {"pictures": 8}}


@pytest.mark.slow
def test_runs_are_made_once_and_collected(small):
    command = study("run", "small", "--seeds", "1", "--jobs", "2")
    with pytest.raises(UserError, match="small has no arm agian; choose from plain, soft, again"):
        small.arm("agian")
    with pytest.raises(UserError, match="no weights in"):
        jobs_of(small, ["again"], [0])  # evaluates weights that do not exist yet
    assert sources_of(small, ["plain", "again"]) == {"small": ["soft"]}
    jobs = jobs_of(small, ["plain", "soft"], [0])
    run_all(jobs, side_by_side=2)
    first = [job.result.stat().st_mtime_ns for job in jobs]
    subprocess.run(command, env=ENVIRONMENT, check=True)
    assert [job.result.stat().st_mtime_ns for job in jobs] == first
    result = json.loads(Path("docs/evidence/small.json").read_text())
    assert set(result["arms"]) == {"plain", "soft", "again"}
    run = result["arms"]["soft"]["runs"][0]
    assert run["commit"]
    assert run["versions"]["torch"]
    assert run["trained"] == result["arms"]["again"]["runs"][0]["trained"]
    assert result["arms"]["again"]["runs"][0]["seconds"]["training"] == 0
    assert run["evaluations"]["main"]["mask"]
    assert not result["arms"]["plain"]["runs"][0]["evaluations"]["main"]["mask"]
    assert len(run["evaluations"]["layers"]["layers"]["generation"]["distinction_single_cross"]["auroc"]) == 6
    assert Path("docs/evidence/small_maps.png").is_file()
    result["arms"]["soft"]["runs"] *= 2
    kept = json.dumps(result)
    Path("docs/evidence/small.json").write_text(kept)
    printed = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout
    assert "3 already finished" in printed
    assert "small.json has 2 seeds and stays" in printed
    assert Path("docs/evidence/small.json").read_text() == kept
    assert Path("runs/evidence/partial/small.json").is_file()
    again = [read_json(job.result, dict) for job in run_study(small, 1, not_called, jobs=1)]
    assert collect(small, again)["arms"]["soft"]["runs"][0]["seed"] == 0
