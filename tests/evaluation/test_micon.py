"""MICON-Bench on a synthetic benchmark in the published layout; every expected number is computed by hand."""

import copy
import json
import random
import shutil

import pytest
import yaml
from fake_judge import ERRORS, judged_with_faults, serving
from PIL import Image
from test_odd_input import mutated, one_line, try_odd_records

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.evaluation.benchmarks.micon import BENCHMARK, CHECKPOINTS, checkpoints_of
from scone_pl.evaluation.groups import group_tables
from scone_pl.evaluation.items import read_items
from scone_pl.evaluation.published import published
from scone_pl.evaluation.records import read_records
from scone_pl.evaluation.report import errors_of
from scone_pl.evaluation.steps import tables_markdown
from scone_pl.evaluation.summary import Summary
from scone_pl.vlm.parsing import UnusableAnswerError
from scone_pl.vlm.ratings import parse_checks

CASES = {
    "object_composition": {"o1": ("D1", 95.0), "o2": ("A1", 88.0)},  # 3 of 4 points; (0, 1, 1) is capped to 0.4
    "spatial_geometric_constraints": {"s1": ("A1 A2", 86.67), "s2": ("C2", 95.0)},  # a third stays below the cap
    "attribute_style_decoupling": {"a1": ("D2 D3", 86.67)},
    "local_element_transfer": {"c1": ("B1", 93.33), "c2": ("B2", 88.0)},  # B1 is soft, B2 hard
    "foreground_background_composition": {"f1": ("", 100.0), "f2": ("G1 G2 G3", 80.0)},
    "story_infer": {"t1": ("A1 B1", 74.0)},  # 40 x (0.4 + 0.4 + 4) / 6 + 60 x 7 / 10
}
"""Task -> case -> failed checkpoints and score."""
MEANS = [91.5, 90.835, 86.67, 90.665, 90.0, 74.0]
AVERAGE = 88.667
"""Over the ten cases; over tasks it would be 87.278."""


def write_case(root, task, name, number):
    folder = root / "refs"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for letter in "ABC"[: 2 + number % 2]:
        suffix = "jpg" if (number, letter) == (0, "A") else "png"
        mode = "RGBA" if (number, letter) == (1, "A") else "RGB"
        path = folder / f"{name}_R{letter}.{suffix}"
        Image.new(mode, (64, 64), (10 * number, 100, 200, 90)[: len(mode)]).save(path)
        paths[f"R{letter}"] = f"data/refs/{path.name}" if number % 2 else f"refs/{path.name}"
    case = {"case_id": name, "task_type": task, "refs": paths, "generation_prompt": f"draw {name}", "goal": "a goal"}
    case |= {"constraints_hard": ["first", "second"], "constraints_soft": ["x"], "participating_dimensions": ["A"]}
    (root / task / "cases").mkdir(parents=True, exist_ok=True)
    (root / task / "cases" / f"{name}.yaml").write_text(yaml.safe_dump(case, sort_keys=False))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    found = tmp_path_factory.mktemp("micon")
    for number, (task, cases) in enumerate(CASES.items()):
        for name in cases:
            write_case(found, task, name, number)
    story = {"case_id": "t1", "background_summary": "a fox and a crow", "positive_candidates": ["cheese falls"]}
    story["negative_candidates"] = ["the fox flies"]
    (found / "story_infer/simple_candidate_template.json").write_text(json.dumps({"cases": [story]}))
    return found


def answer_about(asked):
    """In one of the accepted forms, by case."""
    name = next(name for cases in CASES.values() for name in cases if f"draw {name}" in asked.text or name == "t1")
    task = next(task for task, cases in CASES.items() if name in cases)
    if "continues the story" in asked.text:
        return '{"score": 7, "reasoning": "moves on", "progress": true}'
    failed = {f"{one[0]}_check_{one[1]}" for one in CASES[task][name][0].split()}
    checks = {check: {"pass": int(check not in failed), "hard_id": "H1"} for check in checkpoints_of(task)}
    if name == "s1":
        checks = {check: {"pass": str(value["pass"])} for check, value in checks.items()}
    if name == "s2":
        return json.dumps({check: value["pass"] for check, value in checks.items()})
    text = json.dumps({"checkpoint_results": checks, "hard_constraint_results": {}, "rationale_short": "why"})
    return {"o1": f"```json\n{text}\n```", "o2": f"My answer: {text} That is all."}.get(name, text)


