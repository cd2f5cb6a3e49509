"""The store of answers, and what the judge's patience and prices are made of."""

import dataclasses

import pytest

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Question
from scone_pl.evaluation.benchmarks import all_benchmarks
from scone_pl.evaluation.calls import all_questions
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.templates import GENERATED, PARTS, REFERENCES, Templates
from scone_pl.vlm.client import _retry_after
from scone_pl.vlm.costs import Usage, price_of
from scone_pl.vlm.parsing import parse_score
from scone_pl.vlm.store import Answer, AnswerStore
from scone_pl.vlm.templates import Template


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


@pytest.mark.parametrize("benchmark", all_benchmarks().values(), ids=all_benchmarks())
def test_prompts_are_filled_and_versioned(benchmark, items):
    config = JudgeConfig(scene_pf=benchmark.name == "omnicontext", plausibility=True)
    templates = Templates.of(benchmark, config)
    if benchmark.name in ("sconeeval", "omnicontext"):
        for scene in (False, True):
            item = dataclasses.replace(items[-1], scene=scene, instruction="{{subject}} $x \\1")
            for question in all_questions(benchmark, item, config):
                template = templates.of_question(question)
                if question.kind != "DIS":
                    text = template.fill(**question.fields)
                    assert text.endswith("Instruction: {{subject}} $x \\1\n"), "what is filled in is left as it is"
                    assert '{"score": <number>, "reasoning":' in text
                    is_told = benchmark.name == "sconeeval" and question.kind != "PHY"
                    assert ("Reference pictures: 2;" in text) == is_told
    names = {p.stem for folder in templates.folders for p in folder.glob("*.md")} - {"README", *PARTS}
    assert len({templates[name].identity for name in names}) == len(names) > 1
    assert all(templates[name].version.startswith("scone_pl-") for name in names)


def test_a_prompt_with_a_wrong_field(tmp_path):
    (tmp_path / "VERSION").write_text("mine\n")
    (tmp_path / "x.md").write_text("{{frame}} {{who}}")
    asked = Question("PF", "x", {"instruction": "draw"}, parse_score)
    with pytest.raises(UserError, match=r"frame\.md"):
        Templates(tmp_path).of_question(asked)
    (tmp_path / "frame.md").write_text("f")
    with pytest.raises(UserError, match=r"x\.md: unknown field \{\{who\}\}; there are instruction, frame"):
        Templates(tmp_path).of_question(asked)
    (tmp_path / "x.md").write_text("{{reference_images}} {{instruction}}")
    with pytest.raises(UserError, match=r"x\.md: has \{\{reference_images\}\} only; name both"):
        Templates(tmp_path).of_question(asked)
    with pytest.raises(UserError, match="VERSION"):
        Templates(tmp_path / "no")
    (tmp_path / "sconeeval_pff.md").write_text("x")
    with pytest.raises(UserError, match=r"no prompt of sconeeval has that name"):
        Templates.of(all_benchmarks()["sconeeval"], JudgeConfig(prompts=str(tmp_path)))


def test_images_stand_where_the_prompt_names_them():
    template = Template("x", "a {{reference_images}} b {{instruction}} {{generated_image}}\n", "v")
    fields = {"instruction": "{{generated_image}} {{x}}"}
    images = (REFERENCES, GENERATED)
    assert template.segments(fields, images) == ["a ", REFERENCES, " b {{generated_image}} {{x}} ", GENERATED]
    assert Template("x", "a {{instruction}}", "v").segments({"instruction": "i"}, images) == [
        "a i",
        *images,
    ]


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
