"""The judge over real HTTP: every question ends answered or failed, and no stored answer is asked for again."""

import json
import os
import signal
import time
from collections import Counter

import pytest
from fake_judge import ERRORS, FAULTY_TIMEOUT, FakeJudge, completion, good_answer, serving, write_pictures
from running import start_scone

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmarks.omnicontext import OMNICONTEXT
from scone_pl.evaluation.benchmarks.sconeeval import SCONEEVAL
from scone_pl.evaluation.groups import completeness, group_tables
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.records import read_records
from scone_pl.evaluation.scores import is_complete
from scone_pl.evaluation.steps import describe_plan, judge, plan_judgements
from scone_pl.vlm.store import AnswerStore

CALLS = 2 * 12 + 2 * 2 + 2 * 2 + 2 * 4 + 2 * 4
"""PF and SC of 12 items, and the candidates of 8 of them."""
KEY = "sk-test-0123456789abcdef"


def run(folder, items, config, scorings=1, rounds=1, benchmark=SCONEEVAL):
    judgements = plan_judgements(folder, benchmark, items, config, rounds, scorings)
    return judge(folder, benchmark, judgements, config, progress=False)


def lines_of(folder):
    return [json.loads(line) for line in folder.answers.read_text().splitlines()]


def test_every_question_is_asked_once_with_its_pictures(folder, items):
    with serving(lambda asked, times: 0.02) as server:
        records = run(folder, items, server.config())
    assert all(map(is_complete, records))
    assert len(server.requests) == CALLS == len(lines_of(folder))
    assert 1 < server.most_in_flight <= 8
    kinds = Counter(asked.kind for asked in server.requests)
    assert kinds == {"PF": 12, "SC": 12, "DIS": 24}
    by_instruction = {item.instruction: item for item in items}
    subjects = {name for item in items for group in item.subjects for name in group}
    for asked in server.requests:
        assert asked.body["model"] == "fake"
        assert asked.body["max_tokens"] == 1400
        assert {"temperature", "seed", "response_format"}.isdisjoint(asked.body)
        assert [message["role"] for message in asked.body["messages"]] == ["user"]
        assert "{{" not in asked.text
        if asked.kind == "DIS":
            assert asked.instruction in subjects
            assert len(asked.images) == 2
        else:
            assert len(asked.images) == len(by_instruction[asked.instruction].images) + 1
        assert asked.size(-1) == (24, 24), "the generated picture comes last, as it is"
        assert all(asked.size(i) == (128, 128) for i in range(len(asked.images) - 1))


def test_records_hold_what_was_said_and_by_whom(folder, items):
    with serving() as server:
        records = run(folder, items, server.config())
    said = {(a.kind, a.instruction): good_answer(a) for a in server.requests if a.kind != "DIS"}
    for item, record in zip(items, records, strict=True):
        assert (record["task_type"], record["key"]) == item.id
        for kind in ("PF", "SC"):
            expected = json.loads(said[kind, item.instruction])
            assert record[kind] == expected["score"]
            assert record[f"{kind}_reason"] == expected["reasoning"]
        assert record["judge"]["model"] == "fake"
        assert record["judge"]["answered_by"] == ["fake-1"]
        assert record["judge"]["date"].startswith("20")
        assert record["judge"]["prompts"]["PF"].startswith("sconeeval_pf/scone_pl-1/")
    assert read_records(folder.scores, SCONEEVAL) == records


def test_faults_are_tried_again_one_call_at_a_time(folder, items):
    """The n-th different question meets the n-th fault first."""
    names, met = list(ERRORS), {}

    def script(asked, times):
        if times == 1 and len(met) < len(names):
            name = names[len(met)]
            if name == "out of range" and asked.kind == "DIS":
                return None
            met[name] = asked.digest
            return ERRORS[name]
        return None

    with serving(script) as server:
        records = run(folder, items, server.config(timeout=FAULTY_TIMEOUT))
    assert all(map(is_complete, records))
    assert set(met) == set(names)
    asked = Counter(one.digest for one in server.requests)
    assert sum(asked.values()) == CALLS + len(ERRORS), "only what failed was asked again, once"
    assert all(asked[digest] == 2 for digest in met.values())
    raw = [line["text"] for line in lines_of(folder)]
    assert raw.count("I cannot help with that.") == raw.count("") == raw.count(ERRORS["out of range"]) == 1
    assert len(raw) == CALLS + 3, "every answer is kept, unusable ones too"


