"""A step leaves no tensor behind: with FSDP2 and AdamW, as many are alive after each step as after the one before."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import pytest
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.training import sharding

COUNTING = """
import gc, json
import lightning.pytorch as pl
import torch
from torch._subclasses.fake_tensor import FakeTensor

class Count(pl.Callback):
    def __init__(self, file: str) -> None:
        self.file, self.counts = file, []
    def on_train_start(self, trainer, module) -> None:
        gc.collect()
        gc.freeze()  # what is there already need not be searched at each step
    def on_train_batch_end(self, trainer, *args):
        gc.collect()
        alive = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and not isinstance(o, FakeTensor)]
        self.counts.append([len(alive), sum(int(t.numel()) for t in alive)])
        with open(self.file, "w") as file:
            json.dump(self.counts, file)
"""


@pytest.mark.parametrize(
    ("version", "leaks"),
    [("2.9.1", False), ("2.10.0", True), ("2.11.0+cu130", True), ("2.12.1", True), ("2.13.0", False), ("2.1.2", False)],
)
def test_versions_that_leak(version: str, leaks: bool) -> None:
    assert bool(sharding.LEAKING.match(version)) == leaks


@pytest.mark.slow
def test_no_tensor_stays_and_a_torch_that_leaks_is_warned_of(
    mini_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sharding, "TORCH", "2.11.0")  # what is measured is the torch at hand
    (tmp_path / "counting_callback.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("counting_callback", None)
    monkeypatch.chdir(mini_world)
    monkeypatch.setattr("sys.argv", ["scone_pl"])
    file = tmp_path / "counts.json"
    callback = json.dumps([{"class_path": "counting_callback.Count", "init_args": {"file": str(file)}}])
    common = ["--config", str(ROOT / "experiments/mini/stage1.yaml"), "--chain", "null", "--data.num_workers", "0"]
    common += ["--output_dir", str(tmp_path / "run"), "--trainer.limit_val_batches", "0"]
    common += ["--trainer.overfit_batches", "1", "--trainer.max_steps", "8", "--trainer.callbacks", callback]
    common += ["--model.init_args.sharding.compute_dtype", "bfloat16", "--data.packing.token_budget", "400"]
    try:
        assert main(["fit", *common, "--trainer.enable_progress_bar", "false"]) == 0
    finally:
        gc.unfreeze()
    warning = "warning: torch 2.11.0 leaks memory at each step with FSDP2 and AdamW; use 2.9 or earlier, or 2.13"
    assert capsys.readouterr().err.count(warning) == 1
    counts = json.loads(file.read_text())
    assert len(counts) == 8
    settled = counts[3:]  # the first steps make the optimizer's state and the logger's sums
    assert max(number for number, _ in settled) - min(number for number, _ in settled) <= 2
    assert max(size for _, size in settled) - min(size for _, size in settled) < 1000
