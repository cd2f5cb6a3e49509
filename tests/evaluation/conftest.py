"""The small benchmarks that ship with the tests."""

from pathlib import Path

import pytest
from fake_judge import write_pictures

from scone_pl.evaluation.benchmarks.omnicontext import OMNICONTEXT
from scone_pl.evaluation.benchmarks.sconeeval import SCONEEVAL
from scone_pl.evaluation.folder import EvaluationFolder
from scone_pl.evaluation.items import read_items

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def data():
    return BENCHMARKS / "sconeeval"


@pytest.fixture
def items(data):
    return read_items(SCONEEVAL, data)


@pytest.fixture
def omni_items():
    return read_items(OMNICONTEXT, BENCHMARKS / "omnicontext")


@pytest.fixture
def folder(tmp_path, items):
    """An evaluation with one round of pictures."""
    found = EvaluationFolder(tmp_path / "out")
    write_pictures(items, found.images_of(1))
    return found


@pytest.fixture
def evaluation(request, root, tmp_path):
    """An evaluation of the module's `BENCHMARK`, with one round of images for the data of its fixture `root`."""
    found = EvaluationFolder(tmp_path / "out")
    write_pictures(read_items(request.module.BENCHMARK, root), found.images_of(1))
    return found
