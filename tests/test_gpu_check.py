"""benchmarks/gpu_check where there is no GPU: its machinery, its page, and its code at toy sizes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import ROOT

sys.path.insert(0, str(ROOT))  # benchmarks/ is no part of the package

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import attention, page, running, sampling, steps, synchronisations
from benchmarks.gpu_check.report import Report, read_report
from benchmarks.gpu_check.settings import Settings
from benchmarks.gpu_check.stack import FULL_DEPTH, Prediction
from scone_pl.errors import UserError
from scone_pl.model.attention import SplitPlan

CPU = Settings(torch.device("cpu"), quick=True)
NOT_ON_THE_MACHINE = {
    *("annotated-types", "pydantic", "pydantic_core", "pytest-xdist", "execnet", "ruff", "typing-inspection", "tzdata"),
}
"""Packages of the project's environment that the machine of docs/gpu.md lacks, or may lack, and `make gpu-packages`
does not fetch; without those that only other packages' versions here need."""


def test_the_limits_keep_the_whole_check_under_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(step.limit for step in steps.STEPS.values()) <= steps.TOTAL_SECONDS
    for step in steps.STEPS.values():
        assert (ROOT / f"benchmarks/gpu_check/{step.module}.py").is_file()
    assert run_command("--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(steps.STEPS)


def run_command(*args: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gpu_check", *args])
        return command.main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what to do without CUDA")
@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), "no CUDA device here; on the CPU"),
        (("--device", "cuda:3"), "no CUDA device here"),
        (("--device", "cpu"), "needs --quick"),
        (("--device", "gpu"), "use cuda, cuda:1, ..., or cpu"),
    ],
)
def test_where_it_cannot_run_it_says_so_in_one_line(
    args: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(*args) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert expected in err


# ------------------------------------------------------------------ steps in processes
def run_fake(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int = 60) -> dict[str, Any]:
    """A step whose process runs `code`, which has `file`, the report's path."""
    monkeypatch.setattr(
        running, "command_of", lambda *args: [sys.executable, "-c", f"file = {str(args[-1])!r}\n{code}"]
    )
    with (tmp_path / "log").open("wb") as log:
        return running.run_step("fake", steps.Step("fake", limit, "a fake"), "cuda", quick=False, log=log)


WRITES = """
import json, os, pathlib, signal, subprocess, sys, time
def write(problems=(), skipped=""):
    report = {"values": {"rate": 3}, "problems": list(problems), "skipped": skipped}
    pathlib.Path(file).write_text(json.dumps(report))
"""


@pytest.mark.parametrize(
    ("code", "status", "problem"),
    [
        ("write()", "passed", None),
        ("write(skipped='needs CUDA')", "skipped: needs CUDA", None),
        ("write(problems=['too slow'], skipped='needs CUDA')", "failed", "too slow"),
        ("write(); sys.exit(3)", "failed", "ended with status 3"),
        ("write(); os.kill(os.getpid(), signal.SIGSEGV)", "failed", "ended with status -11"),
    ],
)
def test_how_a_step_went(
    code: str, status: str, problem: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run_fake(WRITES + code, tmp_path, monkeypatch)
    assert (found["status"], found["values"]) == (status, {"rate": 3})
    assert len(found["problems"]) == (problem is not None)
    assert problem is None or problem in found["problems"][0]


def test_a_step_that_hangs_is_killed_with_its_children_and_keeps_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "child"
    code = f"""
write()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(mine)!r}).write_text(str(child.pid))
time.sleep(600)
"""
    ended = running._wait

    def wait(process: subprocess.Popen[bytes], limit: float) -> bool:
        wait_until(lambda: mine.exists() and bool(mine.read_text()), "the step did not begin")
        return ended(process, limit)

    monkeypatch.setattr(running, "_wait", wait)
    found = run_fake(WRITES + code, tmp_path, monkeypatch, limit=0.1)
    assert (found["status"], found["values"]) == ("failed", {"rate": 3})
    assert "time limit of 0.1 s" in found["problems"][0]
    wait_until(lambda: has_ended(int(mine.read_text())), "the child of a killed step lives on")


def test_stopped_from_outside_it_leaves_no_step_behind(tmp_path: Path) -> None:
    mine = tmp_path / "child"
    code = f"""
import pathlib, sys, time
from benchmarks.gpu_check import __main__, running
child = "import os, pathlib, time; pathlib.Path({str(mine)!r}).write_text(str(os.getpid())); time.sleep(600)"
running.command_of = lambda *_: [sys.executable, "-c", child]
sys.argv = ["gpu_check", "--device", "cpu", "--quick", "--only", "rates", "--output", {str(tmp_path / "out")!r}]
sys.exit(__main__.main())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    wait_until(lambda: mine.exists() and bool(mine.read_text()), "the step did not begin")
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    wait_until(lambda: has_ended(int(mine.read_text())), "the step lives on")


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(holds: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def test_one_failed_step_spoils_no_other_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(name: str, *_: Any) -> list[str]:
        return [sys.executable, "-c", f"import sys; sys.exit({int(name == 'attention')})"]

    monkeypatch.setattr(running, "command_of", fake)
    names = ["rates", "attention", "parity"]
    results = running.run_steps(names, "cuda", quick=False, output=tmp_path, about={"commit": "abc"})
    assert [s["status"] for s in results["steps"].values()] == ["passed", "failed", "passed"]
    assert running.failed_steps(results) == ["attention"]
    assert running.summary(results).splitlines()[-1] == "failed: attention"
    assert json.loads((tmp_path / running.RESULTS).read_text()) == results
    assert sorted(p.name for p in tmp_path.iterdir()) == [running.RESULTS, running.LOG]


def test_a_report_is_on_disk_after_every_change(tmp_path: Path) -> None:
    report = Report(tmp_path / "report.json")
    assert read_report(report.file) == {}
    report.record(rate=3)
    report.require(True, "not noted")
    report.require(float("nan") <= 1, "an error that is not a number")
    report.skip("needs CUDA")
    expected = {"values": {"rate": 3}, "problems": ["an error that is not a number"], "skipped": "needs CUDA"}
    assert read_report(report.file) == expected


# ------------------------------------------------------------------ what steps compute
def test_attention_that_hides_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class SeesAll(SplitPlan):
        def hiding(self, blocked: torch.Tensor) -> SplitPlan:
            return self

    case = attention.Case("split", "hard", 0.5, 32, "float32")
    right = attention.compare(case, CPU.device)
    assert set(right) == {"output", "q", "k", "v"}
    assert attention.problem_of(case, right) == ""
    monkeypatch.setitem(attention.ATTENTION_BACKENDS, "split", SeesAll)
    wrong = attention.problem_of(case, attention.compare(case, CPU.device))
    assert all(f"error of {name} " in wrong for name in right)


def test_errors_that_are_not_numbers_are_over_every_tolerance() -> None:
    case = attention.Case("flex", "off", 0.0, 128, "bfloat16")
    assert "error of k nan" in attention.problem_of(case, {"output": 0.0, "k": float("nan")})
    assert attention.problem_of(case, {"output": 0.009, "k": 0.019}) == ""


def test_synchronisations_are_counted_by_line() -> None:
    x = torch.arange(4)
    with synchronisations.counting(CPU) as lines:
        x.sum().item()
        x[x > 1]
        x + 1
    mine = {line.split(":")[0] for line in lines}
    assert (sum(lines.values()), mine) == (2, {"tests/test_gpu_check.py"})


def test_extrapolation_is_linear_in_the_layers() -> None:
    def at(layers: int) -> dict[str, float]:
        return {"prefill_seconds": 1 + 2.0 * layers, "step_seconds": 0.5 * layers, "peak_bytes": 7.0 + layers}

    assert sampling.extrapolate((4, at(4)), (8, at(8)), 28) == at(28)


@pytest.mark.slow
def test_as_many_layers_as_fit() -> None:
    """Of the real sizes, on the meta device: more memory, more layers; the fewest that do not fit need more."""
    prediction = Prediction(Settings(torch.device("cuda")), attention="flex")
    small, large = (prediction.most_layers(memory * 2**30) for memory in (60, 78))
    assert 3 <= small < large < FULL_DEPTH
    assert prediction.memory(large).peak < 78 * 2**30 < prediction.memory(large + 1).peak * 1.2
    assert prediction.activations(FULL_DEPTH).kept > prediction.activations(large).kept
    with pytest.raises(RuntimeError, match="too little for 3 layers"):
        prediction.most_layers(20 * 2**30)


# ------------------------------------------------------------------ the page
def results_of(steps_: dict[str, Any], **about: Any) -> dict[str, Any]:
    return {"commit": "0123abc", "date": "2026-11-26", "device": "cuda", "quick": False, "steps": steps_} | about


def test_the_page_shows_the_committed_results() -> None:
    assert (ROOT / page.PAGE).read_text() == page.rendered((ROOT / page.PAGE).read_text(), ROOT / page.RESULTS)


def test_the_page_shows_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    step = {"status": "passed", "seconds": 12.3, "limit": 90, "problems": []}
    cases = {
        "bridge hard": {"seconds": 0.9, "mfu": 0.41, "mfu_with_recomputation": 0.5, "allocated": 7e10},
        "no activation checkpointing": {"problem": "OutOfMemoryError: 80 GB", "tolerated": True},
    }
    sizes = {"layers": 6, "tokens": 26496, "predicted_peak": 7.1e10, "parameters": 3e9}
    found = {
        "rates": {**step, "values": {"device": "NVIDIA H100", "flops_per_second": {"bfloat16": 7.9e14}}},
        "attention": {**step, "status": "failed", "values": {}, "problems": ["stopped at its time limit of 90 s"]},
        "training": {**step, "values": {**sizes, "cases": cases}},
    }
    (tmp_path / "h100.json").write_text(json.dumps(results_of(found)))
    text = page.rendered((ROOT / page.PAGE).read_text(), tmp_path)
    for expected in ("### h100", "bfloat16 790 TFLOP/s", "41.0", "70.0", "OutOfMemoryError: 80 GB", "26,496 tokens"):
        assert expected in text
    assert "attention: stopped at its time limit of 90 s" in text
    assert page.NONE_YET not in text
    assert page.rendered(text, tmp_path) == text


@pytest.mark.parametrize("about", [{"quick": True}, {"device": "cpu"}, {"steps": None}])
def test_toy_results_are_refused(about: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "toy.json").write_text(json.dumps(results_of({}, **about)))
    with pytest.raises(UserError, match=r"toy\.json: no result"):
        page.rendered((ROOT / page.PAGE).read_text(), tmp_path)


# ------------------------------------------------------------------ the whole
def without(packages: set[str], folder: Path) -> Path:
    """A folder for PYTHONPATH with which the modules of `packages` cannot be imported."""
    names = [
        name
        for name, owners in importlib.metadata.packages_distributions().items()
        if {owner.lower().replace("_", "-") for owner in owners} <= {p.lower().replace("_", "-") for p in packages}
    ]
    assert "pydantic" in names
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"""
import sys
from importlib.machinery import PathFinder
class Others(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {names!r} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Others
"""
    )
    return folder


@pytest.mark.slow
def test_the_whole_on_the_cpu_with_the_packages_of_the_machine(tmp_path: Path) -> None:
    """Every step runs what can run without CUDA, finds nothing wrong and says what it left out."""
    paths = os.pathsep.join([str(without(NOT_ON_THE_MACHINE, tmp_path / "absent")), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--quick", "--output", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / running.LOG).read_text()
    found = json.loads((tmp_path / "out" / running.RESULTS).read_text())["steps"]
    assert list(found) == list(steps.STEPS)
    assert all(step["status"].startswith("skipped: needs CUDA") for step in found.values())
    assert found["attention"]["values"]["compared"] == 14
    assert found["resuming"]["values"]["worst_loss_error"] == 0
    assert found["parity"]["values"]["split"]["agree"] == found["parity"]["values"]["split"]["quantities"] > 50
    cases = found["training"]["values"]["cases"]
    assert cases["bridge off"]["blocked_fraction"] == 0
    assert cases["bridge hard"]["blocked_fraction"] == pytest.approx(0.5, abs=0.06)
    assert cases["bridge hard"]["flops"] < cases["bridge off"]["flops"] == cases["bridge soft"]["flops"]
    assert 0 < cases["layers_kept 1"]["recomputed"] < cases["bridge hard"]["recomputed"]
    assert cases["half of the layers"]["flops"] < 0.6 * cases["bridge hard"]["flops"]
    assert len(set(found["training"]["values"]["tokens_of_packs"])) > 1