def test_the_golden_values(root, evaluation, capsys):
    def script(asked, times):
        text = answer_about(asked)
        if times == 1 and "draw f1" in asked.text:
            return text.replace('"A_check_2": {"pass": 1, "hard_id": "H1"}, ', "")  # one is missing
        if times == 1 and "draw f2" in asked.text:
            return text.replace('{"A_check_1"', '{"A_check_9": 1, "A_check_1"')  # one too many
        return text

    command = ["--benchmark", "micon", "--data", str(root), "--output", str(evaluation.path)]
    with serving(script) as server:
        judged = ["judge", *command, "--scorings", "1", "--judge.base_url", server.url]
        assert main(judged) == 0, capsys.readouterr().err
        assert main(judged) == 0
    assert len(server.requests) == 10 + 1 + 2, "a question a case, one for the story, two asked again"
    body = server.requests[0].body
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("Qwen/Qwen3-VL-32B-Instruct", 0.1, 800)
    sent = {image.partition(";")[0] for asked in server.requests for image in asked.images}
    assert sent == {"data:image/png", "data:image/jpeg"}, "the files as they are"
    assert not any("refs/" in asked.text or str(root) in asked.text for asked in server.requests)
    capsys.readouterr()
    assert main(["tables", "--benchmark", "micon", "--scores", str(evaluation.scores), "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["groups"]
    records = read_records(evaluation.scores, BENCHMARK)
    expected = [score for cases in CASES.values() for _, score in cases.values()]
    assert [BENCHMARK.item_scores(record)["Score"] for record in records] == expected
    assert [table["per_task"][task]["Score"] for task in CASES] == pytest.approx(MEANS, abs=1e-9)
    assert table["average"]["Score"] == pytest.approx(AVERAGE, abs=1e-9)
    by_key = {record["key"]: errors_of(BENCHMARK, [record]) for record in records}
    assert set(by_key["o2"]) == {"omission"}
    assert set(by_key["a1"]) == {"blending"}
    assert not by_key["f1"]
    missed = {record["key"]: BENCHMARK.missed(record) for record in records}
    assert missed["o2"] == [f"A1 (hard): {CHECKPOINTS['object_composition']['A'][0].text}"]
    assert not missed["f1"]
    text = tables_markdown([Summary.of(records, BENCHMARK, "ours")], [])
    assert text.count("### Failures by name") == 1
    assert "images with omission" not in text


def test_faulty_servers(root, evaluation):
    records, requests = judged_with_faults(BENCHMARK, read_items(BENCHMARK, root), evaluation, answer_about)
    assert requests == 2 * 11 + len(ERRORS), "only what failed was asked again, once"
    assert [table["average"]["Score"] for table in group_tables(records, BENCHMARK)] == pytest.approx([AVERAGE] * 2)


def test_the_published_averages_are_over_cases():
    """Number of cases of each task, and the paper's rows; see docs/open_benchmarks.md for the two that differ."""
    cases = dict(zip(BENCHMARK.tasks, (200, 200, 100, 240, 200, 103), strict=True))
    for method, row in published(BENCHMARK).rows.items():
        mean = sum(cases[task] * row[f"{task}.Score"] for task in cases) / 1043
        assert (abs(mean - row["average.Score"]) < 0.006) == (method not in ("Nano-Banana", "GPT-Image"))


def test_the_data_are_counted(root):
    lines = []
    read_items(BENCHMARK, root, say=lines.append)
    assert "10 items of 6 tasks (the paper counts 1043: object composition 2 of 200," in lines[0]
    assert "'RA' 10, 'RB' 10, 'RC' 5; 4 cases have more or fewer hard constraints" in lines[-1]


def test_every_hard_constraint_is_as_published():
    hard = {
        task: {f"{d}{i}": c.hard for d, checks in dimensions.items() for i, c in enumerate(checks, 1) if c.hard}
        for task, dimensions in CHECKPOINTS.items()
    }
    assert hard == {
        "object_composition": {"A1": "H1", "B1": "H2"},
        "spatial_geometric_constraints": {"A1": "H1", "C1": "H2"},
        "attribute_style_decoupling": {"A1": "H1", "B1": "H2", "C1": "H3", "D1": "H4"},
        "local_element_transfer": {"A1": "H1", "B2": "H2", "C1": "H3"},
        "foreground_background_composition": {"B1": "H1", "D1": "H2"},
        "story_infer": {"A1": "H1", "B1": "H2", "E1": "H3"},
    }


@pytest.mark.parametrize(
    "answer",
    ["", "yes", "[1, 0]", '{"A": 1}', '{"A": 1, "B": 2}', '{"A": 1, "B": null}', '{"A": 1, "B": "yes"}',
     '{"checkpoints": {"A": 1, "B": 0, "C": 1}}', '{"checkpoints": {"A": 1, "A": 0, "B": 1}}', '{"A": 1, "B": 0',
     '{"A": 0.5, "B": 1}', "{" * 5000],
)  # fmt: skip
def test_answers_that_are_asked_again(answer):
    with pytest.raises(UnusableAnswerError):
        parse_checks(answer, ("A", "B"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"case_id": "other"}, "`case_id` is 'other'; it must be the file's name"),
        ({"refs": {}}, "`refs` must map"),
        ({"refs": {"RA": "refs/no.png"}}, r"no such image file 'refs/no\.png'"),
        ({"refs": {"RA": "../micon/x.png"}}, "no such image file"),
        ({"generation_prompt": " "}, "`generation_prompt` must be a text"),
        ({"constraints_hard": "x"}, "`constraints_hard` must be a list"),
    ],
)
def test_bad_cases_are_named(root, tmp_path, change, message):
    copied = shutil.copytree(root, tmp_path / "data")
    file = copied / "story_infer/cases/t1.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **change}, sort_keys=False))
    with pytest.raises(UserError, match=message) as error:
        read_items(BENCHMARK, copied)
    assert "t1.yaml" in str(error.value)


