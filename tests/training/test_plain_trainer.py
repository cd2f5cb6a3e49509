"""The public names of `scone_pl`, and docs/python.md's example with a plain Trainer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from running import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import scone_pl
from scone_pl.checkpoints.model import from_pretrained
from scone_pl.training.curves import log_image
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
        names: dict[str, object] = {}
        exec(compile(short.replace("warmup_steps=5", "warmup_steps=2000"), "python.md", "exec"), names)
    assert "in 2 steps the learning rate reaches 0.1 % of lr" in caplog.text
    assert list((tmp_path / "previews").glob("*.png"))
    saved = from_pretrained("weights/mine").state_dict()
    trained = names["model"].model.state_dict()  # type: ignore[attr-defined]
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
