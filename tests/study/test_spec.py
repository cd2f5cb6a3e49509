"""What a study's file may say, and what of it names its runs and results."""

import re
from dataclasses import make_dataclass

import pytest
import yaml
from running import ROOT

from scone_pl.errors import UserError
from scone_pl.evaluation.evaluator import code_digest
from scone_pl.study.spec import FOLDER, MINI, Study, merged, study_names
from scone_pl.study.status import plan_text
from scone_pl.worlds import evaluator
from scone_pl.worlds.shapes.evaluator import ShapesEvaluator


def test_settings_merge_and_name_the_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert merged({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]}) == {"a": {"b": 3, "c": 2}, "d": [2]}
    table = Study.read("table5")
    arm = next(name for name, arm in table.arms.items() if arm.trained)
    assert table.settings_of(arm, 3)["data"]["seed"] == 1003
    assert table.identity(arm, "w") == table.identity(arm, "w")
    assert len({table.identity(arm, "w"), table.identity(arm, "v"), table.identity(arm, "w", quick=True)}) == 3
    with pytest.raises(UserError, match="no study nothing"):
        Study.read("nothing")


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes studies `wrong`, `other`, ..., and reads the first."""
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def write(changes, **others):
        for name, changed in {"wrong": changes, **others}.items():
            content = {"title": "Wrong", "question": "?", "arms": {"plain": {"label": "plain"}}, **changed}
            kept = {key: value for key, value in content.items() if value is not None}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump({"arms": {}, **kept}))
        return Study.read("wrong")

    return write


@pytest.mark.parametrize(
    "change",
    [
        {"recipes": ["two.yaml"]},
        {"arms": {"plain": {"label": "plain", "settings": {"trainer": {"max_steps": 3}}}}},
    ],
)
def test_what_decides_weights_names_their_folder(change, written, tmp_path):
    (tmp_path / "one.yaml").write_text("trainer: {max_steps: 1}\n")
    (tmp_path / "two.yaml").write_text("trainer: {max_steps: 2}\n")
    before = written({"recipes": ["one.yaml"]})
    identity = before.identity("plain", "w")
    reworded = written({"recipes": ["one.yaml"], "title": "New", "arms": {"plain": {"label": "new"}}})
    assert reworded.identity("plain", "w") == identity
    (tmp_path / "one.yaml").write_text("# what it is for\ntrainer:\n  max_steps: 1\n")
    assert before.identity("plain", "w") == identity
    (tmp_path / "one.yaml").write_text("trainer: {max_steps: 4}\n")
    assert before.identity("plain", "w") != identity
    (tmp_path / "one.yaml").write_text("trainer: {max_steps: 1}\n")
    assert written({"recipes": ["one.yaml"], **change}).identity("plain", "w") != before.identity("plain", "w")


def test_what_decides_scores_names_their_file(written, tmp_path, monkeypatch):
    def identity(**settings):
        return written({"evaluations": {"main": settings}}).evaluations_identity()

    before = identity(per_task=4)
    assert identity(per_task=4, label="reworded") == before
    assert identity(per_task=4, world={"similarity": 0.0}) == before
    others = ({"world": {"similarity": 0.5}}, {"sampling": {"preset": "fast"}})
    assert len({before, identity(per_task=5), *(identity(per_task=4, **other) for other in others)}) == 4
    harder = make_dataclass(
        "H", [("similarity", float, 0.1)], bases=(ShapesEvaluator.world_config,), frozen=True, kw_only=True
    )
    changes = ((ShapesEvaluator, "world_config", harder), (evaluator, "SAMPLING", {"num_inference_steps": 13}))
    for place, name, value in changes:
        with monkeypatch.context() as other:
            other.setattr(place, name, value)
            assert identity(per_task=4) != before
    copy = tmp_path / "scone_pl"
    for module in (*evaluator.CODE["score"], *ShapesEvaluator.code):
        (copy / module).parent.mkdir(parents=True, exist_ok=True)
        (copy / f"{module}.py").write_text((evaluator.PACKAGE / f"{module}.py").read_text() + "# only a comment\n")
    monkeypatch.setattr(evaluator, "PACKAGE", copy)
    assert identity(per_task=4) == before
    with (copy / "worlds/shapes/judge.py").open("a") as judge:
        judge.write("LIMIT = 0.5\n")
    code_digest.cache_clear()
    assert identity(per_task=4) != before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arms": None}, "has no arms"),
        ({"baseline": "plan"}, r"baseline plan is none of its arms, plain$"),
        ({"contrasts": [["main", "less"]]}, r"contrasts name less, none of its evaluations$"),
        ({"frontier": ["COM"]}, r"frontier is \['COM'\]; it must be \[a cost, a score\]$"),
        (
            {"frontier": ["COM", "DIS"], "evaluations": {"main": {"kind": "layers"}}},
            r"frontier needs an evaluation that is scored; leave it out$",
        ),
        ({"frontier": ["seconds", "COM"]}, r"frontier names seconds, no metric of main$"),
        ({"init_of": ["wrong", "plain"]}, r"it must be \[another study, its arm\]"),
        ({"init_of": ["table4"]}, r"it must be \[another study, its arm\]"),
        ({"arms": {"plain": {"label": "plain", "weights_of": ["table5"]}}}, r"plain\.weights_of is \['table5'\]"),
        ({"beside": {"others": ["table5"]}}, r"beside.others is \['table5'\]; it must be \[study, its baseline"),
        ({"question": None}, "question"),
    ],
)
def test_mistakes_in_a_study_are_named_before_it_runs(changes, says, written):
    with pytest.raises(UserError, match=says):
        written(changes)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "scores"}, "kind is 'scores'; choose from 'score', 'layers'$"),
        ({"mask": False}, "mask is False; choose from 'trained', 'off', 'given'$"),  # YAML's off without quotes
        ({"mask": "given"}, "mask is given, but bridge is not; say its layers and threshold$"),
        ({"stream": "base"}, "stream is 'base'"),
        ({"tasks": ["composition"]}, "tasks has no composition: choose from composition_single"),
        ({"world": {"likeness": 1}}, "world has no likeness: see WorldConfig$"),
        ({"world": {"candidates": 9}}, "world.candidates 9 and world.references 2 must be"),
        ({"bridge": {"treshold": 1}}, "bridge has no treshold: see BridgeConfig$"),
        ({"bridge": {"threshold": 1}, "mask": "off"}, "bridge changes nothing"),
        ({"sampling": {"steps": 4}}, "sampling has no steps: choose from attention_rebalancing, guidance_interval, "),
        ({"sampling": {"bridge": {}}}, "sampling has no bridge"),
        ({"sampling": {"step_cache": {"every": 2}}}, r"step_cache has no every; choose from interval, order"),
        ({"sampling": {"preset": "quick"}}, "preset is 'quick'; it must be one of published, fast$"),
        ({"sampling": {"preset": "fast"}, "kind": "layers"}, "sampling changes nothing where kind is layers"),
        ({"pertask": 1}, "evaluator shapes has no key pertask; its keys are label, kind"),
        ({"evaluator": "shape"}, "no evaluator shape; choose from shapes, "),
        ({"per_task": 0}, "per_task is 0; it must be at least 1"),
    ],
)
def test_mistakes_in_an_evaluation_are_named_before_training(settings, says, written):
    with pytest.raises(UserError, match=rf"studies/wrong\.yaml: evaluations\.main: .*{says}"):
        written({"evaluations": {"main": settings}})


def test_cycles_of_starts_are_named(written):
    with pytest.raises(UserError, match="init_of is a cycle, wrong from other from wrong;"):
        written({"init_of": ["other", "plain"]}, other={"init_of": ["wrong", "plain"]})
    with pytest.raises(UserError, match="no study nowhere"):
        written({"init_of": ["nowhere", "plain"]})


def test_files_that_are_no_studies(written, tmp_path):
    written({})
    folder = tmp_path / FOLDER
    (folder / "empty.yaml").write_text("")
    assert study_names() == ["empty", "wrong"]
    with pytest.raises(UserError, match=r"empty\.yaml: no key 'arms'"):
        Study.read("empty")
    for text, says in (("title: 'open\n", "line 1, column 8"), ("- arms\n", "must be a mapping")):
        (folder / "broken.yaml").write_text(text)
        with pytest.raises(UserError, match=rf"broken\.yaml: .*{says}") as raised:
            study_names()
        assert "\n" not in str(raised.value)


def test_a_quick_study_starts_from_quick_weights():
    """Of Stage I 40 % of 600 and 300 steps, of Stage II 10 % of 120 and 200, as their files say."""
    study = Study.read("icons_table5")
    text = plan_text(study, 1, ["c_soft"], quick=True)
    assert "base 240, refined 120 steps" in text
    assert "formation 12, guidance 20 steps" in text
    assert text.count("per_task 6") == 2
    whole = plan_text(study, 1, ["c_soft"])
    assert "base 600, refined 300 steps" in whole
    assert "formation 120, guidance 200 steps" in whole


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / FOLDER).glob("*.yaml")))
def test_a_label_gives_the_values_of_its_evaluation(name, monkeypatch):
    """A label is what readers see: `quantile 0.8` must not stand over a mask of quantile 0.6."""
    monkeypatch.chdir(ROOT)
    scales = yaml.safe_load((FOLDER / f"{name}.yaml").read_text()).get("scales", {})
    for study in [Study.read(name, scale) for scale in (MINI, *scales)]:
        for key, evaluation in study.evaluations.items():
            given = getattr(evaluation, "bridge", None) or {}
            numbers = {value for value in given.values() if isinstance(value, (int, float))}
            said = set(map(float, re.findall(r"\d+\.\d+", evaluation.label))) if given else set()
            assert said <= numbers, f"{key}: {evaluation.label}"
