"""The unit cases that the published code was asked, and where ours means to answer differently (benchmarks 5)."""

import json
from pathlib import Path

import pytest

from scone_pl.evaluation.benchmarks import find_benchmark
from scone_pl.evaluation.case_types import CaseType
from scone_pl.evaluation.jsonl_items import shows_scene
from scone_pl.vlm.images import reference_size
from scone_pl.vlm.parsing import Score, UnusableAnswerError, parse_presence, parse_score

CASES = json.loads((Path(__file__).parent / "golden/cases.json").read_text("utf-8"))

SCORES_OF_OURS = {
    "{score: 5}": 5,  # the published repair makes a list of it
    "{score: 5, reasoning: x}": 5,
    '{"score": "8", "reasoning": "x"}': 8,  # there the text stays a text
    '{"score": 12, "reasoning": "x"}': None,  # there out of range passes
    '{"score": 6, "reasoning": "x",}': 6,  # there a trailing comma fails
    "rate_limit_exceeded": None,  # there an internal marker
    '{"reasoning": "x"}': None,  # there passes without a score
}
PRESENCE_OF_OURS = {
    "The answer is 1.": None,  # only a bare digit counts
    "0.5": None,
    "image 1 vs 2: 0": None,
    "Answer: 0 or 1? 1": None,
    "-1": None,
}


def outcome(parse, raw):
    try:
        found = parse(raw)
    except UnusableAnswerError:
        return None
    return found.value if isinstance(found, Score) else found


@pytest.mark.parametrize("case", CASES["parse_score"], ids=lambda case: case["raw"][:30])
def test_score_cases(case):
    published = case["reference"]["score"] if isinstance(case.get("reference"), dict) else None
    assert outcome(parse_score, case["raw"]) == SCORES_OF_OURS.get(case["raw"], published)


@pytest.mark.parametrize("case", CASES["parse_presence"], ids=lambda case: str(case["raw"])[:30])
def test_presence_cases(case):
    raw = case["raw"]
    assert outcome(parse_presence, raw) == PRESENCE_OF_OURS.get(raw, case.get("reference"))


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ('{"score": [7], "reasoning": "x"}', 7),
        ('{"score": [7, 8], "reasoning": "x"}', None),
        ('{"score": 1e0}', 1),
        ('{"score": "1_0"}', None),
        ('{"score": "\u0667"}', None),
        ('{"score": " 7.5 "}', 7.5),
        ("1_0", None),
        ('{"score": true}', None),
        ('{"score": null}', None),
        ('{"score": NaN}', None),
        ('{"score": Infinity}', None),
        ('{"score": -0.5}', None),
        ('{"score": 3, "score": 9}', None),
        ('{"score": ' + "9" * 5000 + "}", None),
        ("[" * 100_000 + "{" + "}", None),
        ('{"a":' * 100_000 + "{}", None),
        ('<think>{"score": 1}</think> {"score": 2}', 2),
        ('{"score": 4, "reasoning": {"why": "x"}}', 4),
        ('{"score": 4, "reasoning": "a, }"}', 4),
        ("7.5", 7.5),
        (None, None),
    ],
    ids=lambda value: str(value)[:24],
)
def test_scores(raw, value):
    assert outcome(parse_score, raw) == value


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ('<think>first {"score": 9}</think>{"score": 2}', 2),
        ('<THINK>\n{"score": 9}\n</Think >\n{"score": 2}', 2),
        ('<thinking>{"score": 9}</thinking>{"score": 2}', 2),
        ('draft {"score": 9}</think>{"score": 2}', 2),  # templates that swallow the opening tag
        ('a</think>{"score": 9}</think>{"score": 2}', 2),
        ('[THINK]{"score": 9}[/THINK]{"score": 2}', 2),
        ('◁think▷{"score": 9}◁/think▷{"score": 2}', 2),
        ('<seed:think>{"score": 9}</seed:think>{"score": 2}', 2),
        (
            '<|channel|>analysis<|message|>{"score": 9}<|end|><|start|>a<|channel|>final<|message|>{"score": 2}',
            2,
        ),
        ('{"score": 2}<|im_end|>', 2),
        ('<think>I would say {"score": 9}', None),  # cut off
        ('<Thinking>{"score": 9}', None),
        ('<think>a</think> wait <think>{"score": 9}', None),
        ('{"score": 9}</think>', None),
        ('{"score": 9} <think>', None),
        ('<|channel|>analysis<|message|>{"score": 9}', None),
        ("<think>" + " " * 1_000_000 + "<" + " " * 1_000_000, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_only_what_stands_behind_the_thinking_is_the_answer(raw, value):
    assert outcome(parse_score, raw) == value
    for digit in "01":
        presence = raw.replace('{"score": 2}', digit).replace('{"score": 9}', "1")
        assert outcome(parse_presence, presence) == (None if value is None else int(digit))


def test_reasons_are_optional():
    assert parse_score('{"score": 4}') == Score(4.0, "")
    assert parse_score('{"score": 4, "reasoning": "two\nlines"}').reason == "two\nlines"


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ('"1"', 1),
        ("`0`", 0),
        ("1.", 1),
        ("**1**.", 1),
        ('{"present": 1}', 1),
        ('```json\n{"answer": "0"}\n```', 0),
        ('{"present": 1, "reasoning": "it is the left one"}', 1),
        ('{"present": 1, "score": 0}', None),
        ('{"present": true}', None),
        ("1 0", None),
        ("1..", None),
        ("1" + "*" * 1_000_000 + "x", None),
        ("yes", None),
    ],
    ids=lambda value: str(value)[:24],
)
def test_presence(raw, value):  # the long one must not take long
    assert outcome(parse_presence, raw) == value


