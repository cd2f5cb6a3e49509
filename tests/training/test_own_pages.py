"""The examples of docs/own_stage.md and docs/own_loss.md train."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from running import ROOT
from safetensors.torch import load_file
from stage_runs import scalars

from scone_pl.__main__ import main
from scone_pl.training.parts import part_of

FIT = [
    *("fit", "--config", "experiments/mini/stage2.yaml", "--chain", "null", "--trainer.max_steps", "1"),
    *("--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "1"),
    *("--data.packing.token_budget", "600", "--data.num_workers", "0", "--previews.num_samples", "0"),
    *("--model.init_args.init_from", "runs/mini/base"),
]


@pytest.mark.parametrize(("page", "name"), [("own_stage", "Reading"), ("own_loss", "HingeFormation")])
def test_the_example_of_the_page_trains(
    page: str, name: str, mini_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL)
    module = f"my_{page.removeprefix('own_')}"
    (tmp_path / f"{module}.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(mini_world)
    run = tmp_path / "run"
    extra = ["--model.init_args.alignment", "{weight: 1.0}"] if page == "own_loss" else []
    assert main([*FIT, "--model.class_path", f"{module}.{name}", *extra, "--output_dir", str(run)]) == 0
    start, found = load_file("runs/mini/base/model.safetensors"), load_file(run / "weights/model.safetensors")
    changed = {part_of(tensor) for tensor in start if not found[tensor].equal(start[tensor])}
    if page == "own_stage":
        assert changed == {"connector", "vit"}
    else:
        assert changed >= {"understanding", "connector"}
        (value,) = scalars(run, "train/alignment")
        assert 0 < value < 1.5
    del sys.modules[module]
