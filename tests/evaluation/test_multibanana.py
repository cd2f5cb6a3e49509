"""MultiBanana on a synthetic benchmark in the published layout; every expected number is computed by hand."""

import json
import random
import re
import shutil
from collections import Counter

import pytest
from fake_judge import ERRORS, judged_with_faults, serving
from PIL import Image
from test_odd_input import mutated, one_line, try_odd_records

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.evaluation.benchmarks.multibanana import BENCHMARK, LABELS
from scone_pl.evaluation.bootstrap import intervals
from scone_pl.evaluation.groups import combine, group_tables
from scone_pl.evaluation.items import read_items
from scone_pl.evaluation.published import published
from scone_pl.evaluation.summary import Summary
from scone_pl.evaluation.tables import main_markdown
from scone_pl.vlm.parsing import UnusableAnswerError
from scone_pl.vlm.ratings import parse_labelled

SETS = {
    "single": {"001": (9, 8, 7, 6, 5), "003": (3, 4, 10, 10, 10)},
    "add": {"002": (1, 1, 1, 1, 1), "005": (10, 10, 10, 10, 10), "007": (4, 6, 5, 5, 5)},
    "3_back": {"010": (6, 6, 1, 1, 1), "011": (2, 2, 8, 8, 8)},
    "8_object": {"020": (5, 5, 5, 5, 5), "021": (7, 1, 4, 4, 4)},
}
TOTALS = {"single": (20 / 3, 7.2), "add": (16 / 3, 16 / 3), "3_back": (25 / 6, 4.3), "8_object": (4.5, 4.5)}
"""Task -> (3a + 3b + c + d + e) / 9 and (a + b + c + d + e) / 5, means over its sets."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    found = tmp_path_factory.mktemp("multibanana")
    for task, sets in SETS.items():
        (found / task).mkdir()
        count = {"single": 1, "add": 2}.get(task) or int(task[0])
        for name in sets:
            for i in range(count):
                kind = "PNG" if (name, i) == ("005", 1) else "JPEG"
                Image.new("RGB", (64 + 4 * i, 80), (20 * i, 90, int(name))).save(found / task / f"{name}_{i}.jpg", kind)
            text = f"\ufeffdraw {name} as Image 1 猫\n"
            (found / task / f"{name}_prompt.txt").write_text(text, encoding="utf-8")
    Image.new("RGB", (8, 8)).save(found / "add/002_generated.png")
    (found / "add/types.json").write_text('{"2": "rare", "005": ["rare", "ling"], "99": "font"}')
    (found / "from_where.csv").write_text("file,source\n001_0.jpg,real\n")
    return found


def answer_about(asked):
    name = re.search(r"draw (\d+)", asked.text)[1]
    values = next(sets[name] for sets in SETS.values() if name in sets)
    lines = [f"{label}: {value}" for label, value in zip(LABELS.values(), values, strict=True)]
    if name == "003":
        lines = [f"**{line.replace(':', ':**')}" for line in lines]
    if name == "005":
        lines = [f"- {line}/10" for line in lines]
    quoted = "Instruction Alignment: 2\nVisual Quality: 1 would be too hard.\n\n" if name == "007" else ""
    return f"Reasoning: {quoted}fine.\n" + "\n".join(lines)


def bad_first_answers(asked, times):
    text = answer_about(asked)
    name = re.search(r"draw (\d+)", asked.text)[1]
    if times == 1 and name in ("010", "011", "020"):
        changed = {"010": text[: text.index("Visual")], "011": text.replace(": 8", ": 0")}
        return changed.get(name, text.replace(": 5", ": 11"))
    return text


def test_the_golden_values(root, evaluation, capsys):
    command = ["--benchmark", "multibanana", "--data", str(root), "--output", str(evaluation.path)]
    with serving(bad_first_answers) as server:
        judged = ["judge", *command, "--scorings", "1", "--judge.base_url", server.url]
        assert main(judged) == 0, capsys.readouterr().err
        assert main(judged) == 0
    assert len(server.requests) == 9 + 3, "cut off, 0 and 11 are asked again"
    asked = next(asked for asked in server.requests if "draw 021" in asked.text)
    kinds = [part["type"] for part in asked.body["messages"][0]["content"]]
    assert kinds == ["text", *["image_url"] * 8, "text", "image_url", "text"]
    assert asked.body["max_tokens"] == 2048
    assert "猫" in asked.text
    assert "\ufeff" not in asked.text
    capsys.readouterr()
    assert main(["tables", "--benchmark", "multibanana", "--scores", str(evaluation.scores), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (table,) = found["groups"]
    for task, (total, mean) in TOTALS.items():
        assert table["per_task"][task]["Total"] == pytest.approx(total, abs=1e-9)
        assert table["per_task"][task]["Mean"] == pytest.approx(mean, abs=1e-9)
    assert table["two"] is None, "ten of its tasks are missing"
    ((title, rows),) = found["further_tables"].items()
    assert title == "Difficulty"
    # rare: 1 and 10; without: 23/3, 17/3, 5, 13/3, 4, 5, 4
    assert rows[2] == ["rare", "2", "5.50", "5.10", "5.50", "5.29"]


def test_more_references_than_the_generator_takes(root, evaluation, capsys):
    command = ["--benchmark", "multibanana", "--data", str(root), "--output", str(evaluation.path)]
    with serving(lambda asked, times: answer_about(asked)) as server:
        judged = ["judge", *command, "--max-references", "5", "--scorings", "1", "--judge.base_url", server.url]
        assert main(judged) == 0
    assert "2 of 9 items have more than 5 references" in capsys.readouterr().err
    assert len(server.requests) == 7
    assert main(["tables", "--benchmark", "multibanana", "--scores", str(evaluation.scores), "--name", "ours"]) == 0
    text = capsys.readouterr().out
    heads = [cell.strip() for cell in next(line for line in text.splitlines() if "Method" in line).split("|")]
    ours = [cell.strip() for cell in next(line for line in text.splitlines() if "**ours**" in line).split("|")]
    assert ours[heads.index("8 references object")] == "**-**"
    assert ours[heads.index("1 reference single")] == "**6.67**"


def test_the_data_are_counted(root):
    lines = []
    read_items(BENCHMARK, root, say=lines.append)
    assert lines[0].endswith("(the paper counts 3769: 1 reference 2 of 264, 2 references 3 of 907, 3 to 8 4 of 2598)")
    assert lines[1:] == [
        "data: 30 references; items: 2 with 1, 3 with 2, 2 with 3, 2 with 8",
        "data: difficulties of types.json: 'ling' 1, 'rare' 2; 2 sets have one, 1 several",
        "data: from_where.csv has 1 rows of 'file' (1 values: '001_0.jpg' 1); 'source' (1 values: 'real' 1); it is not "
        "used",
    ]


@pytest.mark.parametrize("content", ["", "\n", "a,b\n1\n\n", '"', "x" * 200_000, "a\n\0\n"])
def test_odd_sources(root, tmp_path, content):
    copied = shutil.copytree(root, tmp_path / "data")
    (copied / "from_where.csv").write_text(content)
    one_line(lambda: read_items(BENCHMARK, copied, say=str), copied)
    (copied / "from_where.csv").unlink()
    lines = []
    read_items(BENCHMARK, copied, say=lines.append)
    assert lines[-1] == "data: no from_where.csv, so nothing says which references are real"


def record_of(task, values, **more):
    return {
        "sampling": 1,
        "scoring": 1,
        "key": "1",
        "task_type": task,
        **dict(zip(LABELS, values, strict=True)),
        **more,
    }


def test_groups_of_tasks():
    """Task i of 36 has i mod 10 + 1 in every criterion, so both totals are that."""
    value = {task: i % 10 + 1 for i, task in enumerate(BENCHMARK.tasks)}
    records = [record_of(task, [number] * 5) for task, number in value.items()]
    (table,) = group_tables(records, BENCHMARK)
    two = [value[task] for task in BENCHMARK.tasks[1:12]]
    assert table["two"]["Total"] == pytest.approx(sum(two) / 11, abs=1e-9)
    for structure in ("local", "global", "back", "object"):
        numbers = [value[f"{n}_{structure}"] for n in range(3, 9)]
        assert table[structure]["Total"] == pytest.approx(sum(numbers) / 6, abs=1e-9)
        assert table[structure]["Mean"] == pytest.approx(sum(numbers) / 6, abs=1e-9)
    mean = combine([table])["mean"]
    assert intervals(records, BENCHMARK, resamples=10)["two.Total"] == pytest.approx([mean["two.Total"]] * 2)
    summary = Summary.of(records, BENCHMARK, "ours")
    assert main_markdown([summary]).count("\n") == 2 + 5


def test_published_rows():
    rows = published(BENCHMARK).rows
    assert rows["OmniGen2"]["two.Total"] == pytest.approx(59.73 / 11)
    assert rows["DreamOmni2"]["local.Total"] == pytest.approx(19.81 / 6)
    assert "local.Total" not in rows["OmniGen2"], "not run with 6 to 8 references"


def test_faulty_servers(root, evaluation):
    _, requests = judged_with_faults(BENCHMARK, read_items(BENCHMARK, root), evaluation, answer_about)
    assert requests == 2 * 9 + len(ERRORS)


def test_a_hundred_items_interrupted_and_resumed(tmp_path, capsys):
    data, images = tmp_path / "data/single", tmp_path / "images/single"
    for folder in (data, images):
        folder.mkdir(parents=True)
    for number in range(100):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(data / f"{number:03}_0.jpg")
        (data / f"{number:03}_prompt.txt").write_text(f"draw {number}")
        Image.new("RGB", (8, 8), (0, number, 0)).save(images / f"{number:03}.png")
    answers = Counter()

    def script(asked, times):
        if len(answers) == 37 and not script.resumed:
            return 401, {"error": {"code": "invalid_api_key", "message": "no"}}, {}
        answers[asked.digest] += 1
        return "\n".join(f"{label}: 5" for label in LABELS.values())

    script.resumed = False
    with serving(script) as server:
        command = ["judge", "--benchmark", "multibanana", "--data", str(tmp_path / "data"), "--scorings", "1"]
        command += ["--images", str(tmp_path / "images"), "--output", str(tmp_path / "out")]
        command += ["--judge.base_url", server.url, "--judge.concurrency", "1"]
        assert main(command) == 2
        script.resumed = True
        assert main(command) == 0, capsys.readouterr().err
    assert len(answers) == 100
    assert set(answers.values()) == {1}, "nothing is asked twice"


LINES = "\n".join(f"{label}: 5" for label in LABELS.values())


@pytest.mark.parametrize(
    "answer",
    ["", "fine", LINES.replace("Visual Quality: 5", ""), LINES.replace(": 5", ": 5.5"), LINES.replace(": 5", ": 0"),
     LINES.replace(": 5", ": 11"), LINES.replace(": 5", ": five"), LINES.replace(": 5", ": 5/9"),
     LINES + "\nVisual Quality: 6", LINES[:-1], "<think>" + LINES],
)  # fmt: skip
def test_answers_that_are_asked_again(answer):
    with pytest.raises(UnusableAnswerError):
        parse_labelled(answer, LABELS, 1, 10)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda task: (task / "010_1.jpg").unlink(), r"reference 010_1\.jpg is missing; sets of 3_back have 3"),
        (lambda task: (task / "010_0.jpg").rename(task / "010_3.jpg"), r"reference 010_0\.jpg is missing"),
        (lambda task: shutil.copy(task / "010_0.jpg", task / "010_3.jpg"), r"010_3\.jpg: one reference too many"),
        (lambda task: shutil.copy(task / "010_0.jpg", task / "010_0.png"), r"the same reference as 010_0"),
        (lambda task: (task / "010_prompt.txt").unlink(), r"010_prompt\.txt is missing"),
        (lambda task: (task / "10_prompt.txt").write_text("x"), "the sets 010 and 10 have the same number"),
        (lambda task: (task / "010_prompt.txt").write_text("\n"), r"010_prompt\.txt: is empty"),
        (lambda task: (task / "010_prompt.txt").write_bytes(b"\xff"), r"010_prompt\.txt: not UTF-8"),
        (lambda task: (task / "types.json").write_text('{"010": 3}'), r"types\.json: '010' must have a category"),
    ],
)
def test_bad_sets_are_named(root, tmp_path, spoil, message):
    copied = shutil.copytree(root, tmp_path / "data")
    spoil(copied / "3_back")
    with pytest.raises(UserError, match=message):
        read_items(BENCHMARK, copied)


def test_odd_difficulties(root, tmp_path):
    copied, draw = shutil.copytree(root, tmp_path / "data"), random.Random(1)
    for _ in range(60):
        (copied / "add/types.json").write_text(json.dumps(mutated({"002": "rare", "005": ["rare", "ling"]}, draw)))
        one_line(lambda: read_items(BENCHMARK, copied), copied)


def test_odd_records(tmp_path):
    whole = [record_of(task, [5] * 5, difficulty=["rare"], RATE_reason="x") for task in BENCHMARK.tasks[:4]]
    try_odd_records(BENCHMARK, whole, tmp_path)
