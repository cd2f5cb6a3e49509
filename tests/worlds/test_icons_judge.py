"""The judge of world 2 on labelled images: rendered answers with known faults, and its null tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from running import ROOT

from scone_pl.evaluation.scores import SCONEEVAL_TASKS
from scone_pl.files import read_json
from scone_pl.worlds.icons.faults import FAULTS, drawn, table, verdicts
from scone_pl.worlds.icons.judge import Verdict
from scone_pl.worlds.icons.scenes import STANDING
from scone_pl.worlds.icons.world import IconsConfig, IconWorld

EPISODES = [IconWorld(0, stream="validation").sample(task, index) for task in SCONEEVAL_TASKS for index in (1,)]


def given(episode, subjects) -> Verdict:
    return episode.judge(drawn(episode, subjects).astype(np.uint8))


def test_a_perfect_answer_is_perfect_and_plausible():
    for episode in EPISODES:
        verdict = episode.judge(episode.target)
        assert (verdict.failure, verdict.prompt_following) == ("none", 10)
        assert verdict.subject_consistency > 8.5
        assert verdict.presence == verdict.labels
        assert all(verdict.choices)
        assert verdict.plausible in (1.0, None)


def test_known_faults_get_their_verdict():
    rows = verdicts(EPISODES[2:4])
    for name, row in rows.items():
        # Rates over many images: `icons judge`.
        assert row["verdicts"].get(row["expected"], 0) >= row["images"] - 1, name
        if row["chosen"] is not None:
            assert abs(row["choice"] - row["chosen"]) <= 0.25, name
    assert table(rows).count("\n") == len(FAULTS) + 1


def test_the_documented_rates_are_those_that_were_measured():
    rows = read_json(ROOT / "docs/icons/judge.json", dict)["faults"]
    assert rows.keys() == FAULTS.keys()
    assert table(rows) in (ROOT / "docs/icons.md").read_text()


def test_what_is_too_faint_is_absent():
    """At 0.4 of its contrast its correlation, 0.81, would do, but its gain is below 0.45."""
    episode = EPISODES[2]
    empty = drawn(episode, []).astype(np.float32)
    for strength, expected in ((0.4, False), (0.6, True)):
        image = (empty + strength * (episode.target - empty)).round().astype(np.uint8)
        assert (episode.judge(image).presence == episode.labels) is expected


def test_a_subject_in_the_air_or_too_small_is_implausible():
    episode = IconWorld(0, IconsConfig(scenes=STANDING)).sample("composition_single", 1)
    (asked,) = episode.asked
    assert given(episode, [asked]).plausible == 1.0
    for change in ({"base": 12.0, "scale": 0.7}, {"base": 31.0, "scale": 0.55}):
        verdict = given(episode, [replace(asked, **change)])
        assert (verdict.plausible, verdict.failure) == (0.0, "none")


def test_another_scene_halves_prompt_following():
    episode = IconWorld(0, IconsConfig(scenes=("table",))).sample("composition_single", 0)
    other = replace(episode, scene=replace(episode.scene, name="sky"))
    verdict = episode.judge(drawn(other, other.asked).astype(np.uint8))
    assert (verdict.scene, verdict.prompt_following) == ("sky", 5.0)


def test_images_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="asks for"):
        EPISODES[0].judge(np.zeros((16, 16, 3), dtype=np.uint8))
