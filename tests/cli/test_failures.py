"""Every failure ends: what somebody can do something about in one line, a mistake in the program with its traceback."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from running import ROOT
from torch.distributed.checkpoint.api import CheckpointException
from torch.utils.data import DataLoader, Dataset

from scone_pl import __main__
from scone_pl.cli import failures, verbs
from scone_pl.cli.failures import explain
from scone_pl.errors import UserError


def raised(act: Callable[[], Any]) -> BaseException:
    """What `act` raises."""
    try:
        act()
    except BaseException as error:  # noqa: BLE001
        return error
    raise AssertionError("nothing was raised")


class MisconfigurationException(Exception):  # noqa: N818
    """Known by its name: Lightning is not imported for it."""


def nested(depth: int) -> Any:
    return nested(depth + 1)


NO_METRIC = "Early stopping conditioned on metric `val/los` which is not available. Pass in or modify ..."
NO_LAUNCH = "The sizes `data_parallel_size=1` and `tensor_parallel_size=1` multiplied should equal the world size (2)."
KNOWN = {
    "other ranks": (lambda: (_ for _ in ()).throw(RuntimeError(NO_LAUNCH)), "not those of trainer.devices"),
    "no such metric": (
        lambda: (_ for _ in ()).throw(RuntimeError(NO_METRIC)),
        "trainer.callbacks EarlyStopping: Early stopping",
    ),
    "no such file": (lambda: os.open("/absent/file", 0), "/absent/file: No such file or directory"),
    "two files": (lambda: os.rename("/absent/a", "/absent/b"), "/absent/a -> /absent/b: No such file or directory"),
    "full": (lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device", "/x")), "/x: No space"),
    "a file is no folder": (lambda: os.mkdir("/dev/null/run"), "/dev/null/run: Not a directory"),
    "bytes": (lambda: os.open(b"/absent/file", 0), "/absent/file: No such"),
    "words only": (lambda: (_ for _ in ()).throw(ConnectionError("refused")), "refused"),
    "encoding": (lambda: b"\xff".decode(), "not utf-8 at byte 0"),
    "other encoding": (lambda: "é".encode("ascii"), "PYTHONIOENCODING=utf-8"),
    "depth": (lambda: nested(0), "nested too deeply"),
    "json": (lambda: json.loads("{"), "not JSON"),
    "yaml": (lambda: yaml.safe_load("a: [1"), "line 1"),
    "zip": (lambda: zipfile.ZipFile(__file__), "a file is damaged (File is not a zip file)"),
    "tar": (lambda: tarfile.TarFile(__file__), "a file is damaged"),
    "zlib": (lambda: zlib.decompress(b"no"), "a file is damaged"),
    "pickle": (lambda: (_ for _ in ()).throw(pickle.UnpicklingError("invalid load key")), "a file is damaged"),
    "library": (lambda: __import__("absent_library.part"), "pip install absent_library"),
    "of ours": (lambda: __import__("scone_pl.absent"), None),
    "memory": (lambda: (_ for _ in ()).throw(MemoryError()), "out of memory (host)"),
    "gpu memory": (lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried")), "CUDA out of"),
    "host memory": (lambda: torch.empty(2**60), "out of memory"),
    "lightning": (lambda: (_ for _ in ()).throw(MisconfigurationException("no such\nstrategy")), "no such strategy"),
    "mistake": (lambda: {}["a"], None),
    "mistaken value": (lambda: int("a"), None),
    "mistaken type": (lambda: 1 + "a", None),  # type: ignore[operator]  # on purpose
    "tensor": (lambda: torch.zeros(2) @ torch.zeros(3), None),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_failures_are_a_line_and_mistakes_are_not(name: str) -> None:
    act, expected = KNOWN[name]
    line = explain(raised(act))
    if expected is None:
        assert line is None
    else:
        assert expected in str(line)
        assert "\n" not in str(line)


@pytest.mark.parametrize(
    ("message", "package"),
    [
        ("Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip install -U 'wandb>=0.12.10'`", "wandb"),
        ("`DeviceStatsMonitor` cannot log CPU stats as `psutil` is not installed.", "psutil"),
        ("Install s3fs to access S3", "s3fs"),
        ("No module named 'yaml'", "PyYAML"),
    ],
)
def test_a_missing_library_is_named_with_its_installation(message: str, package: str) -> None:
    line = str(explain(ModuleNotFoundError(message)))
    assert "pip install " in line
    assert package in line.split("pip install ")[1]


def test_chains_of_any_shape_end_and_a_user_error_in_them_is_told() -> None:
    """Links by cause and by context, back and forth, in groups, in torch's reports on ranks: some are cycles."""
    rng = random.Random(0)
    kinds: list[Callable[[int], BaseException]] = [
        lambda i: OSError(errno.ENOSPC, "No space left on device", f"/file{i}"),
        lambda i: ValueError(f"value {i}"),
        lambda i: RuntimeError(f"run {i}"),
        lambda i: KeyError(i),
        lambda i: SystemExit(i),
        lambda i: UserError(f"line {i}\nwith a break"),
    ]
    told = {"UserError": 0, "cause": 0, "nothing": 0}
    for _ in range(600):
        links = [rng.choice(kinds[: rng.choice([2, 4, 6])])(i) for i in range(rng.randrange(1, 8))]
        if rng.random() < 0.3:
            links.append(CheckpointException("save", {0: (rng.choice(links), None)}))  # type: ignore[dict-item]  # any exception will do
        for link in links:
            link.__cause__ = rng.choice([None, None, *links])
            link.__context__ = rng.choice([None, *links])
        line = explain(links[-1])
        assert line is None or (isinstance(line, UserError) and "\n" not in str(line))
        reached, waiting = [], [links[-1]]
        while waiting:
            link = waiting.pop()
            if link not in reached:
                reached.append(link)
                waiting += [e for e in (link.__cause__ or link.__context__,) if e is not None]
                waiting += [inner for inner, _ in getattr(link, "failures", {}).values()]
        lines = {str(e) for e in reached if isinstance(e, UserError)}
        if lines:
            assert str(line) in lines
            told["UserError"] += 1
        elif isinstance(links[-1], OSError):
            assert str(line) == f"{links[-1].filename}: No space left on device; make room, or write elsewhere"
            told["cause"] += 1
        elif not any(isinstance(e, OSError) for e in reached):
            assert line is None
            told["nothing"] += 1
    assert min(told.values()) > 20


