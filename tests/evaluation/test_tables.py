"""Statistics and tables, against the published code's numbers where there are any."""

import json
from pathlib import Path

import pytest

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.evaluation.benchmarks import find_benchmark
from scone_pl.evaluation.benchmarks.omnicontext import OMNICONTEXT
from scone_pl.evaluation.benchmarks.sconeeval import SCONEEVAL
from scone_pl.evaluation.bootstrap import compare, intervals
from scone_pl.evaluation.groups import combine, error_rates, group_tables
from scone_pl.evaluation.published import published, unique_names
from scone_pl.evaluation.records import read_records
from scone_pl.evaluation.scores import average_row, overall_score
from scone_pl.evaluation.stability import stability
from scone_pl.evaluation.summary import Summary
from scone_pl.evaluation.tables import comparison_markdown, detail_markdown, extra_markdown, latex, main_markdown

GOLDEN = Path(__file__).parent / "golden"


def read(benchmark, folder=GOLDEN):
    return read_records(folder / f"{benchmark.name}.jsonl", benchmark)


def check_near(found, expected, where=""):
    assert type(found) is type(expected) or isinstance(expected, int | float), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            check_near(found[name], value, f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            check_near(found[number], value, f"{where}[{number}]")
    else:
        assert found == pytest.approx(expected, abs=1e-9, rel=0), where


@pytest.mark.parametrize("name", ["sconeeval", "omnicontext"])
def test_the_command_prints_the_expected_json(name, capsys):
    assert main(["tables", "--benchmark", name, "--scores", str(GOLDEN / f"{name}.jsonl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = json.loads((GOLDEN / "expected.json").read_text())[name]
    check_near(found["groups"], expected["groups"])
    check_near(found["combined"], expected["combined"])


def test_the_language_filter_is_the_english_view(capsys):
    path = GOLDEN / "omnicontext.jsonl"
    assert main(["tables", "--benchmark", "omnicontext", "--scores", str(path), "--json", "--language", "en"]) == 0
    found = json.loads(capsys.readouterr().out)["groups"]
    for group, expected in zip(
        found, json.loads((GOLDEN / "expected.json").read_text())["omnicontext"]["groups"], strict=True
    ):
        check_near({name: group[name] for name in ("per_task", "average")}, expected["english_only"])


@pytest.mark.parametrize("case", json.loads((GOLDEN / "cases.json").read_text())["aggregation_edges"], ids=str)
def test_aggregation_edges(case, tmp_path):
    benchmark = find_benchmark(case["benchmark"])
    file = tmp_path / "scores.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in case["records"]))
    if case["name"] == "unlisted_task_present":  # there it enters the average and has no row (number 14)
        with pytest.raises(UserError, match=r"scores\.jsonl:\d+: '.*' is no task of"):
            read_records(file, benchmark)
        return
    table = group_tables(read_records(file, benchmark), benchmark)[0]
    if "average" in case:
        check_near(table["average"], case["average"])
        check_near(table["per_task"], case["per_task"])
    else:  # there a missing task stops the program
        assert table["average"] is None
        assert not any(name.startswith("average") for name in combine([table])["mean"])


def test_published_rows():
    leaderboard = {row["method"]: row for row in json.loads((GOLDEN / "leaderboard.json").read_text())["rows"]}
    table = published(SCONEEVAL)
    assert list(table.rows) == list(leaderboard)
    for method, row in table.rows.items():
        assert row == {name: value for name, value in leaderboard[method].items() if name != "method"}
        per_task = {t: {c: row[f"{t}.{c}"] for c in ("COM", "DIS") if f"{t}.{c}" in row} for t in SCONEEVAL.tasks}
        average = average_row(per_task)
        assert average["COM"] == pytest.approx(row["average.COM"], abs=0.01)
        assert average["DIS"] == pytest.approx(row["average.DIS"], abs=0.01)
        assert overall_score(average) == pytest.approx(row["overall"], abs=0.01)
    for row in published(OMNICONTEXT).rows.values():
        values = [row[f"{task}.COM"] for task in OMNICONTEXT.tasks]
        assert sum(values) / 8 == pytest.approx(row["average.COM"], abs=0.011)


@pytest.mark.parametrize("benchmark", [SCONEEVAL, OMNICONTEXT], ids=lambda one: one.name)
def test_intervals_hold_the_mean_and_do_not_depend_on_order(benchmark):
    records = read(benchmark)
    mean, found = combine(group_tables(records, benchmark))["mean"], intervals(records, benchmark)
    assert found.keys() == mean.keys()
    for column, (low, high) in found.items():
        assert 0 <= low <= mean[column] <= high <= 10
        assert column.startswith("composition_single") or low < high
    assert intervals(records[::-1], benchmark) == found
    assert intervals(records, benchmark, seed=1) != found


def test_an_interval_of_known_width():
    """Items of 2 and 8, half each: the mean's standard error is 3 / sqrt(n)."""
    records = [
        {"sampling": 1, "scoring": 1, "key": str(k), "task_type": task, "PF": v, "SC": v}
        for task in OMNICONTEXT.tasks
        for k, v in enumerate([2, 8] * 50)
    ]
    low, high = intervals(records, OMNICONTEXT)["single_character.COM"]
    assert low == pytest.approx(5 - 1.96 * 0.3, abs=0.06)
    assert high == pytest.approx(5 + 1.96 * 0.3, abs=0.06)
    low, high = intervals(records, OMNICONTEXT)["average.COM"]
    assert high - low == pytest.approx(2 * 1.96 * 0.3 / 8**0.5, abs=0.04), "tasks are resampled apart"


def test_paired_comparison():
    ours = read(SCONEEVAL)
    theirs = [dict(r) for r in ours]
    for record in theirs:
        record["PF"] = None if record.get("PF") is None else max(0, record["PF"] - 1)
    found = compare(ours, theirs, SCONEEVAL)
    row = found["columns"]["average.PF"]
    assert row["difference"] == pytest.approx(row["first"] - row["second"])
    assert 0 < row["interval"][0] <= row["difference"] <= row["interval"][1] <= 1.0 + 1e-9
    assert row["p"] <= 2 / 2000
    same = found["columns"]["average.SC"]
    assert (same["difference"], same["interval"], same["p"]) == (0, [0, 0], 1)
    swapped = compare(theirs, ours, SCONEEVAL)["columns"]["average.PF"]
    assert swapped["difference"] == pytest.approx(-row["difference"])
    fewer = [r for r in theirs if r["key"] != "0003"]
    assert sum(compare(ours, fewer, SCONEEVAL)["n"].values()) < sum(found["n"].values())
    with pytest.raises(UserError, match="no complete item in common"):
        compare(ours, [{**r, "key": "other" + r["key"]} for r in ours], SCONEEVAL)


def test_groups_that_lack_a_task_have_no_average_in_intervals_and_comparisons_either():
    def group(scoring, value, lost=None):
        common = {
            "sampling": 1,
            "scoring": scoring,
            "key": "k",
            "PF": value,
            "SC": value,
            "label": [[1]],
            "pred": [[1]],
        }
        return [{**common, "task_type": task, **({"PF": None} if task == lost else {})} for task in SCONEEVAL.tasks]

    first, second = SCONEEVAL.tasks[:2]
    for records in ([*group(1, 4, lost=first), *group(2, 8, lost=second)], [*group(1, 4, lost=first), *group(2, 8)]):
        mean = combine(group_tables(records, SCONEEVAL))["mean"]
        assert intervals(records, SCONEEVAL) == {column: (value, value) for column, value in mean.items()}
        found = compare(records, records, SCONEEVAL)["columns"]
        assert {column: row["first"] for column, row in found.items()} == mean
        assert {row["p"] for row in found.values()} == {1.0}
    text = json.dumps(Summary.of([*group(1, 4, lost=first), *group(2, 8, lost=second)], SCONEEVAL, "x").as_dict())
    assert "NaN" not in text


def test_stability_of_known_records():
    def record(sampling, scoring, value, seen):
        common = {"sampling": sampling, "scoring": scoring, "key": "k", "PF": value, "SC": value}
        return [
            {**common, "task_type": t, **({"label": [[1, 0]], "pred": [[1, seen]]} if "dis" in t else {})}
            for t in SCONEEVAL.tasks
        ]

    records = [*record(1, 1, 4, 0), *record(1, 2, 6, 0), *record(2, 1, 7, 0), *record(2, 2, 9, 1)]
    tables = group_tables(records, SCONEEVAL)
    found = stability(records, tables, SCONEEVAL)
    com = found["columns"]["average.COM"]
    assert com["std_over_scorings"] == pytest.approx(2**0.5)
    assert com["std_over_samplings"] == pytest.approx(3 / 2**0.5)
    assert com["range"] == pytest.approx([4, 9])
    assert found["items"]["PF_std_over_scorings"] == pytest.approx(2**0.5)
    assert found["items"]["presence_agreement"] == 0.75, "one of two candidates of one of two samplings"
    assert error_rates(records, SCONEEVAL)["distinction_single_cross"] == {"redundancy": 0.25, "omission": 0}
    alone = stability(records[:6], tables[:1], SCONEEVAL)
    assert alone["columns"]["overall"]["std_over_scorings"] is None
    assert alone["items"]["presence_agreement"] is None


def test_tables_show_ours_among_the_papers():
    records = read(SCONEEVAL)
    summary = Summary.of(records, SCONEEVAL, "my_model & <co> | 50 %")
    text = main_markdown([summary])
    assert len(text.splitlines()) == 2 + 10 + 1
    assert text.splitlines()[-1].startswith("| **my_model & <co> / 50 %**")
    assert f"**{summary.mean['overall']:.2f}** |" in text
    assert "8.50 |" in next(line for line in text.splitlines() if line.startswith("| Scone "))
    written = latex([summary])
    assert r"my\_model \& \textless{}co\textgreater{} \textbar{} 50 \%" in written
    main, per_task = (
        [line.removesuffix(r" \\").replace(r"\&", "") for line in table.splitlines() if line.endswith(r"\\")]
        for table in written.split(r"\end{tabular}")[:2]
    )
    assert {line.count("& ") for line in main[1:]} == {13}
    assert {line.count("& ") for line in per_task} == {1 + len(SCONEEVAL.average_columns)}
    overall, std = summary.mean["overall"], summary.combined["std_sample"]["overall"]
    low, high = summary.intervals["overall"]
    assert rf"{overall:.2f} $\pm$ {std:.2f}" in main[-1]
    assert rf"Overall &  & {overall:.2f} $\pm$ {std:.2f} [{low:.2f}, {high:.2f}]" in per_task[-1]
    for rule in ("toprule", "midrule", "bottomrule"):  # it must compile without booktabs
        assert rf"\providecommand{{\{rule}}}{{\hline}}" in written
    detail = detail_markdown(summary)
    assert "| 44 of 45 |" in detail
    assert "divisor n - 1" in detail.replace("\n", " ")
    assert "Redundancy and omission" in extra_markdown(summary)
    one = Summary.of([r for r in records if (r["sampling"], r["scoring"]) == (1, 1)], SCONEEVAL, "one")
    assert "±" not in detail_markdown(one).splitlines()[2], "one group has no spread"


def test_a_missing_task_leaves_dashes():
    records = [r for r in read(SCONEEVAL) if r["task_type"] != "composition_multi"]
    last = main_markdown([Summary.of(records, SCONEEVAL, "part")]).splitlines()[-1]
    cells = [cell.strip() for cell in last.strip("|").split("|")]
    assert [cells[i] for i in (2, -3, -2, -1)] == ["**-**"] * 4
    assert cells[1] != "**-**"


def test_no_two_rows_have_one_name():
    assert unique_names(["Scone", "mine", "mine", "mine"], taken=["Scone"]) == [
        "Scone (ours)",
        "mine",
        "mine 2",
        "mine 3",
    ]
    assert unique_names(["Scone", "Scone"], taken=["Scone"]) == ["Scone (ours)", "Scone (ours) 2"]


def test_too_few_items_for_statistics_are_told():
    records = read(OMNICONTEXT)
    summary = Summary.of(records, OMNICONTEXT, "x")
    assert "intervals and p mean little" in detail_markdown(summary)
    found = compare(records, records, OMNICONTEXT)
    assert "intervals and p mean little" in comparison_markdown(found, "x", "y")
    many = {**found, "n": dict.fromkeys(found["n"], 10)}
    assert "mean little" not in comparison_markdown(many, "x", "y")


def test_records_of_others_may_say_other_things_about_their_pictures():
    records = [{**record, "generation": {"sampling": "euler", "weights": "w"}} for record in read(SCONEEVAL)]
    assert "Pictures:" not in detail_markdown(Summary.of(records, SCONEEVAL, "x"))


GOOD = {"sampling": 1, "scoring": 1, "key": "k", "task_type": "distinction_single_cross", "PF": 5, "SC": 5}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ({**GOOD, "sampling": 0}, "`sampling` must be a whole number"),
        ({**GOOD, "scoring": True}, "`scoring` must be a whole number"),
        ({**GOOD, "PF": "5"}, "`PF` must be a number"),
        ({**GOOD, "SC": 11}, "`SC` must be a number"),
        ({**GOOD, "label": [[1]], "pred": [[1, 0]]}, "1 labels and 2 predictions"),
        ({**GOOD, "label": [[1]], "pred": [[2]]}, "`pred` must hold 0 and 1 only"),
        ({**GOOD, "label": [1], "pred": [1]}, "`label` must be a list"),
        ({**GOOD, "judge": {"prompts": ["a"]}}, "must be objects"),
        (GOOD, "the same sampling, scoring, task and key as "),
    ],
)
def test_bad_records_are_named(record, message, tmp_path, capsys):
    file = tmp_path / "s.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + (record if isinstance(record, str) else json.dumps(record)))
    assert main(["tables", "--benchmark", "sconeeval", "--scores", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}:2: ")
    assert message in error
    assert error.count("\n") == 1


def test_files_of_two_models(tmp_path, capsys):
    arguments = ["tables", "--benchmark", "sconeeval", "--scores", str(GOLDEN / "sconeeval.jsonl"), "--name", "ours"]
    other = tmp_path / "other.jsonl"
    other.write_text((GOLDEN / "sconeeval.jsonl").read_text())
    assert main([*arguments, "--compare", str(other), "--output", str(tmp_path / "tables")]) == 0
    text = capsys.readouterr().out
    assert "### ours against other" in text
    written = sorted(file.name for file in (tmp_path / "tables").iterdir())
    plots = [f"{name}.{suffix}" for name in ("bars", "radar", "stability") for suffix in ("pdf", "png")]
    assert written == sorted([*plots, "table.json", "table.md", "table.tex"])
    found = json.loads((tmp_path / "tables/table.json").read_text())
    assert found["comparisons"][0]["columns"]["overall"]["difference"] == 0
    assert (tmp_path / "tables/table.md").read_text().count("**ours**") == 1
