"""The public names of `scone_pl`, and docs/python.md's example with a plain Trainer."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from running import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import scone_pl
from scone_pl.checkpoints.model import from_pretrained
from scone_pl.model.builder import SequenceBuilder
from scone_pl.training.curves import Curves, log_histogram, log_image
from scone_pl.training.module import SconeModule


def test_public_names_are_documented_and_resolve() -> None:
    text = (ROOT / "docs/python.md").read_text()
    assert [name for name in scone_pl.__all__ if f"`{name}`" not in text] == []
    assert all(getattr(scone_pl, name) is not None for name in scone_pl.__all__)
    assert set(scone_pl.__all__) <= set(dir(scone_pl))
    assert issubclass(scone_pl.BridgeGuidance, SconeModule)
    with pytest.raises(AttributeError, match="public names: SconePipeline"):
        scone_pl.Pipeline  # noqa: B018


def test_the_import_is_light() -> None:
    code = "import sys, scone_pl; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_the_documented_example(
    mini_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("experiments", "data_shards"):
        (tmp_path / name).symlink_to(mini_world / name)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    short = block.replace("max_steps=20", "max_steps=2").replace("val_check_interval=10", "val_check_interval=2")
    with caplog.at_level("WARNING", "scone_pl"):
        names: dict[str, Any] = {}
        exec(compile(short.replace("warmup_steps=5", "warmup_steps=2000"), "python.md", "exec"), names)
    assert "in 2 steps the learning rate reaches 0.1 % of lr" in caplog.text
    assert list((tmp_path / "previews").glob("*.png"))
    saved = from_pretrained("weights/mine").state_dict()
    trained = names["model"].model.state_dict()
    before = from_pretrained("experiments/mini/base_weights").state_dict()
    assert all(tensor.equal(trained[name]) for name, tensor in saved.items())
    assert any(not tensor.equal(before[name]) for name, tensor in saved.items())


class ImageLogger:
    """As Lightning's `WandbLogger`."""

    def __init__(self) -> None:
        self.images: list[tuple[str, int]] = []

    def log_image(self, key: str, images: list[np.ndarray], step: int | None = None) -> None:
        self.images.append((key, step or 0))
        assert images[0].shape == (8, 8, 3)


def test_images_reach_every_logger_that_shows_them(tmp_path: Path) -> None:
    tensorboard, other = TensorBoardLogger(tmp_path, name="", version="tb"), ImageLogger()
    csv = CSVLogger(tmp_path, name="", version="csv")
    log_image([tensorboard, csv, other], "previews", np.zeros((8, 8, 3), np.uint8), 7)
    tensorboard.save()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [event.step for event in events.Images("previews")] == [7]
    assert other.images == [("previews", 7)]


def test_histograms_reach_every_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wandb(WandbLogger):
        """Without a server."""

        def __init__(self) -> None:
            self.logged: list[tuple[Mapping[str, Any], int | None]] = []

        def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
            self.logged.append((metrics, step))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Histogram=sorted))
    tensorboard, curves, online = TensorBoardLogger(tmp_path, "", "tb"), Curves(tmp_path, "", "curves"), Wandb()
    csv = CSVLogger(tmp_path, name="", version="csv")
    log_histogram([], "x", torch.arange(5.0), 3)
    log_histogram([tensorboard, curves, csv, online], "x", torch.arange(5.0), 3)
    for logger in (tensorboard, curves, csv):
        logger.save()
    for folder in ("tb", "curves"):
        events = EventAccumulator(str(tmp_path / folder))
        events.Reload()
        (event,) = events.Histograms("x")
        assert (event.step, event.histogram_value.num, event.histogram_value.max) == (3, 5, 4)
    assert online.logged == [({"x": [0, 1, 2, 3, 4]}, 3)]
    head, values = (tmp_path / "csv/metrics.csv").read_text().splitlines()
    row = dict(zip(head.split(","), map(float, values.split(",")), strict=True))
    assert (row["step"], row["x/q00"], row["x/q50"], row["x/q75"], row["x/q100"]) == (3, 0, 2, 3, 4)


@pytest.mark.parametrize("masked", [True, False])
def test_previews_show_the_bridge_s_maps_where_it_acts(masked: bool, tmp_path: Path) -> None:
    bridge = scone_pl.BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=5, threshold=0.2)
    sampling = scone_pl.SamplingConfig(num_inference_steps=1)
    base = str(ROOT / "experiments/mini/base_weights")
    module = scone_pl.BridgeFormation(base, bridge=bridge, mask_sampling=masked, sampling=sampling)
    module.model = from_pretrained(base)
    pipeline = scone_pl.SconePipeline(module.model, module.tokenizer)
    pixels = np.zeros((16, 16, 3), np.uint8)
    (prompt,) = pipeline.prompts([[pixels]], ["draw the red ring"], 16, 16)
    builder = SequenceBuilder(module.sequence_format)
    builder.begin_sample()
    for vae, vit in prompt.references:
        builder.add_vae(vae, reference=0)
        builder.add_vit(vit, reference=0)
    builder.add_text(list(prompt.text_ids or ()))
    builder.add_targets(torch.zeros(3, 16, 16), [0.0])
    csv = CSVLogger(tmp_path, name="", version="csv")
    trainer = SimpleNamespace(
        sanity_checking=False, loggers=[csv], global_step=7, default_root_dir=str(tmp_path), is_global_zero=True
    )
    scone_pl.Previews(num_samples=1).on_validation_batch_end(
        trainer, module, None, SimpleNamespace(sequence=builder.build()), 0
    )
    assert (tmp_path / "previews/step-000007.png").is_file()
    assert (tmp_path / "previews/bridge/step-000007.png").is_file() == masked
    csv.save()
    assert (tmp_path / "csv/metrics.csv").exists() == masked
