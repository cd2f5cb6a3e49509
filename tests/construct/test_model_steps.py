"""Steps that ask models, against a server that knows the truth and misbehaves: precision, resuming, killing."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from pool_files import num_answers
from running import start_scone

from scone_pl.__main__ import main
from scone_pl.construct.answers import read_candidate, read_flag, read_located, read_names, read_score, read_texts
from scone_pl.construct.phases import State
from scone_pl.construct.pipeline import Pipeline
from scone_pl.construct.settings import Construction
from scone_pl.data.shards import ShardSet
from scone_pl.errors import UserError
from scone_pl.vlm.parsing import UnusableAnswerError
from scone_pl.worlds.planted.pools import IconPools, write_pools
from scone_pl.worlds.planted.proof import construction, digest, measure
from scone_pl.worlds.planted.server import IconServer

KEY = "sk-never-written-anywhere-1234567890"


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> IconPools:
    return write_pools(tmp_path_factory.mktemp("icons"), 24, 16, seed=2)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICONS_API_KEY", KEY)


def build(settings: Construction) -> Pipeline:
    settings.check(keys=True)
    pipeline = Pipeline(settings)
    pipeline.run(progress=False)
    return pipeline


def written(settings: Construction, file: Path) -> str:
    content = {
        name: getattr(settings, name) for name in ("output", "pools", "models", "steps", "outputs", "workers", "sample")
    }
    file.write_text(yaml.safe_dump(content))
    return str(file)


@pytest.mark.slow
def test_clean_samples_remain_when_models_err_and_the_server_misbehaves(
    tmp_path: Path, pools: IconPools, capsys: pytest.CaptureFixture[str]
) -> None:
    with IconServer(pools, errors=0.05, faults=0.05) as server:
        settings = construction(pools, tmp_path / "out", server.url, workers=1)
        pipeline = build(settings)
        before = sum(server.requests.values())
        marks = {name: digest(tmp_path / "out/shards" / name) for name in ("refined", "multi")}
        # The same again asks only what had no usable answer: nothing is paid twice.
        states = [State.of(pipeline.step_folder(step.name)) for step in pipeline.steps]
        unanswered = sum(state.reasons.get("no answer yet", 0) for state in states if state)
        build(settings)
        assert sum(server.requests.values()) - before <= 12 * unanswered
        if not unanswered:
            assert {name: digest(tmp_path / "out/shards" / name) for name in marks} == marks
    report = measure(pipeline, pools)
    for step in ("consistency", "verify"):
        assert report[step]["precision"] >= 0.99
        assert report[step]["out"] > 10
    assert not {"duplicate", "leak", "dirty", "low"} & report["decontaminate"]["faults_left"].keys()
    multi = ShardSet(tmp_path / "out/shards/multi")
    sample = multi.read(0)
    assert sample.kind == "multi"
    assert sample.candidates is not None
    assert sample.metadata["license"].startswith("MIT")
    assert sample.metadata["construct"]["consistency"] == {"score": 4}

    # Another threshold asks about no sample again that has its two scores.
    settings.steps[3]["keep"] = 3
    with IconServer(pools, errors=0.0) as server:
        settings.models.update({name: {**model, "base_url": server.url} for name, model in settings.models.items()})
        pipeline = Pipeline(settings)
        state = pipeline.state("decontaminate")
        assert state is not None
        pipeline.run(progress=False)
        after = State.of(pipeline.step_folder("consistency"))
        assert after is not None
        assert after.calls < state.kept / 2
    assert main(["construct", "plan", "--config", written(settings, tmp_path / "c.yaml")]) == 0
    assert "| verify" in capsys.readouterr().out
    assert main(["construct", "sheet", "--config", str(tmp_path / "c.yaml"), "--show", "3"]) == 0
    assert "consistency" in (tmp_path / "out/sheet.html").read_text()
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


@pytest.mark.slow
def test_a_killed_run_loses_no_answer_and_asks_none_again(tmp_path: Path, pools: IconPools) -> None:
    output = tmp_path / "out"
    with IconServer(pools, errors=0.0, delay=0.02) as server:
        settings = construction(pools, output, server.url, workers=1, sample=30)
        config = written(settings, tmp_path / "c.yaml")
        generator = random.Random(1)
        for kills in range(2):
            process = start_scone("construct", "run", "--config", config, cwd=tmp_path, stderr=tmp_path / "err")
            goal = num_answers(output) + generator.randint(10, 30)
            while num_answers(output) < goal and process.poll() is None:
                time.sleep(0.02)
            process.kill()
            process.wait()
            stored = num_answers(output)
            answered = sum(server.requests.values())
            assert stored >= goal or kills, (tmp_path / "err").read_text()
            # What was answered but not stored was still on its way.
            assert answered - stored <= 8 * 3 * (kills + 1)
        pipeline = build(settings)
        assert sum(server.requests.values()) - answered == num_answers(output) - stored
        whole = construction(pools, tmp_path / "whole", server.url, workers=1, sample=30)
        build(whole)
    for name in ("refined", "multi"):
        assert digest(output / "shards" / name) == digest(tmp_path / "whole/shards" / name)
    assert pipeline.is_finished("verify")


def small(pools: IconPools, output: Path, url: str, **step: Any) -> Construction:
    """Only the consistency of the first samples."""
    whole = construction(pools, output, url, workers=1, limit=24)
    steps = [{"step": "consistency", "input": "pairs", **step}]
    return Construction(**{**vars(whole), "steps": steps, "outputs": {}})


def test_a_budget_stops_asking_and_the_next_run_goes_on(tmp_path: Path, pools: IconPools) -> None:
    with IconServer(pools, errors=0.0) as server:
        settings = small(pools, tmp_path / "out", server.url, budget={"calls": 10})
        reasons = []
        for _ in range(6):
            pipeline = build(settings)
            state = State.of(pipeline.step_folder("consistency"))
            assert state is not None
            assert state.calls <= 10
            reasons.append(state.reasons.get("no answer yet", 0))
        assert reasons[0] > 0
        assert reasons == sorted(reasons, reverse=True)
        assert reasons[-1] == 0


@pytest.mark.parametrize("status", [401, 404])
def test_a_server_that_refuses_ends_the_run_in_one_line(tmp_path: Path, pools: IconPools, status: int) -> None:
    with IconServer(pools) as server:
        settings = small(pools, tmp_path / "out", server.url + ("/nowhere" if status == 404 else ""))
        if status == 401:
            settings.models["vlm"] = {**settings.models["vlm"], "base_url": "http://127.0.0.1:9/v1", "max_tries": 1,
                                      "stop_after": 2}  # fmt: skip
        with pytest.raises(UserError, match=r"model.* at .* refuses|consecutive calls of model vlm failed"):
            build(settings)
    assert not (tmp_path / "out/shards").exists()


@pytest.mark.parametrize(
    ("read", "good", "value"),
    [
        (read_score, '<think>4?</think>```json\n{"deductions": ["face"], "score": 3,}\n```', (3, ["face"])),
        (read_score, '{"score": "4", "deductions": []}', (4, [])),
        (read_texts("subject", "scene"), '{"subject": " a  cat ", "scene": "x"}', ("a cat", "x")),
        (read_names(2), '{"names": ["a", "b"]}', ("a", "b")),
        (read_flag("fluent"), 'Sure: {"fluent": false}', False),
        (read_candidate(3), '{"candidate": "c"}', 2),
        (read_candidate(3), '{"candidate": "Several"}', -2),
    ],
)
def test_answers_are_read(read: Any, good: str, value: Any) -> None:
    assert read(good) == value


BAD = [
    (read_score, ['{"score": 5}', '{"score": 3.5}', '{"score": true}', "4", "<think>{}", '{"score": 4, "score": 1}']),
    (read_texts("a"), ['{"a": ""}', '{"a": 3}', "{}", "[]"]),
    (read_names(2), ['{"names": ["a"]}', '{"names": ["a", 3]}', '{"names": "ab"}']),
    (read_flag("fluent"), ['{"fluent": "yes"}', '{"fluent": 1}']),
    (read_candidate(2), ['{"candidate": "C"}', '{"candidate": ""}', '{"candidate": ["A"]}']),
    (
        read_located,
        [
            '{"subjects": [], "same": 0, "phrase": "x"}',
            '{"subjects": [{"name": "a", "box": [0, 0, 9, 9]}], "same": 2, "phrase": "x"}',
            '{"subjects": [{"name": "a", "box": [9, 0, 0, 9]}], "same": 1, "phrase": "x"}',
            '{"subjects": [{"name": "a", "box": [0, 0, 5000, 9]}], "same": 1, "phrase": "x"}',
            '{"subjects": [{"name": "a", "box": [0, 0, 9]}], "same": 1, "phrase": "x"}',
            '{"subjects": [{"name": "a", "box": [0, 0, 9, 9]}], "same": 1, "phrase": " "}',
        ],
    ),
]


@pytest.mark.parametrize(("read", "answer"), [(read, answer) for read, answers in BAD for answer in answers])
def test_answers_that_are_not_as_asked_for_are_refused(read: Any, answer: str) -> None:
    with pytest.raises(UnusableAnswerError):
        read(answer)


def mutilated(text: str, count: int) -> Iterator[str]:
    generator = random.Random(3)
    for _ in range(count):
        data = list(text)
        for _ in range(generator.randint(1, 4)):
            at = generator.randrange(len(data))
            data[at : at + generator.randint(0, 5)] = generator.choices('{}[]",:0\\nax<>', k=generator.randint(0, 3))
        yield "".join(data)


def test_mutilated_answers_are_read_or_refused() -> None:
    answer = {"subjects": [{"name": "a", "box": [1, 2, 30, 40], "wanted": True}], "same": 1, "phrase": "the a",
              "score": 4, "names": ["a", "b"], "candidate": "A", "fluent": True}  # fmt: skip
    readers = (read_score, read_located, read_names(2), read_candidate(2), read_flag("fluent"), read_texts("phrase"))
    for text in mutilated(json.dumps(answer), 300):
        for read in readers:
            with suppress(UnusableAnswerError):
                read(text)
