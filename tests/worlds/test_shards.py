import json

import pytest
from PIL import Image
from running import ROOT

from scone_pl.cli.verbs import run
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.worlds.shapes.episode import SLOTS_BY_COUNT, TASKS
from scone_pl.worlds.shapes.questions import HUES
from scone_pl.worlds.shapes.shards import WORLD_SETS, WorldSet, world_samples, write_world
from scone_pl.worlds.shapes.world import SIZES as SIZE_WORDS
from scone_pl.worlds.shapes.world import WorldConfig
from scone_pl.worlds.shards import SETTINGS


def main(args: list[str]) -> int:
    """Runs a command of `mini`; an error raises."""
    return run(["mini", *args])


SIZES = {
    "questions": 12,
    "question_pairs": 6,
    "plain": 9,
    "base_single": 7,
    "refined_single": 4,
    "multi_candidate": 8,
    "multi_wide": 12,
    "validation": 12,
}
ARGS = [*(part for name, n in SIZES.items() for part in (f"--{name}", str(n))), "--progress", "false"]


def test_every_set_is_written_once(tmp_path, capsys):
    from scone_pl.data.shards import ShardSet

    assert main(["shards", "--output", str(tmp_path), *ARGS]) == 0
    assert "written" in capsys.readouterr().out
    kinds = {}
    for name in WORLD_SETS:
        shards = ShardSet(tmp_path / name)
        samples = list(shards)
        kinds[name] = {s.kind for s in samples}
        assert {s.metadata["task"] for s in samples} == set(WORLD_SETS[name].tasks)
    both = {"single", "multi"}
    assert kinds == {
        "questions": both,
        "question_pairs": {"multi"},
        "plain": {"single"},
        "base_single": {"single"},
        "refined_single": {"single"},
        "multi_candidate": {"multi"},
        "multi_wide": {"multi"},
        "validation": both,
    }
    before = (tmp_path / "base_single" / "manifest.json").stat().st_mtime_ns
    assert main(["shards", "--output", str(tmp_path), *ARGS]) == 0
    assert capsys.readouterr().out.count("already there") == len(SIZES)
    assert (tmp_path / "base_single" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="questions holds another data set"):
        main(["shards", "--output", str(tmp_path), *ARGS, "--seed", "1"])


def test_an_unfinished_set_is_written_again(tmp_path):
    options = {"world_set": WorldSet("base", TASKS[:1]), "samples": 3, "progress": False}
    assert write_world(tmp_path / "set", **options).samples == 3
    (tmp_path / "set" / "manifest.json").unlink()
    assert write_world(tmp_path / "set", **options).samples == 3
    assert write_world(tmp_path / "set", **options) is None


def test_a_task_named_twice_comes_twice_as_often_without_repeats():
    samples = list(world_samples(WorldSet("base", (TASKS[0], TASKS[1], TASKS[0])), 9))
    assert len({s.key for s in samples}) == 9
    assert sum(s.metadata["task"] == TASKS[0] for s in samples) == 6


def test_sets_of_before_are_known_by_the_same_settings(tmp_path):
    write_world(tmp_path / "set", WORLD_SETS["multi_candidate"], samples=4, progress=False)
    settings = json.loads((tmp_path / "set" / SETTINGS).read_text())
    assert list(settings) == [
        *("generation", "samples", "seed", "stream", "tasks", "form", "boxes", "config", "samples_per_shard")
    ]
    assert list(settings["config"]) == [
        *("canvas", "cell", "patches", "shapes", "candidates", "references", "similarity", "single_slot")
    ]
    write_world(tmp_path / "wide", WORLD_SETS["multi_wide"], samples=4, progress=False)
    with pytest.raises(UserError, match="another data set"):
        write_world(tmp_path / "set", WORLD_SETS["multi_wide"], samples=4, progress=False)
    with pytest.raises(UserError, match="another data set"):
        write_world(
            tmp_path / "set",
            WORLD_SETS["multi_candidate"],
            samples=4,
            config=WorldConfig(naming="size"),
            progress=False,
        )


def test_the_wide_set_has_every_kind_in_words_of_the_shipped_base():
    samples = list(world_samples(WORLD_SETS["multi_wide"], 240))
    assert len({s.key for s in samples}) == 240
    assert not {s.key for s in samples} & {s.key for s in world_samples(WORLD_SETS["multi_candidate"], 240)}
    tokenizer = Tokenizer.from_folder(ROOT / "experiments/mini/base_weights")
    seen = {}
    for sample in samples:
        assert tokenizer.encode(sample.instruction)
        words = {name.split()[-2] for name in sample.instruction.split(" on ")[0].split(" and ")}
        count = sum(candidate.name != "background" for candidate in sample.candidates[0])
        seen.setdefault((len(sample.references), count), set()).update(words)
    assert seen == {
        (1, 2): {*HUES, *SIZE_WORDS},
        (2, 2): {*HUES, *SIZE_WORDS},
        (1, 3): {"only", *SLOTS_BY_COUNT[3]},
        (1, 4): {"only", *SLOTS_BY_COUNT[4]},
        (3, 2): {"only", *SLOTS_BY_COUNT[2]},
        (4, 2): {"only", *SLOTS_BY_COUNT[2]},
    }


def test_contact_sheet(tmp_path):
    file = tmp_path / "sheet.png"
    assert main(["contact_sheet", "--output", str(file), "--per_task", "2"]) == 0
    with Image.open(file) as sheet:
        assert sheet.width > 2 * 3 * 16 * 6
