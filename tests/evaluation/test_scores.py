"""Against the published statistics' own numbers: the copies in `golden/`, and the project's originals if there."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from scone_pl.evaluation.scores import (
    OMNICONTEXT_TASKS,
    SCONEEVAL_TASKS,
    average_row,
    composition_score,
    distinction_scores,
    is_complete,
    item_scores,
    overall_score,
    task_means,
)
from scone_pl.worlds.shapes.episode import TASKS

GOLDEN = Path(__file__).parent / "golden"
BENCHMARKS = {"sconeeval": SCONEEVAL_TASKS, "omnicontext": OMNICONTEXT_TASKS}


@pytest.fixture
def golden():
    return GOLDEN


def read_json(folder, name):
    return json.loads((folder / name).read_text("utf-8"))


def groups_of(folder, benchmark):
    groups = defaultdict(list)
    for line in (folder / f"{benchmark}.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        groups[record["sampling"], record["scoring"]].append(record)
    return groups


def near(expected):
    return pytest.approx(expected, abs=1e-9, rel=0)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_tables(golden, benchmark):
    groups = groups_of(golden, benchmark)
    expected = read_json(golden, "expected.json")[benchmark]["groups"]
    assert len(expected) == len(groups)
    for table in expected:
        records = groups[table["sampling"], table["scoring"]]
        used = defaultdict(int)
        for record in filter(is_complete, records):
            used[record["task_type"]] += 1
        assert used == table["n_used"]
        per_task = task_means(records)
        assert per_task.keys() == table["per_task"].keys()
        for task, row in table["per_task"].items():
            assert per_task[task] == near(row)
        average = average_row(per_task, BENCHMARKS[benchmark])
        assert average == near(table["average"])
        if "derived_overall" in table:
            assert overall_score(average) == near(table["derived_overall"])


def test_items(golden):
    records = {(r["task_type"], r["key"]): r for r in groups_of(golden, "sconeeval")[1, 1]}
    for item in read_json(golden, "expected.json")["sconeeval"]["items_of_group_1_1"]:
        row = item_scores(records[item.pop("task_type"), item.pop("key")])
        assert row == near(item)


def test_distinction_cases(golden):
    for case in read_json(golden, "cases.json")["distinction_item"]:
        if "error" in case:
            with pytest.raises(ValueError, match="cannot be scored"):
                distinction_scores(case["label"], case["pred"])
        else:
            assert distinction_scores(case["label"], case["pred"]) == near(case["expected"])


def test_aggregation_edges(golden):
    for case in read_json(golden, "cases.json")["aggregation_edges"]:
        if "per_task" not in case:
            continue
        per_task = task_means(case["records"])
        tasks = BENCHMARKS[case["benchmark"]]
        for task in set(tasks) & set(case["per_task"]):
            assert per_task[task] == near(case["per_task"][task])
        if set(per_task) - set(tasks):
            with pytest.raises(ValueError, match="unknown tasks"):
                average_row(per_task, tasks)
        else:
            assert average_row(per_task, tasks) == near(case["average"])


def test_published_leaderboard(golden):
    complete = 0
    for row in read_json(golden, "leaderboard.json")["rows"]:
        per_task = defaultdict(dict)
        for name, value in row.items():
            task, _, column = name.rpartition(".")
            if task in SCONEEVAL_TASKS and value is not None:
                per_task[task][column] = value
        average = average_row(per_task)
        if average is None or row.get("overall") is None:
            continue
        complete += 1
        assert average["COM"] == pytest.approx(row["average.COM"], abs=0.01)
        assert average["DIS"] == pytest.approx(row["average.DIS"], abs=0.01)
        assert overall_score(average) == pytest.approx(row["overall"], abs=0.01)
    assert complete >= 10


def test_composition_is_the_geometric_mean():
    assert composition_score(4, 9) == 6
    assert composition_score(0, 10) == 0


def test_a_missing_task_gives_no_average():
    per_task = task_means([{"task_type": "composition_single", "PF": 5, "SC": 5}])
    assert per_task == {"composition_single": {"PF": 5, "SC": 5, "COM": 5}}
    assert average_row(per_task) is None


def test_the_mini_world_has_the_benchmarks_tasks():
    assert TASKS == SCONEEVAL_TASKS
