"""Chains: command lines, folders, what happens on a second start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from running import ROOT, run_python

from scone_pl.cli.lightning import parse
from scone_pl.cli.stages import commands
from scone_pl.errors import UserError
from scone_pl.training import chain
from scone_pl.training.chain import ChainStep, check_names, plan
from scone_pl.training.runs import RunFolder, weights_identity

CHAIN = [
    ChainStep(name="formation", trainer={"max_steps": 10}),
    ChainStep(name="guidance", model={"class_path": "scone_pl.training.stages.BridgeGuidance"}),
]


def test_plan_lays_overrides_between_config_and_command_line() -> None:
    args = ["fit", "--config", "a.yaml", "--config=b.yaml", "--trainer.max_steps", "2"]
    first, second = plan(args, CHAIN, "base", "out")
    assert first == [
        *args[:4],
        "--config",
        json.dumps({"trainer": {"max_steps": 10}}),
        "--trainer.max_steps",
        "2",
        "--model.init_args.init_from",
        "base",
        "--output_dir",
        "out/formation",
        "--chain",
        "null",
    ]
    assert second[-6:-2] == ["--model.init_args.init_from", "out/formation/weights", "--output_dir", "out/guidance"]


def test_steps_need_names_of_their_own() -> None:
    with pytest.raises(UserError, match="two steps are called guidance"):
        check_names([CHAIN[1], CHAIN[1]])
    with pytest.raises(ValueError, match="letters"):
        ChainStep(name="../up")


def _weights(folder: Path, steps: int) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "training.json").write_text(json.dumps({"steps": steps}))
    return str(folder)


def test_a_run_resumes_only_from_the_weights_it_started_from(tmp_path: Path) -> None:
    start = _weights(tmp_path / "before", 100)
    run = RunFolder(tmp_path / "run")
    assert run.finished_steps == 0
    assert run.begin(start) is None
    for name in ("step-000002", "step-000010", ".step-000020.partial"):
        (run.checkpoints / name).mkdir(parents=True)
    assert run.begin(start) == str(run.checkpoints / "step-000010")
    for given in (tmp_path / "other/step-000099", run.checkpoints / "step-000002"):
        with pytest.raises(UserError, match="has its own step-000010 to resume from"):
            run.begin(start, str(given))
    assert run.begin(start, str(run.checkpoints / "step-000010")) == str(run.checkpoints / "step-000010")
    identity = weights_identity(start)
    assert weights_identity(shutil.copytree(start, tmp_path / "copy")) == identity
    _weights(tmp_path / "before", 200)
    assert weights_identity(start) != identity
    with pytest.raises(UserError, match="started from other weights"):
        run.begin(start)
    _weights(run.weights, 7)
    assert run.finished_steps == 7


def test_a_run_that_began_at_a_snapshot_goes_on_by_the_same_command(tmp_path: Path) -> None:
    start, given = _weights(tmp_path / "before", 100), str(tmp_path / "other/step-000003")
    run = RunFolder(tmp_path / "run")
    assert run.begin(start, given) == given
    (run.checkpoints / "step-000004").mkdir(parents=True)
    assert run.begin(start, given) == run.begin(start) == str(run.checkpoints / "step-000004")
    with pytest.raises(UserError, match="has its own step-000004"):
        run.begin(start, str(tmp_path / "third/step-000003"))


@pytest.mark.slow
def test_one_run_a_folder(tmp_path: Path) -> None:
    """Locks are a process's own, so the second run is another one."""
    for name in (".weights.77.partial", ".weights.77.old"):
        (tmp_path / name).mkdir()
    (tmp_path / ".config.yaml.77.partial").touch()
    code = f"from scone_pl.training.runs import *; RunFolder(Path({str(tmp_path)!r})).occupy()"

    def second() -> subprocess.CompletedProcess[str]:
        return run_python("-c", code, cwd=ROOT)

    file = RunFolder(tmp_path).occupy()
    # Leftovers of a killed run go; what it was about to replace is there again.
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "weights"]
    assert "another run is using it" in second().stderr
    file.close()
    assert second().returncode == 0


@pytest.mark.parametrize(("ended", "status"), [(0, 0), (143, 143), (-9, 137)])
def test_a_step_s_status_is_a_shell_s(ended: int, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain.subprocess, "Popen", lambda command, env: SimpleNamespace(wait=lambda: ended))
    assert chain.run_in_own_process(["fit"]) == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_step_that_is_stopped_before_it_began_does_not_begin(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain.subprocess, "Popen", lambda command, env: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        chain.run_in_own_process(["fit"])
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) is before


def test_a_chain_of_one_stage_has_that_stage_s_settings(
    mini_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mini_world)
    monkeypatch.setattr("sys.argv", ["scone_pl"])
    config = str(ROOT / "experiments/mini/stage1.yaml")
    only = json.dumps({"chain": [{"name": "only", "trainer": {"max_steps": 7}}]})
    args = ["fit", "--config", config, "--config", only, "--output_dir", str(tmp_path)]
    (command,) = commands(args)
    settings = parse(command).settings
    assert settings.trainer.max_steps == 7
    assert settings.output_dir == str(tmp_path / "only")
    assert settings.chain is None
