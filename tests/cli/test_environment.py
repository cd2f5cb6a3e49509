"""A launcher's environment variables: as they are set by one, or one line."""

from __future__ import annotations

from typing import Any

import pytest
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.cli.environment import check_environment
from scone_pl.errors import UserError

NAMES = ("LOCAL_RANK", "RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
SLURM = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *SLURM):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("value", ["", "abc", "-1", "1.5", " 1", "\N{SUPERSCRIPT TWO}", "9" * 5000])
@pytest.mark.parametrize("name", [*NAMES, *SLURM])
def test_what_is_no_number_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"environment variable {name} is") as error:
        check_environment(1)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("devices", [2, "2", [0, 1]])
def test_a_local_rank_has_a_device(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_environment(devices)
    check_environment("auto")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"LOCAL_RANK is 2, but trainer\.devices gives 2 processes"):
        check_environment(devices)


def test_a_launcher_s_variables_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *SLURM):
        monkeypatch.setenv(name, "1")
    check_environment(2)


def test_the_command_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MASTER_PORT", "abc")
    assert main(["validate", "--config", f"{ROOT}/experiments/mini/stage1.yaml"]) == 2
    assert "environment variable MASTER_PORT is 'abc'" in capsys.readouterr().err
