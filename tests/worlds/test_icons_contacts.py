"""World 2's set of targets that show contacts, and that the other sets are what they were before it."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import ROOT

from scone_pl.cli.verbs import run
from scone_pl.errors import UserError
from scone_pl.evaluation.scores import SCONEEVAL_TASKS
from scone_pl.study.spec import Study
from scone_pl.worlds.icons.contacts import ContactWorld, grounded
from scone_pl.worlds.icons.episode import Episode
from scone_pl.worlds.icons.scenes import PHRASES, STANDING
from scone_pl.worlds.icons.shards import ICON_SETS, icon_samples
from scone_pl.worlds.icons.world import SCALES, IconsConfig, IconWorld

CONFIG = IconsConfig(names=80)
BEFORE = {
    "questions": ("5343d7d349f9", 148.05),
    "plain": ("e8bce67f97e5", 159.89),
    "base_single": ("a7e8f989e043", 152.86),
    "refined_single": ("2eebdd621192", 145.95),
    "multi_candidate": ("5df722f06013", 157.50),
    "validation": ("fcdbd17f761a", 155.72),
}
"""Of a set's first four samples: a hash of their texts, and the mean of their pixels."""


@pytest.mark.parametrize("name", BEFORE)
def test_other_sets_are_what_they_were(name: str) -> None:
    texts, light = [], []
    for sample in icon_samples(ICON_SETS[name], 4, seed=0, config=CONFIG):
        texts.append([sample.key, sample.instruction, sample.answer, sample.metadata])
        images = [image for image in (*sample.references, sample.target) if image]
        light += [np.asarray(Image.open(io.BytesIO(image))).mean() for image in images]
    assert hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12] == BEFORE[name][0]
    assert np.mean(light) == pytest.approx(BEFORE[name][1], abs=0.3)
    # Decides whether a set on disk is taken for another one.
    assert asdict(ICON_SETS[name]).keys() == {"stream", "tasks", "form"}


def overlap(episode: Episode) -> float:
    """Of the boxes of two subjects in a target, as a fraction of the smaller one."""
    one, other = (subject.box for subject in episode.asked)
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(width, 0) * max(height, 0) / min(areas)


def test_targets_stand_at_every_depth_and_hide_one_another() -> None:
    known, world = (cls(0, config, "multi") for cls, config in ((IconWorld, CONFIG), (ContactWorld, grounded(CONFIG))))
    depths: dict[bool, list[float]] = {True: [], False: []}
    hidden: dict[bool, list[float]] = {True: [], False: []}
    for task in SCONEEVAL_TASKS[2:]:
        for index in range(20):
            old, new = known.sample(task, index), world.sample(task, index)
            assert new.candidates == old.candidates
            assert new.names == old.names
            assert new.key == old.key.replace("multi-", "contacts-")
            assert new.scene.name in STANDING
            assert PHRASES[new.scene.name] in new.instruction
            low, high = SCALES[len(new.asked)]
            for episode in (old, new):
                if not episode.scene.horizon:
                    continue
                first, last = episode.scene.ground
                # Moved into the canvas, a tall subject may stand a little nearer than drawn.
                assert all(first - 1 <= s.base <= last + episode.canvas // 3 for s in episode.asked)
                depths[episode is new] += [(s.scale - low) / (high - low) for s in episode.asked]
                if len(episode.asked) == 2:
                    hidden[episode is new].append(overlap(episode))
    assert np.std(depths[True]) > 2 * np.std(depths[False])
    assert np.ptp(depths[True]) > 0.9
    assert np.mean(np.array(hidden[True]) > 0.1) > 0.3 > 0.05 > np.mean(np.array(hidden[False]) > 0.1)


def test_samples_name_what_they_ask_for_and_share_no_key() -> None:
    sets = [list(icon_samples(ICON_SETS[name], 12, seed=0, config=CONFIG)) for name in ("contacts", "multi_candidate")]
    for sample in sets[0]:
        assert all(name in sample.instruction for name in sample.metadata["names"])
        assert sample.metadata["scene"] in STANDING
        assert sample.candidates is None, "no boxes"
    assert not {s.key for s in sets[0]} & {s.key for s in sets[1]}


def test_a_world_without_a_ground_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    command = ["icons", "shards", "--output", str(tmp_path / "sets"), "--world", "{scenes: [sky, cloth]}"]
    with pytest.raises(UserError, match=r"none of grass, table, water.*--contacts 0"):
        run(command)
    assert not (tmp_path / "sets").exists()


def test_the_study_differs_from_what_it_compares_with_in_data_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = Study.read("icons_plausibility")
    for arm in ("b", "c"):
        (origin, name), trained = study.arms[arm].weights_of, f"{arm}_contacts"  # type: ignore[misc]  # both arms have one
        known, recipe = study.other(origin).recipe_of(name), study.recipe_of(trained)
        assert recipe["chain"] == known["chain"]
        assert {key for key in recipe if recipe[key] != known[key]} == {"data"}
        assert recipe["data"] == {**known["data"], "train": recipe["data"]["train"]}
        samples = {"refined_single": 3000, "multi_candidate": 8000, "contacts": 4000}
        sizes = [
            sum(source.get("weight", 1) * samples[Path(source["path"]).name] for source in one["data"]["train"])
            for one in (recipe, known)
        ]
        assert sizes[0] == sizes[1]
