"""A library that is not installed ends every verb in one line with the command that installs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT, start_python

FIT = ["fit", "--config", str(ROOT / "experiments/mini/stage1.yaml"), "--chain", "null"]
FIT += ["--data.num_workers", "0", "--trainer.max_steps", "1", "--trainer.enable_progress_bar", "false"]
QUICK = ("matplotlib",)
"""Of the cases below, what `make test` runs."""
LATE = ("s3fs",)
"""What a process that has imported all verbs has not imported."""
LOGGERS = "lightning.pytorch.loggers."
BASE = str(ROOT / "experiments/mini/base_weights")

CASES = {
    "wandb": (["wandb"], [*FIT, "--trainer.logger", f"{LOGGERS}WandbLogger"], "wandb"),
    "mlflow": (["mlflow", "mlflow_skinny"], [*FIT, "--trainer.logger", f"{LOGGERS}MLFlowLogger"], "mlflow"),
    "comet": (["comet_ml"], [*FIT, "--trainer.logger", f"{LOGGERS}CometLogger"], "comet"),
    "tensorboard": (["tensorboard", "tensorboardX"], FIT, "tensorboard"),
    "psutil": (["psutil"], [*FIT, "--trainer.callbacks", "[{class_path: DeviceStatsMonitor}]"], "psutil"),
    "s3fs": (["s3fs"], ["shards", "verify", "s3://bucket/set"], "s3fs"),
    "gcsfs": (["gcsfs"], ["shards", "verify", "gs://bucket/set"], "gcsfs"),
    "huggingface_hub": (
        ["huggingface_hub"],
        ["shards", "verify", "hf://datasets/a/b"],
        "huggingface_hub",
    ),
    "fsspec": (["fsspec"], ["shards", "verify", "http://127.0.0.1:9/set"], "fsspec"),
    "aiohttp": (["aiohttp"], ["shards", "verify", "http://127.0.0.1:9/set"], "aiohttp"),
    "pyarrow": (["pyarrow"], ["shards", "convert", "{folder}/rows", "{folder}/out"], "pyarrow"),
    "matplotlib": (["matplotlib"], ["layers", "--checkpoint", BASE, "--data", "absent"], "matplotlib"),
    "scipy": (["scipy"], ["study", "page"], "scipy"),
    "rich": (["rich"], ["estimate", "--config", "absent"], "rich"),
    "yaml": (["yaml"], FIT, "PyYAML"),
    "gradio": (["gradio"], ["app"], "'scone_pl[app]'"),
    "webdataset": (["webdataset"], ["mini", "shards", "--output", "{folder}/out"], "webdataset"),
    "safetensors": (["safetensors"], ["export", "absent", "{folder}/out"], "safetensors"),
}


BLOCKED = """
import importlib.metadata
import sys
missing = sys.argv.pop(1).split(",")
sys.modules.update(dict.fromkeys(missing))
find = importlib.metadata.Distribution.from_name.__func__
def from_name(cls, name):
    if name in missing:
        raise importlib.metadata.PackageNotFoundError(name)
    return find(cls, name)
importlib.metadata.Distribution.from_name = classmethod(from_name)
from scone_pl.__main__ import main
sys.exit(main())
"""


def run_without(libraries: list[str], args: list[str], output: Path, *, afresh: bool) -> int:
    """Exit status of the command line in a process where `libraries` cannot be imported.

    Only one started afresh has imported none of them yet.
    """
    if not afresh:
        process = start_python("-c", BLOCKED, ",".join(libraries), *args, cwd=Path.cwd(), stdout=output, stderr=output)
        return process.wait()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with output.open("wb") as file:
        command = [sys.executable, "-c", BLOCKED, ",".join(libraries), *args]
        return subprocess.run(command, env=environment, stdout=file, stderr=file, check=False).returncode


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_a_missing_library_is_one_line_with_its_installation(
    name: str, mini_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries, args, package = CASES[name]
    monkeypatch.chdir(mini_world)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/a.parquet").write_bytes(b"PAR1")
    args = [arg.replace("{folder}", str(tmp_path)) for arg in args]
    args += ["--output_dir", str(tmp_path / "run")] if args[0] == "fit" else []
    status = run_without(libraries, args, tmp_path / "output", afresh=name not in LATE)
    output = (tmp_path / "output").read_text()
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    assert "Traceback" not in output
    assert "pip install " in lines[0]
    assert package in lines[0].split("pip install ", 1)[1]
    assert status == 2
