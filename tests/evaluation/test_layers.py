"""Who imports whom: tables and judging work where nothing trains, and the data room knows nothing above it."""

import ast
import subprocess
import sys

import pytest
from running import ROOT


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("scone_pl.cli.evaluate", ("torch", "lightning", "matplotlib")),
        ("scone_pl.cli.evaluate, scone_pl.data.jsonl, scone_pl.evaluation.report", ("lightning",)),
        ("scone_pl.cli.shards", ("lightning",)),
    ],
)
def test_heavy_libraries_are_imported_when_they_are_needed(modules, absent):
    program = f"import sys, {modules}; print(*[name for name in {absent} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).split() == []


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_the_data_room_knows_nothing_above_it():
    ours = {
        name.split(".")[1]
        for file in (ROOT / "scone_pl/data").glob("*.py")
        for name in imported(file)
        if name.startswith("scone_pl.")
    }
    assert ours <= {"data", "model", "errors", "files", "image_files", "messages", "outputs", "progress", "ranges"} | {
        "processes"
    }