def test_retry_after_is_honoured_by_all_callers(folder, items):
    state = {}

    def script(asked, times):
        if "until" not in state:
            state["until"] = time.monotonic() + 0.8
            return 429, {"error": {"message": "later"}}, {"Retry-After": "0.8"}
        return 0.01

    with serving(script) as server:
        run(folder, items, server.config(concurrency=4))
    early = [asked for asked in server.requests if asked.at < state["until"] - 0.05]
    assert len(early) <= 2 * 4, "those in flight, and at most one each that had just begun"
    assert len(server.requests) == CALLS + 1


def test_what_never_succeeds_is_recorded_with_its_reason(folder, items):
    doomed = {
        items[0].instruction: ((500, b"", {}), "status 500"),
        items[2].instruction: ("no idea", "2 answers, none usable: the score is no number"),
        items[3].instruction: (
            (400, {"error": {"code": "content_policy_violation", "message": "no"}}, {}),
            "content_policy",
        ),
        items[4].instruction: ((403, {"error": {"code": 403, "message": "flagged by moderation"}}, {}), "moderation"),
    }

    def script(asked, times):
        return doomed[asked.instruction][0] if asked.kind == "PF" and asked.instruction in doomed else None

    with serving(script) as server:
        config = server.config(max_tries=3, max_answers=2)
        records = run(folder, items, config)
        asked = Counter(a.instruction for a in server.requests if a.kind == "PF" and a.instruction in doomed)
    assert sorted(asked.values()) == [1, 1, 2, 3], "refused at once, unusable twice, busy three times"
    by_item = {record["task_type"] + record["key"]: record for record in records}
    for item in items:
        record = by_item[item.task_type + item.key]
        if item.instruction in doomed:
            assert record["PF"] is None
            assert record["SC"] is not None
            assert doomed[item.instruction][1] in record["failure"]
        else:
            assert is_complete(record)
            assert record["failure"] is None
    found = completeness(records, SCONEEVAL)
    assert found["composition_single"]["used"] == 1
    assert found["composition_multi"] | {"failures": None} == {"records": 2, "used": 0, "failures": None}
    table = group_tables(records, SCONEEVAL)[0]
    assert table["average"] is None
    assert table["n_used"]["composition_multi"] == 0
    # The same again, now that the service is well: only these questions are asked.
    with serving() as well:
        config = JudgeConfig(**{**vars(config), "base_url": well.url})
        records = run(folder, items, config)
    assert all(map(is_complete, records))
    assert len(well.requests) == 4


def test_failures_need_not_be_asked_again(folder, items):
    with serving(lambda asked, times: (400, b"no", {}) if asked.kind == "SC" else None) as server:
        config = server.config(retry_failed=False)
        run(folder, items, config)
        before = len(server.requests)
        records = run(folder, items, config)
    assert len(server.requests) == before
    assert not any(map(is_complete, records))


def test_a_second_run_asks_nothing_and_needs_no_service(folder, items):
    with serving() as server:
        config = server.config()
        first = run(folder, items, config)
    before = folder.answers.read_bytes()
    folder.scores.unlink()
    assert run(folder, items, config) == first
    assert folder.answers.read_bytes() == before


def test_scorings_and_samplings_are_asked_apart(folder, items):
    write_pictures(items, folder.images_of(2), seed=1)
    with serving() as server:
        records = run(folder, items, server.config(), scorings=2, rounds=2)
        assert len(server.requests) == 4 * CALLS
        assert Counter(Counter(asked.digest for asked in server.requests).values()) == {2: 2 * CALLS}
        groups = [(record["sampling"], record["scoring"]) for record in records]
        assert groups == sorted(groups)
        assert len(set(groups)) == 4
        run(folder, items, server.config(), scorings=3, rounds=2)
        assert len(server.requests) == 6 * CALLS, "a third scoring asks for its own answers only"