def test_reference_sizes():
    for case in CASES["resize_reference"]:
        # A side under 16 pixels makes the published code stop (number 19); ours becomes 16.
        assert list(reference_size(*case["size"])) == case.get("sent", [16, 192])


def test_scene_flags():
    for case in CASES["scene_flag"]:
        expected = case["scene_prompt_for_SC"] and case["case_type"] != "Single"  # number 11: any capital S there
        assert shows_scene(case["task_type"], case["case_type"]) is expected
        has_presence = "DIS" in find_benchmark(case["benchmark"]).columns(case["task_type"])
        assert has_presence is case["judges_distinction"]


@pytest.mark.parametrize(
    ("text", "count", "contents", "unknown"),
    [
        ("2CS", 2, {"character", "scene"}, ()),
        ("3 C+O+S", 3, {"character", "object", "scene"}, ()),
        ("4_char_obj", 4, {"character", "object"}, ()),
        ("CharacterScene", None, {"character", "scene"}, ()),
        ("2 images: Objects", 2, {"object"}, ()),
        ("Single", None, set(), ("Single",)),
        (None, None, set(), ()),
    ],
)
def test_case_types(text, count, contents, unknown):
    assert CaseType.parse(text) == CaseType(count, frozenset(contents), unknown)


def test_call_plans(tmp_path, data):
    """Kinds, order and images. The published retries, which repeat all calls of an item, are not ours."""
    import shutil
    from dataclasses import replace

    from scone_pl.evaluation.calls import Planner
    from scone_pl.evaluation.items import Item
    from scone_pl.evaluation.judge_config import JudgeConfig
    from scone_pl.evaluation.templates import Templates

    files = {name: tmp_path / f"{name}.png" for name in ("r0", "r1", "output")}
    for file in files.values():
        shutil.copy(data / "images/composition_single_0001_1.png", file)
    planner = Planner(
        find_benchmark("sconeeval"), JudgeConfig(), Templates.of(find_benchmark("sconeeval"), JudgeConfig())
    )
    item = Item("k", "distinction_multi_cross", "draw", (), scene=False)
    for case in CASES["judge_call_plan"]:
        if case["scripted_answers"]:
            continue
        shown = replace(
            item,
            images=tuple(files[name] for name in case["references"]),
            scene=case["scene"],
            subjects=tuple(map(tuple, case["subjects"] or ())),
            labels=tuple(map(tuple, case["labels"] or ())),
        )
        calls = planner.judgement(shown, files["output"], 1, 1).calls
        assert len(calls) == case["n_calls"]
        for call, expected in zip(calls, case["calls"], strict=True):
            assert call.question.kind == expected["kind"]
            assert [image.file.stem for image in call.images] == expected["images"]
            assert [image.reference for image in call.images] == [True] * (len(call.images) - 1) + [False]
            if call.question.kind == "SC":
                assert ("_sc_scene" in call.template) == expected["scene"]
            if call.question.kind == "DIS":
                assert call.text.endswith(f"Subject: {expected['subject']}\n")
