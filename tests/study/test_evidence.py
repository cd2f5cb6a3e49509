"""Statistics over seeds, the page made of results, and what an experiment's file may say."""

from dataclasses import make_dataclass

import pytest
import yaml
from running import ROOT

from scone_pl.errors import UserError
from scone_pl.study import spec
from scone_pl.study.spec import Experiment, merged


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


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes experiments `wrong`, `other`, ..., and reads the first."""
    folder = tmp_path / "experiments/ablations/mini"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def write(changes, **others):
        for name, changed in {"wrong": changes, **others}.items():
            content = {"title": "Wrong", "question": "?", "arms": {"plain": {"label": "plain"}}, **changed}
            kept = {key: value for key, value in content.items() if value is not None}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump({"arms": {}, **kept}))
        return Experiment.read("wrong")

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
    reworded = written({"recipes": ["one.yaml"], "title": "New", "arms": {"plain": {"label": "new"}}})
    assert reworded.identity("plain", "w") == before.identity("plain", "w")
    assert written({"recipes": ["one.yaml"], **change}).identity("plain", "w") != before.identity("plain", "w")


def test_what_decides_scores_names_their_file(written, tmp_path, monkeypatch):
    def identity(**look):
        return written({"evaluations": {"main": look}}).looks_identity()

    before = identity(per_task=4)
    assert identity(per_task=4, label="reworded") == before
    assert identity(per_task=4, world={"similarity": 0.0}) == before
    assert len({before, identity(per_task=5), identity(per_task=4, world={"similarity": 0.5})}) == 3
    harder = make_dataclass("H", [("similarity", float, 0.1)], bases=(spec.WorldConfig,), frozen=True, kw_only=True)
    for name, value in {"WorldConfig": harder, "SAMPLING": {"num_inference_steps": 13}}.items():
        with monkeypatch.context() as other:
            other.setattr(spec, name, value)
            assert identity(per_task=4) != before
    copy = tmp_path / "scone_pl"
    for module in (*spec.LOOKING["score"], *spec.WORLD):
        (copy / module).parent.mkdir(parents=True, exist_ok=True)
        (copy / f"{module}.py").write_text((spec.PACKAGE / f"{module}.py").read_text() + "# only a comment\n")
    monkeypatch.setattr(spec, "PACKAGE", copy)
    assert identity(per_task=4) == before
    with (copy / "mini/judge.py").open("a") as judge:
        judge.write("LIMIT = 0.5\n")
    spec._code.cache_clear()
    assert identity(per_task=4) != before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arms": None}, "has no arms"),
        ({"baseline": "plan"}, r"baseline plan is none of its arms, plain$"),
        ({"contrasts": [["main", "less"]]}, r"contrasts name less, none of its evaluations$"),
        ({"init_of": ["wrong", "plain"]}, r"it must be \[another experiment, its arm\]"),
        ({"init_of": ["table4"]}, r"it must be \[another experiment, its arm\]"),
        ({"arms": {"plain": {"label": "plain", "weights_of": ["table5"]}}}, r"plain\.weights_of is \['table5'\]"),
        ({"question": None}, "question"),
    ],
)
def test_mistakes_in_an_experiment_are_named_before_it_runs(changes, says, written):
    with pytest.raises(UserError, match=says):
        written(changes)


@pytest.mark.parametrize(
    ("look", "says"),
    [
        ({"kind": "scores"}, "kind is 'scores'; choose from 'score', 'layers'$"),
        ({"mask": False}, "mask is False; choose from 'trained', 'off'$"),  # YAML's off without quotes
        ({"stream": "base"}, "stream is 'base'"),
        ({"tasks": ["composition"]}, "tasks has no composition: choose from composition_single"),
        ({"world": {"likeness": 1}}, "world has no likeness: see WorldConfig$"),
        ({"world": {"candidates": 9}}, "candidates 9 and references 2 must be"),
        ({"bridge": {"treshold": 1}}, "bridge has no treshold: see BridgeConfig$"),
        ({"bridge": {"threshold": 1}, "mask": "off"}, "bridge changes nothing"),
        ({"pertask": 1}, "pertask"),
    ],
)
def test_mistakes_in_a_look_are_named_before_it_is_trained_for(look, says, written):
    with pytest.raises(UserError, match=rf"mini/wrong\.yaml: evaluations\.main: .*{says}"):
        written({"evaluations": {"main": look}})


def test_starts_that_go_round_are_named(written):
    with pytest.raises(UserError, match="init_of goes round, wrong from other from wrong;"):
        written({"init_of": ["other", "plain"]}, other={"init_of": ["wrong", "plain"]})
    with pytest.raises(UserError, match="no experiment nowhere"):
        written({"init_of": ["nowhere", "plain"]})


def test_files_that_are_no_experiments(written, tmp_path):
    written({})
    folder = tmp_path / spec.FOLDER
    (folder / "empty.yaml").write_text("")
    assert Experiment.names() == ["wrong"]
    with pytest.raises(UserError, match=r"empty\.yaml: no key 'arms'"):
        Experiment.read("empty")
    for text, says in (("title: 'open\n", "line 1, column 8"), ("- arms\n", "must hold `key: value` lines")):
        (folder / "broken.yaml").write_text(text)
        with pytest.raises(UserError, match=rf"broken\.yaml: .*{says}") as raised:
            Experiment.names()
        assert "\n" not in str(raised.value)
