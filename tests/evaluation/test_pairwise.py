"""Pairs in both orders, ratings of known wins, and presets of the judge."""

import json
import math

import numpy as np
import pytest
from fake_judge import ERRORS, FAULTY_TIMEOUT, one_fault_each, serving, write_pictures

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.evaluation.pairwise import elo, parse_winner, ratings, systems_of
from scone_pl.evaluation.presets import judge_settings, preset_names
from scone_pl.vlm.parsing import UnusableAnswerError

SYSTEMS = ("weak", "good", "best")


@pytest.fixture
def folders(tmp_path, items):
    found = {}
    for number, name in enumerate(SYSTEMS):
        write_pictures(items, tmp_path / name, seed=number)
        found[name] = tmp_path / name
    return found


def strength_of(folders):
    """Data URL of each image -> index of the system."""
    from scone_pl.evaluation.judge_images import QuestionImage, data_url

    return {
        data_url(QuestionImage(file, reference=False)): SYSTEMS.index(name)
        for name, folder in folders.items()
        for file in folder.rglob("*.png")
    }


def test_the_command(data, folders, tmp_path, capsys, items):
    """A judge that always finds the better system between weak and good, and else takes the first image."""
    strength = strength_of(folders)

    def script(asked, times):
        first, second = (strength[url] for url in asked.images[-2:])
        winner = 1 if {first, second} != {0, 1} else 1 + (second > first)
        return "no idea" if times == 1 and asked.number == 0 else json.dumps({"winner": winner, "reasoning": "because"})

    command = ["judge", "--benchmark", "sconeeval", "--data", str(data), "--output", str(tmp_path / "out")]
    command += ["--scorings", "1", "--pairwise", *(f"{name}={folder}" for name, folder in folders.items())]
    with serving(script) as server:
        chosen = ["--judge", "local-8b", "--judge.base_url", server.url]
        assert main([*command, *chosen]) == 0, capsys.readouterr().err
        asked = len(server.requests)
        assert main([*command, *chosen]) == 0
        assert len(server.requests) == asked == 3 * 2 * len(items) + 1, "both orders, one answer asked again"
        assert server.requests[0].body["model"] == "Qwen/Qwen3-VL-8B-Instruct"
    found = json.loads((tmp_path / "out/pairwise.json").read_text())
    counts = {name: (row["wins"], row["ties"], row["losses"]) for name, row in found["systems"].items()}
    assert counts == {"weak": (0, 12, 12), "good": (12, 12, 0), "best": (0, 24, 0)}
    assert found["consistent"] == pytest.approx(1 / 3)
    assert found["first_wins"] == pytest.approx(5 / 6)
    assert found["systems"]["good"]["elo"] > found["systems"]["best"]["elo"] > found["systems"]["weak"]["elo"]
    text = (tmp_path / "out/pairwise.md").read_text()
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:5]] == ["good", "best", "weak"]


