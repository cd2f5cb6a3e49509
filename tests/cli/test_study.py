"""`study plan`, `study status`, and what people may still type."""

from __future__ import annotations

import pytest
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.study.spec import Study


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_a_plan_names_every_run_and_what_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "plan", "experiments/studies/table5.yaml", "--seeds", "2", "--quick"]) == 0
    text = capsys.readouterr().out
    assert "scale mini, quick" in text
    assert "## table4: 2 runs" in text
    assert f"## table5: {2 * len(Study.read('table5').arms)} runs" in text
    assert text.index("## table4") < text.index("## table5")
    assert "formation 60, guidance 100 steps" in text, "half of the steps, as its key quick says"
    assert "per_task 16" in text


def test_some_arms_at_another_scale(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "plan", "table5", "--scale", "7b", "--arms", "a_direct,c_literal"]) == 0
    text = capsys.readouterr().out
    assert "## table5: 2 runs" in text
    assert "direct 2000 steps" in text
    assert "evaluator sconeeval" in text


def test_a_status_names_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "status", "table5", "--seeds", "1", "--arms", "[a_direct]"]) == 0
    text = capsys.readouterr().out
    assert "of 2 runs finished" in text


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("mini evidence --table table5", "mini evidence is now: python -m scone_pl study run experiments/studies/NAME"),
        ("mini page", "mini page is now: python -m scone_pl study page"),
        ("study run experiments/ablations/mini/table5.yaml", "moved; use experiments/studies/table5.yaml"),
        ("study plan nothing", "no study nothing in experiments/studies: choose from"),
        ("study plan table5 --scale 70b", "has no scale 70b; choose from mini, 7b"),
        ("study plan robustness --scale 7b", "has no scale 7b; choose from mini"),
        ("study plan table5 --arms [d]", "table5 has no arm d; choose from stage1"),
        ("study plan table5 --evaluators {sconeval:{}}", "no evaluator sconeval; choose from shapes, icons, sconeeval"),
        ("study plan table5 --evaluators {sconeeval:1}", "--evaluators: sconeeval is 1; it must be a mapping"),
        ("study plann table5", "has no command plann; did you mean plan?"),
    ],
)
def test_mistakes_are_one_line(command: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word.replace(":", ": ") for word in command.split()]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
