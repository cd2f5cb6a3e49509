"""The benchmark of docs/new_benchmark.md: written to a package of its own, judged, tabulated, by the verbs alone."""

import json
import re
import sys

import pytest
from fake_judge import serving
from PIL import Image
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.evaluation.benchmarks import find_benchmark

SCORES = {"red_1": (5, 2), "red_2": (2, 2), "red_3": (2, 5), "blue_1": (5, 5)}
"""Toy scores 4, 2, 3 and 5."""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A folder of data; the package is importable."""
    text = (ROOT / "docs/new_benchmark.md").read_text()
    package = tmp_path / "toy_benchmark"
    (package / "prompts").mkdir(parents=True)
    (package / "__init__.py").write_text(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1])
    (package / "prompts/toy.md").write_text(re.search(r"```text\n(.*?)```", text, re.DOTALL)[1])
    (package / "prompts/VERSION").write_text("toy-1\n")
    data, images = tmp_path / "data", tmp_path / "images"
    data.mkdir()
    for number, name in enumerate(SCORES):
        (data / f"{name}.txt").write_text(f"draw {name}\n")
        Image.new("RGB", (20, 20), (number, 0, 0)).save(data / f"{name}.png")
        (images / name.partition("_")[0]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), (0, number, 0)).save(images / name.partition("_")[0] / f"{name}.png")
    monkeypatch.syspath_prepend(tmp_path)
    find_benchmark.cache_clear()
    yield tmp_path
    sys.modules.pop("toy_benchmark", None)
    find_benchmark.cache_clear()


def answer(asked, times):
    """The first answer to each question lacks a line."""
    colour, roundness = SCORES[re.search(r"draw (\w+)", asked.text)[1]]
    return "Colour: 3" if times == 1 else f"Because.\n**Colour:** {colour}\nRoundness: {roundness}/5"


def test_it_is_asked_scored_and_tabulated(toy, capsys):
    chosen = ["--benchmark", "toy_benchmark", "--data", str(toy / "data"), "--output", str(toy / "out")]
    with serving(answer) as server:
        judge = ["--images", str(toy / "images"), "--judge.base_url", server.url, "--judge.model", "fake"]
        assert main(["evaluate", *chosen, *judge, "--scorings", "1"]) == 0, capsys.readouterr().err
        assert len(server.requests) == 2 * len(SCORES), "an answer without all its lines is asked again"
        kinds = [part["type"] for part in server.requests[0].body["messages"][0]["content"]]
        assert kinds == ["text", "image_url", "text", "image_url", "text"]
        assert main(["evaluate", *chosen, *judge, "--scorings", "1"]) == 0
        assert len(server.requests) == 2 * len(SCORES), "the second time nothing is asked"
    table = json.loads((toy / "out/tables/table.json").read_text())
    mean = table["combined"]["mean"]
    assert mean["red.Toy"] == pytest.approx(3)
    assert mean["blue.Toy"] == pytest.approx(5)
    assert mean["average.Toy"] == pytest.approx(14 / 4), "over items, not over tasks"
    low, high = table["intervals"]["columns"]["average.Toy"]
    assert low <= mean["average.Toy"] <= high
    assert "Because." in (toy / "out/report.html").read_text()
    assert "| Average over items |" in (toy / "out/tables/table.md").read_text()


def test_a_benchmark_that_does_not_exist():
    with pytest.raises(UserError, match="--benchmark sconeval: no such benchmark; did you mean sconeeval"):
        find_benchmark("sconeval")
    for name in ("json", "no.such.module", "../x", "scone_pl.evaluation.benchmarks.nothing"):
        with pytest.raises(UserError, match=r"no such benchmark; one of .*, or a module with a BENCHMARK"):
            find_benchmark(name)
