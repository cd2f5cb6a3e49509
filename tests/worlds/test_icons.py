"""World 2: atlases, episodes, language, sets and commands."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scone_pl.cli.verbs import run
from scone_pl.data.shards import ShardSet
from scone_pl.data.tokenizer import word_tokenizer
from scone_pl.errors import UserError
from scone_pl.evaluation.scores import SCONEEVAL_TASKS
from scone_pl.worlds.icons.atlas import DRAWINGS, IDENTITIES, SHIPPED, Atlas, compact, read_atlas
from scone_pl.worlds.icons.episode import BASE
from scone_pl.worlds.icons.hues import HUES, NATURAL, tinted
from scone_pl.worlds.icons.language import vocabulary
from scone_pl.worlds.icons.scenes import PHRASES, STANDING, Scene
from scone_pl.worlds.icons.shards import ICON_SETS, icon_samples
from scone_pl.worlds.icons.world import SCALES, IconsConfig, IconWorld, fixed_set

CONFIGS = [
    IconsConfig(),
    IconsConfig(candidates=4, references=4),
    IconsConfig(candidates=3, references=3, naming="order", canvas=48),
    IconsConfig(unseen=True, naming="size"),
    IconsConfig(alike=("hue",)),
    IconsConfig(alike=("identity",), naming="hue", scenes=("table",)),
]


def write_atlas(folder: Path, names: list[str], side: int = 24) -> Path:
    """An atlas with a disc of its own colour for every drawing."""
    folder.mkdir()
    (folder / "names.json").write_text(json.dumps([{"name": name, "category": "Things"} for name in names]))
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    for k, drawing in enumerate(DRAWINGS):
        sheet = np.zeros((-(-len(names) // 32) * side, 32 * side, 4), dtype=np.uint8)
        for i in range(len(names)):
            row, column = divmod(i, 32)
            cell = sheet[row * side : (row + 1) * side, column * side : (column + 1) * side]
            cell[x**2 + 2 * y**2 < (side / 2 - k) ** 2] = (37 * i % 256, 80 * k, 200 - 5 * i % 200, 255)
        Image.fromarray(sheet).save(folder / f"{drawing}.webp", lossless=True)
    return folder


def test_the_shipped_atlas_is_whole_small_and_keeps_its_notices():
    atlas = read_atlas()
    assert len(atlas.names) == len(set(atlas.names)) == 750
    assert {cells.shape for cells in atlas.cells.values()} == {(750, 40, 40, 4)}
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 3_000_000
    notice = (SHIPPED / "NOTICE.txt").read_text()
    assert all(word in notice for word in ("Microsoft", "MIT License", "Google", "Apache"))


def test_another_atlas_of_any_size_serves_and_is_made_compact(tmp_path):
    names = [f"thing {i}" for i in range(40)]
    folder = write_atlas(tmp_path / "atlas", names)
    episode = IconWorld(0, IconsConfig(atlas=str(folder))).sample("distinction_multi_cross", 3)
    assert all(episode.name_of(s) in names and episode.name_of(s) in episode.instruction for s in episode.asked)
    compact(folder, tmp_path / "small", side=12)
    small = Atlas.read(tmp_path / "small")
    assert small.names == tuple(names)
    assert small.cells["noto"].shape == (40, 12, 12, 4)
    # Which names are held out depends on the names alone.
    fewer = Atlas.read(write_atlas(tmp_path / "fewer", names[:20]))
    both = [n for n in (Atlas.read(folder).names[i] for i in Atlas.read(folder).order) if n in fewer.names]
    assert both == [fewer.names[i] for i in fewer.order]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "flat.webp").unlink(), "flat.webp"),
        (lambda f: (f / "3d.webp").write_bytes(b"RIFF"), r"3d\.webp: not a readable image"),
        (lambda f: (f / "names.json").write_text("[]"), "0 names"),
        (lambda f: (f / "names.json").write_text('[{"name": 3}]'), "entry 0 must be an object with a name"),
        (lambda f: (f / "names.json").write_text('[{"name": "A cat"}, {"name": "a  cat"}]'), "'a cat' comes twice"),
        (lambda f: (f / "names.json").write_text(json.dumps([{"name": f"n{i}"} for i in range(33)])), "do not hold 33"),
        (lambda f: (f / "names.json").write_text(json.dumps([{"name": f"n{i}"} for i in range(5)])), "cell 4 is empty"),
        (lambda f: Image.new("RGBA", (100, 50)).save(f / "noto.webp"), "100 x 50 pixels do not hold 4 square cells"),
    ],
)
def test_a_damaged_atlas_is_named(spoil, says, tmp_path):
    folder = write_atlas(tmp_path / "atlas", ["a", "b", "c", "d"])
    spoil(folder)
    with pytest.raises(UserError, match=says):
        Atlas.read(folder)


def test_a_tint_changes_the_hue_and_neither_silhouette_nor_order_of_light():
    cell = read_atlas().cells["flat"][7]
    assert tinted(cell, NATURAL) is cell
    means = []
    for hue in HUES:
        other = tinted(cell, hue)
        np.testing.assert_array_equal(other[..., 3], cell[..., 3])
        means.append(other[cell[..., 3] > 128][:, :3].mean(0))
    assert [int(m.argmax()) for m in (means[0], means[2], means[4])] == [0, 1, 2]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: str(c.naming) + str(c.candidates) + "".join(c.alike))
def test_episodes_are_repeatable_and_obey_the_world(config):
    held_out = set(read_atlas().chosen(unseen=True))
    for task in SCONEEVAL_TASKS:
        episode = IconWorld(3, config, "test").sample(task, 5)
        again = IconWorld(3, config, "test").sample(task, 5)
        assert episode.instruction == again.instruction
        np.testing.assert_array_equal(episode.target, again.target)
        assert (episode.target != IconWorld(3, config, "validation").sample(task, 5).target).any()
        assert len(episode.candidates) == (config.references if "multi" in task else 1)
        assert {len(g) for g in episode.candidates} == {config.candidates if task.startswith("distinction") else 1}
        for group, asked in zip(episode.candidates, episode.asked, strict=True):
            (target,) = [s for s in group if s.is_target]
            assert asked.look == target.look
            assert asked.view in IDENTITIES[target.look.identity]
            assert (asked.view != target.view) == (len(IDENTITIES[target.look.identity]) == 2)
            assert len({s.look for s in group}) == len(group)
            if task.endswith("intra"):
                assert len({s.look.index for s in group}) == 1
            assert {s.look.index in held_out for s in group} == {config.unseen}
        for subject in (*episode.asked, *(s for g in episode.candidates for s in g)):
            left, top, right, bottom = subject.box
            assert 0 <= left < right <= config.canvas
            assert 0 <= top < bottom <= config.canvas


def test_standing_subjects_stand_and_are_as_large_as_their_depth_asks():
    for episode in fixed_set(6, config=IconsConfig(scenes=STANDING, references=3)):
        first, last = episode.scene.ground
        low, high = SCALES[len(episode.asked)]
        for subject in episode.asked:
            # Moved into the canvas, a tall subject may stand a little nearer than drawn.
            assert first - 1 <= subject.base <= last + episode.canvas // 3
            assert low <= subject.scale <= high
    scene = Scene("grass", 32, 1)
    assert (scene.draw()[: scene.horizon - 1, :, 2] > scene.draw()[scene.horizon + 2 :, :, 2].max()).all()


def test_a_name_says_which_candidate_is_the_target():
    for naming in ("place", "order", "hue", "size", "combination"):
        for index in range(8):
            episode = IconWorld(0, IconsConfig(naming=naming, candidates=3)).sample("distinction_single_intra", index)
            (group,) = episode.candidates
            target = next(s for s in group if s.is_target)
            words = episode.instruction.split()
            (name,) = episode.to_sample(boxes=False).metadata["names"]
            assert name in episode.instruction
            assert episode.name_of(target) in name
            if naming in ("hue", "combination"):
                assert [s for s in group if s.look.hue in words] == [target]
            if naming == "place":
                assert target.where in words
            if naming == "order":
                position = sorted(group, key=lambda s: s.centre).index(target)
                assert ("first", "second", "third")[position] in words
            if naming == "size":
                others = [s.scale for s in group if s is not target]
                assert target.scale > max(others) if "large" in words else target.scale < min(others)


def test_every_text_is_in_the_vocabulary_and_names_of_other_atlases_are_spelled():
    atlas = read_atlas()
    words = set(vocabulary(atlas.names))
    for name, icon_set in ICON_SETS.items():
        for sample in icon_samples(icon_set, 24, seed=0, config=IconsConfig(candidates=4, references=3)):
            assert set(f"{sample.instruction} {sample.answer}".split()) <= words, name
    tokenizer = word_tokenizer(vocabulary(atlas.names), spelled=True)
    assert len(tokenizer.encode("draw the cat on the grass")) == 6
    spelled = tokenizer.encode("draw the aardvark")
    assert len(spelled) > 3
    assert tokenizer.decode(spelled) == "draw the aardvark"
    with pytest.raises(UserError, match="is not in this model's vocabulary"):
        tokenizer.encode("draw the ñandú")


def test_questions_are_answered_by_what_is_in_the_image():
    world = IconWorld(0, IconsConfig(candidates=3), "questions")
    counted = dict.fromkeys(("describe", "what", "where", "how", "is"), 0)
    for sample in icon_samples(ICON_SETS["questions"], 120, seed=0, config=world.config):
        task, index = sample.key.split("-")[2:]
        assert (sample.target, sample.candidates) == (b"", None)
        (group,) = world.sample(task, int(index)).candidates
        names = [world.atlas.names[s.look.index] for s in group]
        first = sample.instruction.split()[0]
        counted[first] += 1
        if first == "describe":
            assert all(name in sample.answer for name in names)
        elif first == "where":
            assert sample.answer in {s.where for s in group}
        elif first == "is":
            asked = sample.instruction.removeprefix("is there a ")
            assert (sample.answer == "yes") == (asked in names)
    assert min(counted.values()) > 3


def test_the_commands_write_sets_sheets_and_refuse_what_is_wrong(tmp_path, capsys):
    sizes = [
        "--plain",
        "6",
        "--questions",
        "0",
        "--base_single",
        "0",
        "--refined_single",
        "0",
        "--multi_candidate",
        "0",
        "--contacts",
        "0",
    ]
    command = [
        "icons",
        "shards",
        "--output",
        str(tmp_path / "sets"),
        *sizes,
        "--validation",
        "6",
        "--progress",
        "false",
    ]
    assert run(command) == 0
    assert len(ShardSet(tmp_path / "sets/validation")) == 6
    assert run(command) == 0
    assert "already there" in capsys.readouterr().out
    assert run(["icons", "contact_sheet", "--output", str(tmp_path / "a.png"), "--per_task", "1"]) == 0
    assert Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())).width > 100
    for world, says in (
        ("{canvas: 8}", "world.canvas is 8"),
        ("{naming: colour}", "world.naming has no 'colour'"),
        ("{scenes: [moon]}", "world.scenes has no 'moon'"),
        ("{scenes: []}", "world.scenes is empty"),
        ("{alike: [hue], naming: hue}", "leave hue out of world.alike"),
        ("{alike: [hue, identity]}", "leave out identity"),
        ("{names: 100000}", "world.names is 100000, but this atlas has 675 seen names"),
        ("{names: 3}", "need 4 names"),
        ("{atlas: /absent}", "/absent/names.json"),
    ):
        with pytest.raises(UserError, match=says):
            run(["icons", "contact_sheet", "--output", str(tmp_path / "b.png"), "--world", world])
    assert not (tmp_path / "b.png").exists()


def test_larger_canvases_show_larger_subjects():
    small, large = (IconWorld(0, IconsConfig(canvas=c)).sample("composition_single", 4) for c in (32, 64))
    side = max(large.asked[0].box[2] - large.asked[0].box[0], large.asked[0].box[3] - large.asked[0].box[1])
    assert side == pytest.approx(large.asked[0].scale * BASE * 64, abs=1)
    assert replace(small.asked[0], box=(0, 0, 0, 0)).look == large.asked[0].look
    assert set(PHRASES) >= {small.scene.name}
