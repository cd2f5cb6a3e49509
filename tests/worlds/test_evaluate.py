"""Scoring a checkpoint folder: report, tables, image grid."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from running import ROOT

from scone_pl.cli.verbs import run
from scone_pl.errors import UserError
from scone_pl.model.config import BridgeConfig
from scone_pl.sampling.sampler import SampledLatents
from scone_pl.worlds.evaluate import Drawn, bridge_of, kept_tokens
from scone_pl.worlds.gallery import gallery
from scone_pl.worlds.shapes.base import write_base
from scone_pl.worlds.shapes.world import World, fixed_set


def main(args: list[str]) -> int:
    """Runs a command of `mini`; an error raises."""
    return run(["mini", *args])


def answer(episode, blocked):
    """The perfect image, with a mask over a grid of 4 x 4 tokens a reference."""
    return Drawn(episode, episode.target, SampledLatents(torch.zeros(16, 48), (4, 4), blocked=blocked))


def test_kept_tokens_are_compared_with_the_box_of_the_target_subject():
    episode = World(0).sample("distinction_single_intra", 0)
    target = torch.zeros(4, 4, dtype=torch.bool)
    column = next(s for s in episode.candidates[0] if s.is_target).box[0] // 4
    target[1:3, column : column + 2] = True
    assert kept_tokens([answer(episode, (~target,))]) == {episode.task: {"precision": 1.0, "recall": 1.0}}
    everything, nothing = torch.zeros(4, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)
    assert kept_tokens([answer(episode, (everything,))]) == {episode.task: {"precision": 0.5, "recall": 1.0}}
    assert kept_tokens([answer(episode, (nothing,))]) == {episode.task: {"precision": 0.0, "recall": 0.0}}
    assert kept_tokens([answer(episode, ())]) == {}


def test_gallery_has_columns_for_the_bridge_only_where_there_is_a_mask():
    episodes = fixed_set(1)
    none = gallery([answer(e, ()) for e in episodes])
    some = torch.eye(4).bool()
    masked = gallery([answer(e, (some,) * len(e.references)) for e in episodes])
    assert none.dtype == np.uint8
    assert none.shape[0] == masked.shape[0]
    assert none.shape[1] < masked.shape[1]


@pytest.mark.parametrize("world", [{"references": 3}, {"references": 4}, {"naming": "colour"}, {"naming": "size"}])
def test_the_shipped_base_can_be_asked_anything_of_the_world(tmp_path, world):
    options = ["--per_task", "1", "--num_inference_steps", "2", "--progress", "false", "--world", json.dumps(world)]
    base = str(ROOT / "experiments/mini/base_weights")
    assert main(["evaluate", "--checkpoint", base, "--output", str(tmp_path), *options]) == 0
    report = json.loads((tmp_path / "scores.json").read_text())
    labels = {item["task_type"]: item["label"] for item in report["items"] if "label" in item}
    assert len(labels["distinction_multi_intra"]) == world.get("references", 2)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--per_task", "0", "--per_task is 0; it must be a whole number, from 1"),
        ("--num_inference_steps", "0", "num_inference_steps is 0; it must be a whole number, from 1"),
        ("--timestep_shift", "0", "timestep_shift is 0.0; it must be a finite number, more than 0"),
        ("--world", "{canvas: 32}", "world.canvas is 32, but this checkpoint's images have at most 16 pixels a side"),
    ],
)
def test_settings_out_of_range_are_named(option, value, says, tmp_path):
    base = str(ROOT / "experiments/mini/base_weights")
    with pytest.raises(UserError, match=says):
        main(["evaluate", "--checkpoint", base, "--output", str(tmp_path / "scores"), option, value])
    assert not (tmp_path / "scores").exists()


def test_a_sheet_of_no_episodes_is_refused(tmp_path):
    with pytest.raises(UserError, match="--per_task is 0; it must be a whole number, from 1"):
        main(["contact_sheet", "--per_task", "0", "--output", str(tmp_path / "sheet.png")])


def test_evaluate_and_report(tmp_path, capsys):
    write_base(tmp_path / "plain")
    write_base(tmp_path / "masked")
    bridge = BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=5, threshold=0.0)
    training = {"mask_sampling": True, "bridge": dataclasses.asdict(bridge)}
    (tmp_path / "masked/training.json").write_text(json.dumps(training))
    files = []
    for name in ("plain", "masked"):
        output = tmp_path / f"scores of {name}"
        options = ["--per_task", "2", "--num_inference_steps", "2", "--progress", "false"]
        assert main(["evaluate", "--checkpoint", str(tmp_path / name), "--output", str(output), *options]) == 0
        assert (output / "images.png").is_file()
        files.append(str(output / "scores.json"))
    reports = [json.loads(Path(file).read_text()) for file in files]
    assert [r["mask"] for r in reports] == [False, True]
    assert [bool(r["kept"]) for r in reports] == [False, True]
    assert all(r["pictures"] == 12 and 0 <= r["overall"] <= 10 for r in reports)
    capsys.readouterr()
    assert main(["report", "--scores", json.dumps(files), "--names", "[before, after]"]) == 0
    printed = capsys.readouterr().out
    assert "composition (COM)" in printed
    for table in printed.strip().split("\n\n"):
        assert len({len(line) for line in table.splitlines()}) == 1
    with pytest.raises(UserError, match="2 --scores and 1 --names"):
        main(["report", "--scores", json.dumps(files), "--names", "[before]"])


@pytest.mark.parametrize(
    "content", ["[]", "{", "{}", '{"tasks": 1}', '{"average": null, "failures": {}, "pictures": 0}', "\xff"]
)
def test_a_report_of_what_is_no_scores_file_is_one_line(content, tmp_path, capsys):
    file = tmp_path / "scores.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"scores\.json: "):
        main(["report", "--scores", f"[{file}]", "--names", "[a]"])


@pytest.mark.parametrize("content", ["[]", "{", '{"mask_sampling": true, "bridge": {"source_layer": "8"}}'])
def test_a_damaged_training_record_is_one_line(content, tmp_path):
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(UserError, match=r"training\.json"):
        bridge_of(tmp_path)