def test_stories_need_their_candidates(root, tmp_path):
    copied = shutil.copytree(root, tmp_path / "data")
    (copied / "story_infer/simple_candidate_template.json").write_text('{"cases": []}')
    with pytest.raises(UserError, match=r"simple_candidate_template\.json: has no case 't1'"):
        read_items(BENCHMARK, copied)
    with pytest.raises(UserError, match=r"no TASK/cases/\*\.yaml of MICON-Bench"):
        read_items(BENCHMARK, tmp_path)


def test_a_case_that_comes_twice(root, tmp_path):
    copied = shutil.copytree(root, tmp_path / "data")
    shutil.copy(copied / "story_infer/cases/t1.yaml", copied / "story_infer/cases/t1.yml")
    with pytest.raises(UserError, match="data: 't1' comes 2 times in story_infer"):
        read_items(BENCHMARK, copied)


def test_odd_cases(root, tmp_path):
    copied, draw = shutil.copytree(root, tmp_path / "data"), random.Random(1)
    for name in ("story_infer/cases/t1.yaml", "story_infer/simple_candidate_template.json"):
        file = copied / name
        whole = yaml.safe_load(file.read_text())
        for _ in range(60):
            file.write_text(json.dumps(mutated(copy.deepcopy(whole), draw)))
            one_line(lambda: read_items(BENCHMARK, copied), copied)
        file.write_text(json.dumps(whole))


def test_without_a_server_its_judge_is_named(root, tmp_path, capsys):
    arguments = ["judge", "--benchmark", "micon", "--data", str(root), "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "is Qwen/Qwen3-VL-32B-Instruct: give --judge.base_url" in capsys.readouterr().err


def test_odd_records(tmp_path):
    whole = []
    for task in BENCHMARK.tasks:
        record = {"sampling": 1, "scoring": 1, "key": "1", "task_type": task, "CHECKS_reason": "x", "STORY": 7}
        whole.append(record | {"checks": dict.fromkeys(checkpoints_of(task), 1)})
    try_odd_records(BENCHMARK, whole, tmp_path)
