"""`init` and `demo`, in a checkout and from a wheel in a clean folder."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.cli.project import demo_commands, recipes_folder
from scone_pl.cli.verbs import VERBS
from scone_pl.training.runs import weights_identity


def test_init_writes_a_project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "mine")]) == 0
    project = tmp_path / "mine"
    files = {file.relative_to(project).as_posix() for file in project.rglob("*") if file.is_file()}
    assert {"Makefile", "README.md", ".gitignore", "experiments/stage1.yaml", "experiments/mini/stage2.yaml"} <= files
    assert not [file for file in files if "photos" in file or file.endswith(".pyc")]
    copied = tmp_path / "mine/experiments/mini/base_weights"
    assert weights_identity(copied) == weights_identity(ROOT / "experiments/mini/base_weights")
    capsys.readouterr()
    assert main(["init", str(tmp_path / "mine")]) == 2
    assert "is there already and is not replaced" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other/README.md").write_text("mine")
    assert main(["init", str(tmp_path / "other")]) == 2
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["README.md"]


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(source: str, destination: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source)

    monkeypatch.setattr(shutil, "copy2", fail)
    assert main(["init", str(tmp_path / "mine")]) == 2
    line = f"error: {tmp_path}/mine/experiments: cannot be written (No space left on device); make room"
    assert capsys.readouterr().err.startswith(line)
    assert not (tmp_path / "mine/experiments").exists()


def test_the_starters_makefile_names_existing_commands(tmp_path: Path) -> None:
    assert main(["init", str(tmp_path)]) == 0
    for target in ("demo", "weights", "estimate", "stage1", "stage2", "evaluate"):
        lines = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for line in lines.splitlines():
            assert line.startswith("python -m scone_pl "), line
            assert line.split()[3] in VERBS
            configs = [word for word in line.split() if word.endswith(".yaml")]
            assert all((tmp_path / config).is_file() for config in configs)


def test_the_demo_names_files_that_exist_or_that_it_writes() -> None:
    commands = demo_commands()
    assert [command[0] for command in commands] == ["mini", "fit", "mini", "fit", "mini", "mini"]
    recipes = [word for command in commands for word in command if word.endswith(".yaml")]
    assert all((recipes_folder().parent / recipe).is_file() for recipe in recipes)


@pytest.mark.slow
def test_the_wheel_is_enough(tmp_path: Path) -> None:
    """Built, installed without the checkout, and run in an empty folder; libraries come from this environment."""
    source = tmp_path / "source"  # a build leaves files beside the sources
    for name in ("scone_pl", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True, cwd=tmp_path, timeout=300)
    (wheel,) = tmp_path.glob("scone_pl-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "scone_pl/experiments/mini/base_weights/model.safetensors" in names
    assert {f"scone_pl/cli/starter/{name}" for name in ("Makefile", "README.md", "gitignore")} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin/python"
    (site,) = (environment / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:  # a wheel of pure Python installs by being unpacked
        archive.extractall(site)
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries))
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    work = tmp_path / "work"
    work.mkdir()

    def run(*args: str) -> str:
        command = [str(python), "-m", "scone_pl", *args]
        done = subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = [str(python), "-c", "import scone_pl; print(scone_pl.__file__)"]
    printed = subprocess.run(where, cwd=work, env=clean, capture_output=True, text=True, check=True).stdout
    assert str(environment) in printed
    run("init", "mine")
    assert (work / "mine/experiments/stage2.yaml").is_file()
    assert "images:" in run("demo", "--quick")
    assert (work / "scone_demo/runs/mini/after/scores.json").is_file()
