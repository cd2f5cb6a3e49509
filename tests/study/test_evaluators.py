"""A study measures whatever an evaluator measures: one class, one line in the registry (docs/studies.md)."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

import scone_pl.study
from scone_pl.errors import UserError
from scone_pl.evaluation.evaluator import Column, Evaluator, Report, with_at_most
from scone_pl.evaluation.judged import JudgedEvaluator
from scone_pl.files import read_json
from scone_pl.study import evaluators
from scone_pl.study.kept import keep
from scone_pl.study.run import run
from scone_pl.study.runner import jobs_of, run_study
from scone_pl.study.spec import Study


@dataclass(frozen=True, kw_only=True)
class BytesEvaluator(Evaluator):
    """The size of the first files of a checkpoint folder, as a score."""

    files: int = 3
    """How many, in alphabetical order."""

    name: ClassVar[str] = "bytes"
    metrics: ClassVar[Mapping[str, Callable[[Report], float]]] = {"size": lambda report: report["bytes"] / 1e3}
    compared: ClassVar[tuple[Column, ...]] = (Column("size", "size"),)
    plotted: ClassVar[tuple[str, ...]] = ("size",)

    @property
    def identity(self) -> dict[str, Any]:
        return self.settings

    def shortened(self, per_task: int) -> BytesEvaluator:
        return with_at_most(self, files=per_task)

    def evaluate(self, weights: Path, folder: Path) -> dict[str, Any]:
        return {"bytes": sum(file.stat().st_size for file in sorted(weights.iterdir())[: self.files])}

    @classmethod
    def tables(cls, reports: Sequence[Report]) -> list[tuple[str, tuple[Column, ...]]]:
        return [("checkpoint", (Column("size", "size", " kB"),))]


def not_called(command: list[str]) -> int:
    raise AssertionError(command)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(evaluators.REGISTRY, "bytes", f"{__name__}:BytesEvaluator")
    for name, size in (("small", 10), ("large", 3000)):
        (tmp_path / name).mkdir()
        for file in ("llm_config.json", "model.safetensors"):
            (tmp_path / name / file).write_bytes(b" " * size)
        (tmp_path / name / "vit_config.json").touch()
    content = {
        "title": "Sizes",
        "question": "Which is larger?",
        "baseline": "one",
        "arms": {"one": {"label": "one", "weights": "small"}, "two": {"label": "two", "weights": "large"}},
        "evaluations": {"main": {"evaluator": "bytes"}},
        "quick": {"per_task": 1},
    }
    (tmp_path / "sizes.yaml").write_text(yaml.safe_dump(content))
    return Study.read(tmp_path / "sizes.yaml")


def test_a_new_evaluator_is_run_and_its_page_written(study: Study, tmp_path: Path) -> None:
    for quick, expected in ((False, "6.00 kB"), (True, "3.00 kB")):
        for arm in study.arms:
            run(study, arm, 0, fit=not_called, quick=quick)
        jobs = run_study(study, 1, not_called, jobs=1, quick=quick)
        assert [read_json(job.result, dict)["trained"] for job in jobs] == [[], []], "weights of unknown training"
        keep(study, jobs, tmp_path / "results", quick=quick)
        folder = tmp_path / ("runs/evidence/quick" if quick else "results")
        page = (folder / "sizes.md").read_text()
        assert f"| {expected} |" in page
        assert "trained at commit unknown (2 of 2 runs)" in page
        assert (folder / "sizes.png").is_file()


def test_other_settings_of_an_evaluation_are_another_result(study: Study, tmp_path: Path) -> None:
    (before,) = jobs_of(study, ["one"], [0])
    file = tmp_path / "sizes.yaml"
    content = yaml.safe_load(file.read_text())
    content["evaluations"]["main"]["files"] = 1
    file.write_text(yaml.safe_dump(content))
    (after,) = jobs_of(Study.read(file), ["one"], [0])
    assert before.folder == after.folder
    assert before.result != after.result


def test_its_settings_are_checked(study: Study) -> None:
    with pytest.raises(UserError, match="evaluator bytes has no key file; its keys are label, files"):
        evaluators.evaluator_of({"evaluator": "bytes", "file": 1})


def test_studies_know_no_world_and_no_command_line() -> None:
    folder = Path(scone_pl.study.__file__).parent
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [n for n in names if n.startswith(("scone_pl.worlds", "scone_pl.cli"))], file


def test_every_registered_evaluator_reads_reports() -> None:
    for name in evaluators.REGISTRY:
        evaluator = evaluators.evaluator_class(name)
        assert evaluator.name == name
        assert {column.metric for column in evaluator.compared} <= evaluator.metrics.keys()
        assert set(evaluator.plotted) <= evaluator.metrics.keys()


def test_open_benchmarks_are_evaluators(tmp_path: Path) -> None:
    """Their data are a folder; what the judge is, the benchmark says."""
    task = tmp_path / "data/single"
    task.mkdir(parents=True)
    (task / "1_prompt.txt").write_text("draw")
    (task / "1_0.jpg").write_bytes(b"")
    settings: dict[str, Any] = {"evaluator": "multibanana", "data": str(task.parent), "max_references": 3}
    with pytest.raises(UserError, match="x: the judge of this benchmark is Qwen/Qwen3-VL-8B-Instruct: give --judge"):
        evaluators.evaluator_of(settings).check_inputs("x")
    settings["judge"] = {"base_url": "http://127.0.0.1:1/v1"}
    evaluator = evaluators.evaluator_of(settings)
    evaluator.check_inputs("x")
    assert isinstance(evaluator, JudgedEvaluator)
    command = evaluator.command(tmp_path, tmp_path / "study/arm/seed0/evaluation")
    assert command[command.index("--max_references") + 1] == "3"
    one = evaluator.identity
    (task / "1_prompt.txt").write_text("draw more")
    other = evaluator.identity
    assert {name for name in one if one[name] != other[name]} == {"data"}
    settings["judge"]["scene_pf"] = True
    with pytest.raises(UserError, match="scene_pf is a question of OmniContext"):
        evaluators.evaluator_of(settings).check_inputs("x")


def test_averages_of_a_part_of_the_tasks() -> None:
    """MICON-Bench's is over cases, MultiBanana's over tasks, and no mean over groups of tasks enters twice."""
    used = {"object_composition": 3, "story_infer": 1}
    scores = {"object_composition.Score": 80.0, "story_infer.Score": 40.0}
    metrics = evaluators.evaluator_class("micon").metrics
    report = {"scores": scores, "completeness": {task: {"used": number} for task, number in used.items()}}
    assert metrics["Score"](report) == 70
    assert metrics["Score / 10"](report) == 7
    assert metrics["Score"]({**report, "scores": {**scores, "average.Score": 61.0}}) == 61
    metrics = evaluators.evaluator_class("multibanana").metrics
    report = {"scores": {"single.Total": 8.0, "add.Total": 6.0, "two.Total": 1.0}, "completeness": {}}
    assert metrics["Total"](report) == 7
    assert metrics["2 references"](report) == 1
    assert metrics["RC"](report) != metrics["RC"](report), "not a number"
