"""Examples, previews and settings that the page starts with, and what the verb refuses before it reads weights."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.app.previews import find_previews
from scone_pl.app.scenes import mini_scenes, scenes_of
from scone_pl.app.settings import default_bridge, open_model, page_settings
from scone_pl.cli.app import MINI_WEIGHTS
from scone_pl.cli.project import recipes_folder
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.model.config import BridgeConfig
from scone_pl.sampling.pipeline import SconePipeline


def test_scenes_of_the_mini_world_name_each_candidate(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(ROOT / "experiments/mini/base_weights")
    scenes = mini_scenes(tmp_path)
    assert [(len(scene.files), len(scene.choices)) for scene in scenes] == [(1, 2), (1, 2), (2, 4)]
    files = [file for scene in scenes for file in scene.files]
    assert len(set(files)) == len(list(tmp_path.iterdir())) == 4
    for scene in scenes:
        assert len({text for _, text in scene.choices}) == len(scene.choices)
        for label, text in scene.choices:
            assert f"draw {label} on " in text
            assert tokenizer.encode(text)
        for file in scene.files:
            with Image.open(file) as image:
                assert image.size == (16, 16)


def test_scenes_of_a_data_set(tmp_path: Path) -> None:
    (scene, *_) = scenes_of(str(ROOT / "data_shards/tiny/multi"), tmp_path)
    ((label, text),) = scene.choices
    assert scene.files
    assert len(label) <= 60
    assert text.startswith(label.removesuffix("..."))


def test_previews_of_a_chain_come_in_the_order_of_its_steps(tmp_path: Path) -> None:
    drawn = [("zeta/previews/step-000020.png", 10), ("zeta/previews/step-000120.png", 20)]
    drawn += [("alpha/previews/step-000040.png", 30), ("alpha/previews/other.png", 1), ("alpha/step-000001.png", 2)]
    for name, time in drawn:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (time, time))
    assert [one.title for one in find_previews(tmp_path)] == ["zeta, step 20", "zeta, step 120", "alpha, step 40"]
    assert [one.title for one in find_previews(tmp_path / "alpha")] == ["step 40"]
    for folder, message in ((tmp_path / "absent", "no such folder"), (tmp_path / "alpha/previews", "has no previews")):
        with pytest.raises(UserError, match=message):
            find_previews(folder)


def test_settings_follow_the_model(pipeline: SconePipeline, tmp_path: Path) -> None:
    settings = page_settings(pipeline, None, tmp_path)
    assert settings.sampling.num_inference_steps == 12
    assert len(settings.scenes) == 3
    assert settings.bridge == default_bridge(6)
    assert default_bridge(28) == BridgeConfig()
    for layers in range(2, 40):
        assert default_bridge(layers).last_masked_layer < layers


@pytest.mark.parametrize(
    ("changed", "says"), [({"quantile": 0.8}, "trained with."), ({"adaptive_threshold": "otsu"}, "otsu")]
)
def test_the_title_says_what_a_slider_replaces(
    changed: dict[str, Any], says: str, pipeline: SconePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = BridgeConfig(source_layer=-1, first_masked_layer=0, last_masked_layer=5, **changed)
    monkeypatch.setattr(SconePipeline, "trained_bridge", bridge)
    assert says in page_settings(pipeline, None, tmp_path).title.partition("bridge: as it was ")[2]


def test_the_default_model_is_shipped_and_knows_its_bridge() -> None:
    pipeline = open_model(recipes_folder() / MINI_WEIGHTS, "cpu", None)
    assert pipeline.trained_bridge is not None
    assert not pipeline.urls


def refused(*args: str) -> None:
    assert main(["app", "--checkpoint", "/absent/weights", *args]) == 2


def test_the_verb_checks_before_it_reads_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        refused("--port", port)
        refused("--port", "0")
        refused("--host", "192.0.2.1", "--port", port)
        refused("--previews", str(tmp_path))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert f"--port {port}: in use on 127.0.0.1; choose another" in lines[0]
    assert "--port" in lines[1]
    assert "nothing can listen there" in lines[2]
    assert "has no previews" in lines[3]
