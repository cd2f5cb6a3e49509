"""Samples made of nothing, and images with something printed on them, against the server of icons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pool_files import items, pixels, state, uno_row, write_config, write_list

from scone_pl.__main__ import main
from scone_pl.construct.answers import read_lists, read_numbers
from scone_pl.construct.steps.synthesis import Synthesis
from scone_pl.data.decoding import decode_rgb
from scone_pl.data.shards import ShardSet
from scone_pl.errors import UserError
from scone_pl.vlm.parsing import UnusableAnswerError
from scone_pl.worlds.planted.pools import IconPools
from scone_pl.worlds.planted.scenes import Scene
from scone_pl.worlds.planted.server import WATERMARK, IconServer


def models(url: str) -> dict[str, Any]:
    server = {"base_url": url, "concurrency": 4, "first_wait": 0.05}
    return {name: {**server, "model": f"icons-{name}"} for name in ("vlm", "llm", "painter", "editor")}


@pytest.fixture
def known(tmp_path: Path) -> IconPools:
    """Of no image yet; the server looks for the nearest."""
    pools = IconPools(tmp_path / "icons")
    image = pixels(1)
    pools.known.add(image, Scene(()), b"")
    return pools


def test_samples_are_made_of_nothing_and_judged_as_others(
    tmp_path: Path, known: IconPools, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [{"step": "synthesize", "samples": 8, "license": "cc0"}, {"step": "consistency"}]
    with IconServer(known, errors=0.0) as server:
        config = write_config(tmp_path / "c.yaml", models=models(server.url), steps=steps)
        assert main(["construct", "plan", "--config", config]) == 0
        planned = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| synthesize"))
        assert main(["construct", "run", "--config", config]) == 0
        asked = sum(server.requests.values())
        assert main(["construct", "run", "--config", config]) == 0
        assert sum(server.requests.values()) == asked
        # More samples of the same kinds ask about the new ones only; a budget holds.
        steps[0] |= {"samples": 10, "budget": {"calls": 7}}
        config = write_config(tmp_path / "c.yaml", models=models(server.url), steps=steps)
        assert main(["construct", "run", "--config", config]) == 0
        assert sum(server.requests.values()) - asked <= 7 + 2 * 2
    assert [cell.strip() for cell in planned.split("|")[2:4]] == ["8", "8"]
    assert float(planned.split("|")[4]) == pytest.approx(8 * (3 + sum(map(len, Synthesis.cases)) / 13), abs=1)
    assert state(tmp_path, "synthesize").reasons.keys() <= {"no answer yet"}
    made = items(tmp_path, "consistency")
    assert len(made) >= 8
    shards = ShardSet(tmp_path / "out/shards/samples")
    for i in range(len(shards)):
        sample = shards.read(i)
        assert len(sample.references) in (3, 4)
        assert len(sample.metadata["case"].split("+")) == len(sample.references)
        assert (sample.metadata["license"], sample.metadata["origin"]) == ("cc0", "synthesised")
        assert all(name in sample.instruction for name in sample.metadata["subjects"])
        assert decode_rgb(sample.target).size == decode_rgb(sample.references[0]).size


def test_what_synthesis_gets_wrong_is_rejected(tmp_path: Path, known: IconPools) -> None:
    with IconServer(known, errors=0.4) as server:
        steps = [{"step": "synthesize", "samples": 8, "cases": ["CO"]}, {"step": "consistency"}]
        config = write_config(tmp_path / "c.yaml", models=models(server.url), steps=steps)
        assert main(["construct", "run", "--config", config]) in (0, 2)
    assert state(tmp_path, "synthesize").reasons["name left out"] > 0


@pytest.mark.parametrize(
    "settings", [{"cases": ("CX",)}, {"cases": ()}, {"samples": 0}, {"input": ("pools",)}], ids=str
)
def test_settings_of_synthesis(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^(cases|samples|input)"):
        Synthesis(**{"samples": 3, **settings})


def test_watermarks_are_rejected(tmp_path: Path) -> None:
    pools = IconPools(tmp_path / "icons")
    rows = [uno_row(i, tmp_path) for i in range(4)]
    for number in range(4):
        for which in (1, 2):
            file = tmp_path / f"images/{number}_{which}.png"
            subjects = (WATERMARK,) if (number, which) == (2, 1) else ()
            pools.known.add(pixels(2 * number + which), Scene(subjects), file.read_bytes())
    write_list(rows, tmp_path / "a.json")
    with IconServer(pools, errors=0.0) as server:
        config = write_config(
            tmp_path / "c.yaml",
            pools=[{"name": "p", "path": str(tmp_path / "a.json")}],
            models=models(server.url),
            steps=[{"step": "watermarks"}],
        )
        assert main(["construct", "run", "--config", config]) == 0
    assert state(tmp_path, "watermarks").reasons == {"watermark": 2}
    assert state(tmp_path, "watermarks").kept == 6


@pytest.mark.parametrize("answer", ['{"marked": [3]}', '{"marked": [0]}', '{"marked": 1}', "{}", '{"marked": [true]}'])
def test_other_numbers_are_refused(answer: str) -> None:
    assert read_numbers("marked", 2)('{"marked": [2, 1, 2]}') == (1, 2)
    with pytest.raises(UnusableAnswerError):
        read_numbers("marked", 2)(answer)


@pytest.mark.parametrize(
    "answer", ['{"a": ["x"], "b": ["y"]}', '{"a": ["x", "y"]}', '{"a": ["x", ""], "b": ["x", "y"]}']
)
def test_other_lists_are_refused(answer: str) -> None:
    assert read_lists(2, "a")('{"a": ["x", "y"]}') == [("x", "y")]
    with pytest.raises(UnusableAnswerError):
        read_lists(2, "a", "b")(answer)