@pytest.mark.parametrize("change", ["picture", "reference", "model", "parameters", "prompt"])
def test_what_is_asked_decides_what_is_known(folder, items, data, tmp_path, change):
    chosen = items[:1]
    with serving() as server:
        run(folder, chosen, server.config())
        settings = {}
        if change == "picture":
            write_pictures(chosen, folder.images_of(1), seed=5)
        elif change == "reference":
            from dataclasses import replace

            chosen = [replace(chosen[0], images=(data / "images/composition_single_0002_1.png",))]
        elif change == "prompt":
            import shutil

            shutil.copytree(SCONEEVAL.folder / "prompts", tmp_path / "prompts")
            for name in ("pf", "sc"):
                file = tmp_path / f"prompts/sconeeval_{name}.md"
                file.write_text(file.read_text().replace("Leave out", "Do leave out"))
            settings["prompts"] = str(tmp_path / "prompts")
        else:
            settings = {"model": {"model": "other"}, "parameters": {"parameters": {"max_tokens": 10}}}[change]
        run(folder, chosen, server.config(**settings))
    assert len(server.requests) == 4


def test_a_wrong_key_stops_at_once_and_is_written_nowhere(folder, items, monkeypatch, capfd):
    monkeypatch.setenv("THE_KEY", KEY)
    complaint = {"error": {"code": "invalid_api_key", "message": f"Incorrect API key provided: {KEY}"}}
    with serving(lambda asked, times: (401, complaint, {})) as server:
        with pytest.raises(UserError, match=r"refuses \(status 401 invalid_api_key.*\$THE_KEY") as error:
            run(folder, items, server.config(api_key_env="THE_KEY"))
        assert len(server.requests) <= 8
        assert server.requests[0].key == f"Bearer {KEY}"
    records = read_records(folder.scores, SCONEEVAL)
    assert len(records) == 12, "what could not be asked is recorded, too"
    assert all("not asked yet" in record["failure"] for record in records)
    # One that repeats the key in answers, complaints and its name.
    echo = completion(json.dumps({"score": 3, "reasoning": KEY}), model=KEY)

    def script(asked, times):
        return (
            (400, {"error": {"message": KEY}}, {})
            if asked.kind == "SC"
            else (500, KEY.encode(), {})
            if times == 1
            else echo
        )

    with serving(script) as server:
        run(folder, items, server.config(api_key_env="THE_KEY"))
    written = [file for file in folder.path.rglob("*") if file.is_file()]
    assert len(written) > 12
    assert not any(KEY.encode() in file.read_bytes() for file in written)
    said = capfd.readouterr()
    assert KEY not in said.out + said.err + str(error.value)


def test_no_money_and_a_long_wait_stop_at_once(folder, items):
    quota = (429, {"error": {"code": "insufficient_quota", "message": "pay"}}, {})
    later = (429, {"error": {"message": "tomorrow"}}, {"Retry-After": "86400"})
    for action, words in ((quota, "insufficient_quota"), (later, "retry after 86400 s")):
        with serving(lambda asked, times, action=action: action) as server, pytest.raises(UserError, match=words):
            run(folder, items, server.config())


def test_a_dead_service_stops_the_run(folder, items):
    with serving() as server:
        config = server.config(max_tries=2, stop_after=5)
    with pytest.raises(UserError, match=r"5 consecutive calls failed.*connection lost.*run the same command to resume"):
        run(folder, items, config)


def test_pictures_that_are_missing_or_damaged_fail_alone(folder, items):
    (folder.image(items[0], 1)).unlink()
    damaged = folder.image(items[1], 1)
    damaged.write_bytes(damaged.read_bytes()[:60])
    with serving() as server:
        records = run(folder, items, server.config())
    assert "no image 0001.png in round 1" in records[0]["failure"]
    assert "0002.png: " in records[1]["failure"]
    assert all(map(is_complete, records[2:]))


def test_damaged_pictures_do_not_look_like_a_dead_judge(folder, items):
    for item in items[:4]:
        folder.image(item, 1).write_bytes(b"no picture")
    with serving() as server:
        records = run(folder, items, server.config(stop_after=2, concurrency=1))
    assert [is_complete(record) for record in records] == [False] * 4 + [True] * 8


def test_an_answer_that_can_not_be_stored_is_not_a_failed_call(folder, items, monkeypatch):
    def full(self, answer):
        if answer.text is not None:
            raise UserError("the disk is full")
        raise AssertionError("noted as a failure of the judge")

    monkeypatch.setattr(AnswerStore, "add", full)
    with serving() as server, pytest.raises(UserError, match="the disk is full"):
        run(folder, items, server.config())


def test_without_a_key_openai_is_not_asked(folder, items):
    with pytest.raises(UserError, match=r"\$OPENAI_API_KEY is not set"):
        run(folder, items, JudgeConfig())


