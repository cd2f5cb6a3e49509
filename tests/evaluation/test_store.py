"""The store of answers, and what the judge's patience and prices are made of."""

import dataclasses

import pytest

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import BENCHMARKS
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.templates import FOLDER, Templates
from scone_pl.vlm.client import _retry_after
from scone_pl.vlm.costs import Usage, price_of
from scone_pl.vlm.store import Answer, AnswerStore


@pytest.fixture
def file(tmp_path):
    found = tmp_path / "answers.jsonl"
    with AnswerStore(found) as store:
        store.add(Answer(ask="a", text="first"))
        store.add(Answer(ask="b", failure="busy"))
        store.add(Answer(ask="a", text="sécond\n"))
    return found


def test_answers_come_back_in_order(file):
    store = AnswerStore(file)
    assert [answer.text for answer in store.of("a")] == ["first", "sécond\n"]
    assert store.of("b")[0].failure == "busy"
    assert store.of("c") == []
    with pytest.raises(RuntimeError, match="open the store"):
        store.add(Answer(ask="c"))


def test_any_torn_end_is_passed_over_and_repaired(file):
    whole = file.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for stop in [*range(start, len(whole) - 3, 9), *range(len(whole) - 3, len(whole) + 1)]:
        file.write_bytes(whole[:stop])
        kept = 3 if stop >= len(whole) - 1 else 2
        assert len(AnswerStore(file)) == kept
        with AnswerStore(file) as store:
            store.add(Answer(ask="c", text="new"))
        assert len(AnswerStore(file)) == kept + 1
        assert file.read_bytes().count(b"\n") == kept + 1


def test_a_damaged_line_in_the_middle_is_named(file):
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([lines[0], b"{what", *lines[1:]]))
    with pytest.raises(UserError, match=r"answers\.jsonl:2: not a valid answer; correct the line"):
        AnswerStore(file)


def test_what_another_writer_added_is_seen(file):
    early = AnswerStore(file)
    with AnswerStore(file) as other:
        other.add(Answer(ask="d", text="later"))
        with pytest.raises(UserError, match="another judge"), early:
            pass
    with early:
        assert early.of("d")[0].text == "later"


def test_a_full_disk_leaves_no_half_line(file, monkeypatch):
    import scone_pl.vlm.store as module

    before = file.read_bytes()
    write = module.os.write
    with AnswerStore(file) as store:
        monkeypatch.setattr(module.os, "write", lambda descriptor, data: write(descriptor, data[:10]))
        with pytest.raises(UserError, match="cannot be written"):
            store.add(Answer(ask="e", text="lost"))
    assert file.read_bytes() == before


def test_retry_after():
    assert _retry_after("7") == 7
    assert _retry_after("-1") == 0
    assert _retry_after(None) is _retry_after("soon") is _retry_after("nan") is None
    from fake_judge import http_date

    assert 25 < _retry_after(http_date(30)) <= 30
    assert _retry_after(http_date(-30)) == 0


def test_prices(tmp_path):
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 1_000_000, "cached_tokens": 500_000}
    assert price_of("gpt-4.1").of(usage) == pytest.approx(1.0 + 0.25 + 8.0)
    assert price_of("gpt-4.1-2025-04-14") == price_of("gpt-4.1")
    assert price_of("some/local-model") is None
    count = Usage(None)
    count.add(usage)
    assert str(count) == "1.00M + 1.00M tokens, cost unknown"
    assert count.as_dict()["dollars"] is None
    (tmp_path / "p.yaml").write_text("mine: {input: 1, output: 2}")
    assert price_of("mine", tmp_path / "p.yaml").of({"prompt_tokens": 2_000_000}) == 2
    for text in ("mine: 3", "- 1", "mine: {inputs: 1}", "{"):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(UserError, match=r"p\.yaml"):
            price_of("mine", tmp_path / "p.yaml")


def test_prompts_are_filled_and_versioned(items):
    templates = Templates()
    for benchmark in BENCHMARKS.values():
        for scene in (False, True):
            item = dataclasses.replace(items[0], scene=scene, instruction="{{subject}} $x \\1")
            for template in (
                templates.prompt_following(benchmark, item, scene_pf=True),
                templates.subject_consistency(benchmark, item),
            ):
                text = template.fill(instruction=item.instruction, references="2", subject="no")
                assert text.endswith("Instruction: {{subject}} $x \\1\n"), "what is filled in is left as it is"
                assert '{"score": <number>, "reasoning":' in text
                assert ("Reference pictures: 2;" in text) == (benchmark.name == "sconeeval")
    names = {p.stem for p in FOLDER.glob("*.md")} - {"README", "frame", "inputs", "scale"}
    assert len({templates[name].identity for name in names}) == len(names) == 9


def test_a_prompt_with_a_wrong_field(tmp_path):
    (tmp_path / "VERSION").write_text("mine\n")
    (tmp_path / "x.md").write_text("{{frame}} {{who}}")
    with pytest.raises(UserError, match=r"frame\.md"):
        Templates(tmp_path)["x"]
    (tmp_path / "frame.md").write_text("f")
    with pytest.raises(UserError, match=r"unknown field \{\{who\}\}"):
        Templates(tmp_path)["x"]
    (tmp_path / "sconeeval_dis.md").write_text("{{frame}} {{instruction}}")
    with pytest.raises(UserError, match=r"sconeeval_dis\.md: unknown field \{\{instruction\}\}; there are subject"):
        Templates(tmp_path)["sconeeval_dis"]
    with pytest.raises(UserError, match="VERSION"):
        Templates(tmp_path / "no")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "must look like"),
        ({"base_url": "http://me:secret@host/v1"}, "no user, password"),
        ({"timeout": 0}, "judge.timeout is 0"),
        ({"parameters": {"model": "x"}}, "cannot set model"),
        ({"api_key_env": "sk-secret"}, "must be the name of an environment variable"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message) as error:
        JudgeConfig(**settings)
    assert "secret" not in str(error.value)


def test_a_key_that_can_not_be_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ab\ncd")
    with pytest.raises(UserError, match="has characters") as error:
        JudgeConfig().key()
    assert "ab" not in str(error.value).replace("holds", "").replace("variable", "")