class Broken(Dataset[int]):
    """Fails in a worker."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("a.tar: is damaged"), "a.tar: is damaged"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "[Errno 28] No space left on device: '/x'"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), None),
        (KeyError("a"), None),
    ],
    ids=["UserError", "OSError", "an error that torch cannot make again", "a mistake"],
)
def test_what_a_data_worker_raised_is_told_without_its_traceback(error: Exception, expected: str | None) -> None:
    line = explain(raised(lambda: next(iter(DataLoader(Broken(error), num_workers=1)))))
    assert (str(line) if line is not None else None) == expected


def test_a_failure_in_a_thread_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.excepthook
    failures.report_threads()
    try:
        thread = threading.Thread(target=lambda: os.open("/absent/file", 0))
        thread.start()
        thread.join()
    finally:
        threading.excepthook = before
    assert capsys.readouterr().err == "warning: /absent/file: No such file or directory\n"


@pytest.mark.parametrize(("act", "status"), [(lambda: os.open("/absent/file", 0), 2), (lambda: {}["a"], None)])
def test_the_command_line_ends_with_a_line_or_raises(
    act: Callable[[], Any], status: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verbs, "run_command", lambda *_: int(act() is None))
    if status is None:
        with pytest.raises(KeyError):
            __main__.main(["export"])
        return
    assert __main__.main(["export"]) == status
    assert capsys.readouterr().err == "error: /absent/file: No such file or directory\n"
    monkeypatch.setenv("SCONE_TRACEBACK", "1")
    assert __main__.main(["export"]) == status
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("{scone} --help | true; exit ${{PIPESTATUS[0]}}", 141, ""),
        ("{scone} --help > /dev/full", 2, "error: "),
        ("{scone} --help >&-", 0, ""),
    ],
)
def test_an_output_that_is_not_read(command: str, status: int, message: str) -> None:
    """The pause lets the reader be gone before anything is written."""
    code = "import sys, time; time.sleep(0.3); from scone_pl.__main__ import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        ["bash", "-c", command.format(scone=f"{sys.executable} -c '{code}'")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == status, ended.stderr
    assert ended.stderr.startswith(message)
    assert ("No space left on device; make room" in ended.stderr) == bool(message)
    assert len(ended.stderr.splitlines()) == bool(message)


def test_a_value_that_only_a_library_refuses_is_told_from_a_mistake_here() -> None:
    there = raised(lambda: torch.optim.AdamW([]))
    assert isinstance(there, ValueError)
    assert failures.refused_by_library(there)
    assert not failures.refused_by_library(raised(lambda: read_header_of(None)))
    assert not failures.refused_by_library(UserError("said already"))


def read_header_of(file: Any) -> Any:
    """A mistake in this package: a wrong argument."""
    from scone_pl.checkpoints.safetensors_header import read_header

    return read_header(file)