def test_omnicontext_and_the_rubric_of_our_own(tmp_path, omni_items):
    from scone_pl.evaluation.folder import EvaluationFolder

    folder = EvaluationFolder(tmp_path)
    write_pictures(omni_items, folder.images_of(1))
    with serving(
        lambda asked, times: "never" if asked.kind == "PHY" and "star" in asked.instruction else None
    ) as server:
        records = run(folder, omni_items, server.config(plausibility=True), benchmark=OMNICONTEXT)
    assert all(map(is_complete, records)), "PHY has no part in the benchmark's own scores"
    assert {asked.kind for asked in server.requests} == {"PF", "SC", "PHY"}
    assert all(len(asked.images) == 1 for asked in server.requests if asked.kind == "PHY")
    assert any(record["PHY"] is None for record in records)
    assert any(record["PHY"] is not None for record in records)
    scenes = [r for r in records if "scene" in r["task_type"]]
    assert {r["judge"]["prompts"]["SC"].split("/")[0] for r in scenes} == {"omnicontext_sc_scene"}
    assert {r["judge"]["prompts"]["PF"].split("/")[0] for r in records} == {"omnicontext_pf"}
    judgements = plan_judgements(folder, OMNICONTEXT, omni_items, JudgeConfig(scene_pf=True), 1, 1)
    found = {
        call.template.split("/")[0]
        for j in judgements
        if j.item.scene
        for call in j.calls
        if call.question.kind == "PF"
    }
    assert found == {"omnicontext_pf_scene"}


def test_dry_run_counts(folder, items):
    with serving() as server:
        config = server.config(model="gpt-4.1-2025-04-14")
        judgements = plan_judgements(folder, SCONEEVAL, items[:6], config, 1, 1)
        judge(folder, SCONEEVAL, judgements, config, progress=False)
        text = describe_plan(folder, plan_judgements(folder, SCONEEVAL, items, config, 1, 1), config)
    done = 2 * 6 + 4
    assert f"{CALLS} questions, {CALLS - done} to ask (6 PF, 6 SC, 20 DIS)" in text
    assert f"{done} answers, 16.0K + 160 tokens, $0.03" in text


def test_interrupted_and_resumed(folder, items):
    """Ctrl-C: the same command goes on."""

    def script(asked, times):
        if asked.number == 20:
            os.kill(os.getpid(), signal.SIGINT)
        # Slow answers behind it: on a busy machine the rest would else be there before the signal is looked at.
        return 0.02 if asked.number < 20 else 0.5

    with serving(script) as server:
        with pytest.raises(KeyboardInterrupt):
            run(folder, items, server.config(concurrency=3))
        asked, stored = server.settled(), len(lines_of(folder))
        assert 20 < asked < 28
        assert asked - stored <= 3
        assert len(read_records(folder.scores, SCONEEVAL)) == 12
        assert all(map(is_complete, run(folder, items, server.config())))
        assert len(server.requests) == asked + CALLS - stored


def test_killed_in_the_middle_and_resumed(folder, items, data, tmp_path):
    concurrency = 3
    with serving(lambda asked, times: 0.03) as server:
        command = ["judge", "--benchmark", "sconeeval", "--data", str(data), "--output", str(folder.path)]
        command += ["--scorings", "2", "--judge.base_url", server.url]
        command += ["--judge.concurrency", str(concurrency), "--judge.model", "fake"]
        log = tmp_path / "log"
        process = start_scone(*command, cwd=tmp_path, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while len(server.requests) < CALLS:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        asked_before = server.settled()
        whole = sum(line.endswith("}") for line in folder.answers.read_text().split("\n"))
        with folder.answers.open("ab") as file:  # as if it had been killed within a write
            file.write(b'{"ask": "0123", "text": "half of a l')
        assert asked_before - whole <= concurrency, "only calls in flight are lost"
        records = run(folder, items, server.config(), scorings=2)
        assert len(server.requests) == asked_before + 2 * CALLS - whole, "no stored answer is asked for again"
    assert all(map(is_complete, records))
    assert len(lines_of(folder)) == 2 * CALLS, "every line whole"
    assert len(AnswerStore(folder.answers)) == 2 * CALLS


def test_two_writers_are_refused(folder, items):
    with AnswerStore(folder.answers), pytest.raises(UserError, match=r"another judge \(process \d+ on .*\) is writing"):
        run(folder, items, FakeJudge().config())
