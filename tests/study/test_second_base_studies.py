"""The studies of SenseNova-U1: its twin's recipes are those of BAGEL's twin, but for its parts and without boxes."""

from __future__ import annotations

from typing import Any

import pytest
from running import ROOT

from scone_pl.model.bases import PRESETS
from scone_pl.model.config import BridgeConfig
from scone_pl.study.spec import Study, merged_files
from scone_pl.training.parts import check_parts

RECIPES = "experiments/studies/recipes"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def steps_of(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The stage's settings of every step of a chain."""
    own = recipe["model"]["init_args"]
    return [own | step.get("model", {}).get("init_args", {}) for step in recipe["chain"]]


def test_base_and_stage_1_differ_in_parts_and_boxes_alone() -> None:
    for recipe, twin in (
        (("experiments/mini/base.yaml", f"{RECIPES}/neo_base.yaml"), ("experiments/mini/base.yaml",)),
        (
            ("experiments/mini/stage1.yaml", f"{RECIPES}/dense_stage1.yaml", f"{RECIPES}/neo_stage1.yaml"),
            ("experiments/mini/stage1.yaml", f"{RECIPES}/dense_stage1.yaml"),
        ),
    ):
        ours, theirs = merged_files(recipe), merged_files(twin)
        assert ours["data"] == theirs["data"]
        assert [{**s, "model": None} for s in ours["chain"]] == [{**s, "model": None} for s in theirs["chain"]]
        for one, other in zip(steps_of(ours), steps_of(theirs), strict=True):
            changed = {name for name in one if one[name] != other.get(name)}
            assert changed <= {"init_from", "trainable", "bridge", "alignment"}
            assert (one["bridge"], one["alignment"]) == (None, {"weight": 0.0})
            check_parts(one["trainable"], PRESETS["mini_neo"]())


@pytest.mark.parametrize("name", ["neo_table5", "neo_layers"])
def test_arms_fit_the_base_and_start_where_stage_1_ends(name: str) -> None:
    study, end = Study.read(name), "runs/mini/random_neo"
    for recipes in study.prepare:
        whole = merged_files(tuple(recipes.split()))
        assert whole["model"]["init_args"]["init_from"] == end
        end = f"{whole['output_dir']}/{whole['chain'][-1]['name']}/weights"
    assert study.init_from == end
    layers = PRESETS["mini_neo"]().decoder.num_layers
    for arm in (name for name, arm in study.arms.items() if arm.trained):
        recipe = study.recipe_of(arm)
        assert recipe["model"]["init_args"]["init_from"] == end
        assert [step["trainer"]["max_steps"] for step in recipe["chain"]] == [120, 200], "as in table5"
        for step in steps_of(recipe):
            check_parts(step["trainable"], PRESETS["mini_neo"]())
            assert "alignment" not in step
            if step["bridge"] is not None:
                assert BridgeConfig(**step["bridge"]).last_masked_layer < layers


def test_arms_of_the_layer_study_differ_in_the_layer_alone() -> None:
    layers, table5 = Study.read("neo_layers"), Study.read("neo_table5")
    soft = steps_of(table5.recipe_of("c_soft"))
    for source in range(1, 5):
        for one, other in zip(steps_of(layers.recipe_of(f"layer{source}")), soft, strict=True):
            bridge = other["bridge"] | {"source_layer": source, "first_masked_layer": source + 1}
            assert one == other | {"bridge": bridge}
    assert layers.arms["layer0"].weights_of == ("neo_table5", "c_soft")


def test_arms_take_the_rates_of_table_5() -> None:
    ours, theirs = Study.read("neo_table5"), Study.read("table5")
    for arm in ("a_direct", "b_two_step", "c_literal", "c_soft"):
        rates = [[s["optimizer"] for s in steps_of(study.recipe_of(arm))] for study in (ours, theirs)]
        assert rates[0] == rates[1]