def test_faulty_servers(data, folders, tmp_path, capsys, items):
    """Every fault is asked again once, and the outcome is that of a server without faults."""
    strength = strength_of(folders)

    def answer(asked):
        first, second = (strength[url] for url in asked.images[-2:])
        return json.dumps({"winner": 1 + (second > first), "reasoning": "the better one"})

    script, met = one_fault_each(answer)
    command = ["judge", "--benchmark", "sconeeval", "--data", str(data), "--output", str(tmp_path / "out")]
    command += ["--scorings", "1", "--pairwise", *(f"{name}={folder}" for name, folder in folders.items())]
    with serving(script) as server:
        chosen = ["--judge.model", "fake", "--judge.base_url", server.url, "--judge.timeout", str(FAULTY_TIMEOUT)]
        assert main([*command, *chosen, "--judge.concurrency", "1"]) == 0, capsys.readouterr().err
        assert met == list(ERRORS)
        assert len(server.requests) == 3 * 2 * len(items) + len(ERRORS), "only what failed was asked again, once"
    found = json.loads((tmp_path / "out/pairwise.json").read_text())
    counts = {name: (row["wins"], row["ties"], row["losses"]) for name, row in found["systems"].items()}
    n = 2 * len(items)
    assert counts == {"weak": (0, 0, n), "good": (n // 2, 0, n // 2), "best": (n, 0, 0)}
    assert found["consistent"] == 1


def test_elo_of_known_wins():
    """Two systems, 30 wins to 10 and half a virtual one each: 400 log10(30.5 / 10.5) apart."""
    points = elo(np.array([[0, 30], [10, 0]], dtype=float))
    assert points.mean() == pytest.approx(1500)
    assert points[0] - points[1] == pytest.approx(400 * math.log10(30.5 / 10.5), abs=0.01)
    assert np.isfinite(elo(np.array([[0, 5], [0, 0]], dtype=float))).all()


def test_ratings_recover_strengths():
    """Simulated comparisons of three systems 100 Elo apart: estimates and intervals around the truth."""
    generator, truth, results = np.random.default_rng(0), (1400, 1500, 1600), []
    for item in range(300):
        for a, b in ((0, 1), (0, 2), (1, 2)):
            wins = generator.random() < 1 / (1 + 10 ** ((truth[b] - truth[a]) / 400))
            winner = SYSTEMS[a] if wins else SYSTEMS[b]
            results.append(
                {"task_type": "t", "key": str(item), "systems": [SYSTEMS[a], SYSTEMS[b]], "winner": winner}
                | {"consistent": True, "answers": [1, 2] if wins else [2, 1]}
            )
    found = ratings(results, SYSTEMS)
    for name, expected in zip(SYSTEMS, truth, strict=True):
        low, high = found["systems"][name]["interval"]
        assert abs(found["systems"][name]["elo"] - expected) < 0.75 * (high - low), "three standard errors"
        assert high - low < 100
    assert found["first_wins"] == 0.5


@pytest.mark.parametrize("answer", ["", "1", "{}", '{"winner": 3}', '{"winner": true}', '{"winner": "a"}', "[1]"])
def test_answers_that_are_asked_again(answer):
    with pytest.raises(UnusableAnswerError):
        parse_winner(answer)


def test_bad_options(tmp_path, data, folders, capsys):
    with pytest.raises(UserError, match="at least two folders"):
        systems_of([str(folders["weak"])])
    with pytest.raises(UserError, match="nowhere: no such folder"):
        systems_of(["a=nowhere", "b=nowhere"])
    assert [one.name for one in systems_of([str(folders["weak"])] * 2)] == ["weak", "weak 2"]
    command = ["judge", "--benchmark", "sconeeval", "--data", str(data), "--output", str(tmp_path / "out")]
    assert main([*command, "--pairwise", "a", "b", "--images", "c"]) == 2
    assert "--images is for scores" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    chosen = ["--pairwise", str(tmp_path / "empty"), str(folders["weak"]), "--judge", "ollama"]
    assert main([*command, *chosen]) == 2
    assert "no item has an image of two models" in capsys.readouterr().err


def test_presets(tmp_path, data, folders, items, capsys, monkeypatch):
    assert preset_names() == ["llamacpp", "local", "local-8b", "ollama"]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-paid")
    for name in preset_names():
        settings = judge_settings(name)
        assert settings["base_url"].startswith("http://127.0.0.1:")
        assert settings["api_key_env"] != "OPENAI_API_KEY", "the key of a paid service is not sent"
    file = tmp_path / "mine.yaml"
    command = ["judge", "--benchmark", "sconeeval", "--data", str(data), "--output", str(tmp_path / "out")]
    command += ["--images", str(folders["weak"]), "--limit", "1", "--tasks", "composition_single", "--scorings", "1"]
    with serving() as server:
        file.write_text(f"base_url: {server.url}\nmodel: mine\nparameters: {{seed: 3}}\n")
        assert main([*command, f"--judge={file}", "--judge.model", "typed"]) == 0, capsys.readouterr().err
        assert {asked.body["model"] for asked in server.requests} == {"typed"}, "what is typed wins"
        assert {asked.body["seed"] for asked in server.requests} == {3}
        assert {asked.key for asked in server.requests} == {"Bearer sk-paid"}
        assert main([*command, "--judge", "local", "--judge.base_url", server.url]) == 0
        assert server.requests[-1].key is None
    for wrong in (["--judge", "nonsense"], ["--judge"]):
        assert main([*command, *wrong]) == 2
        assert "--judge" in capsys.readouterr().err
