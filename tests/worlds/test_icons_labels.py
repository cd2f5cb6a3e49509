"""Images that a person labels, and the judge compared with the labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.files import read_json, write_json
from scone_pl.sampling.sampler import SampledLatents
from scone_pl.worlds.evaluate import Drawn
from scone_pl.worlds.icons.faults import FAULTS
from scone_pl.worlds.icons.labels import IMAGES, LABELS, agreement, read_labels, table, write_images
from scone_pl.worlds.icons.world import IconsConfig, fixed_set

DRAWN = ("the target", "distractors", "the empty scene")
CONFIG = IconsConfig(names=40)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """One image of each of `DRAWN`, of distinction episodes."""
    monkeypatch.setattr("scone_pl.worlds.icons.labels._COLUMNS", 2)
    episodes = fixed_set(1, tasks=["distinction_single_cross", "distinction_single_intra"], config=CONFIG)
    latents: Any = SampledLatents.__new__(SampledLatents)
    images = [FAULTS[name].answer(episode) for name in DRAWN for episode in episodes]
    drawn = [
        Drawn(episode, image.round().clip(0, 255).astype(np.uint8), latents)
        for image, episode in zip(images, 3 * episodes, strict=True)
    ]
    write_images(drawn, CONFIG, tmp_path)
    for one, read in zip(drawn, read_labels(tmp_path), strict=True):
        assert np.array_equal(one.image, read.image)
        assert (one.episode.key, read.verdict, read.chosen) == (read.episode.key, "", ())
    return tmp_path


def label(folder: Path, labels: list[tuple[str, str]]) -> None:
    content = read_json(folder / LABELS, dict)
    for entry, (verdict, chosen) in zip(content["images"], labels, strict=True):
        entry["verdict"], entry["chosen"] = verdict, [chosen]
    write_json(content, folder / LABELS)


def test_the_judge_is_compared_with_labels(folder, capsys):
    assert main(["icons", "agreement", "--labels", str(folder)])
    assert "no image has a verdict yet" in capsys.readouterr().err
    label(folder, [("none", "target")] * 2 + [("wrong_subject", "distractor")] * 2 + [("omission", "neither")] * 2)
    result = agreement(read_labels(folder))
    assert result["verdicts"]["none"] == {"none": 2}
    assert result["verdicts"]["wrong_subject"] == {"wrong_subject": 2}
    assert sum(result["verdicts"]["omission"].values()) == 2
    assert result["choices"]["target"] == [2, 2]
    assert result["choices"]["distractor"] == [0, 2]
    assert not main(["icons", "agreement", "--labels", str(folder)])
    assert "| target              |          2 |              100% |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verdict", "chosen", "message"),
    [("fine", "target", "no verdict 'fine'; choose from none"), ("none", "left", "chosen has 'left'; not target")],
)
def test_unknown_labels_are_refused(folder, verdict, chosen, message):
    label(folder, [(verdict, chosen)] * 6)
    with pytest.raises(UserError, match=message):
        read_labels(folder)
    write_json({"images": 3}, folder / LABELS)
    with pytest.raises(UserError, match="not as `icons label_images` writes it"):
        read_labels(folder)


def damaged(content: dict[str, Any], name: str) -> None:
    first = content["images"][0]
    edits: dict[str, Any] = {
        "key": lambda: first.update(key=3),
        "no such episode": lambda: first.update(key="test-0-nothing-1"),
        "verdict": lambda: first.update(verdict=["none"]),
        "chosen": lambda: first.update(chosen=[["target"]]),
        "too many": lambda: first.update(verdict="none", chosen=["target", "target"]),
        "no list": lambda: content.update(images=7),
        "world": lambda: content.update(world={"names": -1}),
    }
    edits[name]()


@pytest.mark.parametrize(
    "name", ["key", "no such episode", "verdict", "chosen", "too many", "no list", "world", "image", "small image"]
)
def test_damaged_labels_are_one_line(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = read_json(folder / LABELS, dict)
    if name == "image":
        (folder / IMAGES).write_bytes(b"no image")
    elif name == "small image":
        Image.new("RGB", (64, 8)).save(folder / IMAGES)
    else:
        damaged(content, name)
        write_json(content, folder / LABELS)
    assert main(["icons", "agreement", "--labels", str(folder)])
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: {folder}"), said
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_the_judges_choice_agrees_with_the_shipped_labels():
    labelled = read_labels(ROOT / "docs/icons/labels")
    result = agreement(labelled)
    assert table(result) in (ROOT / "docs/icons.md").read_text()
    right, targets = result["choices"]["target"]
    wrong, distractors = result["choices"]["distractor"]
    assert right / targets > 0.85
    assert wrong / distractors < 0.2


def test_all_shipped_labels_are_read():
    labelled = read_labels(ROOT / "docs/icons/labels")
    assert len(labelled) == 144
    assert all(one.verdict and bool(one.chosen) == one.episode.task.startswith("distinction") for one in labelled)
