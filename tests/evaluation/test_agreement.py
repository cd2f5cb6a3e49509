"""Judges that are constructed: what they agree on is known, and checked by slow formulas of its own."""

import itertools
import json
import math
import random

import numpy as np
import pytest
from test_odd_input import damaged, one_line

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.evaluation.agreement.compare import compare
from scone_pl.evaluation.agreement.requirements import Requirement
from scone_pl.evaluation.agreement.sources import Source, read_source
from scone_pl.evaluation.agreement.statistics import interval_alpha, quadratic_kappa, statistics_of
from scone_pl.evaluation.benchmarks.omnicontext import OMNICONTEXT

MODELS = ("weak", "good", "best")
TASKS = ("single_object", "multi_object")
ITEMS = 12
TRUTH = {
    (model, task, item): min(10, 2 + 3 * m + t + item % 3)
    for m, model in enumerate(MODELS)
    for t, task in enumerate(TASKS)
    for item in range(ITEMS)
}
"""Scores of 2 to 10: weak 2 to 5, good 5 to 8, best 8 to 10."""
RANDOM = dict(zip(TRUTH, np.random.default_rng(7).integers(0, 11, len(TRUTH)).tolist(), strict=True))


def write(folder, judge, scorings=1, picture="{model} {task} {item}"):
    """A file of scores for each model; `judge(key, scoring)` is PF and SC."""
    files = []
    for model in MODELS:
        (folder / model).mkdir(parents=True, exist_ok=True)
        lines = []
        for (of, task, item), scoring in itertools.product(TRUTH, range(1, scorings + 1)):
            if of == model:
                value = judge((of, task, item), scoring)
                record = {"sampling": 1, "scoring": scoring, "key": str(item), "task_type": task}
                record |= {"PF": value, "SC": value, "SC_reason": f"says {value} <b>", "PF_reason": None}
                record["picture"] = picture.format(model=model, task=task, item=item)
                lines.append(json.dumps(record) + "\n")
        (folder / model / "scores.jsonl").write_text("".join(lines))
        files.append(str(folder / model / "scores.jsonl"))
    return files


def compared(tmp_path, first, second, scorings=1, resamples=0):
    sources = [
        read_source(write(tmp_path / name, judge, scorings), MODELS, OMNICONTEXT, name)
        for name, judge in (("first", first), ("second", second))
    ]
    return compare(*sources, resamples=resamples, seed=0)


def truth(key, scoring):
    return TRUTH[key]


def slow(x, y):
    """Pearson, Spearman, Kendall tau-a and tau-b, quadratic kappa by their definitions."""
    n = len(x)

    def pearson(a, b):
        ma, mb = sum(a) / n, sum(b) / n
        top = sum((p - ma) * (q - mb) for p, q in zip(a, b, strict=True))
        return top / math.sqrt(sum((p - ma) ** 2 for p in a) * sum((q - mb) ** 2 for q in b))

    def ranks(a):
        return [sum(q < p for q in a) + (sum(q == p for q in a) + 1) / 2 for p in a]

    concordant = tied_x = tied_y = 0
    for i, j in itertools.combinations(range(n), 2):
        product = (x[i] - x[j]) * (y[i] - y[j])
        concordant += (product > 0) - (product < 0)
        tied_x += x[i] == x[j]
        tied_y += y[i] == y[j]
    pairs = n * (n - 1) / 2
    observed = sum((p - q) ** 2 for p, q in zip(x, y, strict=True)) / n
    expected = sum((p - q) ** 2 for p in x for q in y) / n**2
    return {
        "pearson": pearson(x, y),
        "spearman": pearson(ranks(x), ranks(y)),
        "tau_a": concordant / pairs,
        "kendall": concordant / math.sqrt((pairs - tied_x) * (pairs - tied_y)),
        "kappa": 1 - observed / expected,
    }


@pytest.mark.parametrize("seed", range(5))
def test_statistics_by_their_definitions(seed):
    generator = np.random.default_rng(seed)
    x, y = generator.integers(0, 4, (2, 30))  # many ties
    expected = slow(x.tolist(), y.tolist())
    found = statistics_of(x.astype(float), y.astype(float))
    for name in ("pearson", "spearman", "kendall", "kappa"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6), name
    assert abs(expected["tau_a"] - expected["kendall"]) > 0.01, "tau-b it must be"
    assert found["bias"] == pytest.approx((y - x).mean())
    assert found["ties"] == np.mean(x == y)


def test_an_identical_judge(tmp_path):
    row = compared(tmp_path, truth, truth)["columns"]["SC"]["tasks"]["pooled"]
    assert [row[name] for name in ("pearson", "spearman", "kendall", "kappa")] == pytest.approx([1] * 4)
    assert (row["bias"], row["std"], row["ties"], row["n"]) == (0, 0, 1, 72)


def test_a_shifted_judge(tmp_path):
    result = compared(tmp_path, truth, lambda key, scoring: min(10, TRUTH[key] + 1 if TRUTH[key] < 10 else 10))
    row = result["columns"]["SC"]["tasks"]["single_object"]
    # single_object never reaches 10 but for the best's third items (2 + 6 + 2)
    assert row["spearman"] > 0.98
    assert 0.5 < row["kappa"] < 1
    assert 0.8 < row["bias"] <= 1
    shifted = compared(tmp_path / "b", lambda key, s: TRUTH[key] - 1, truth)["columns"]["SC"]["tasks"]["pooled"]
    assert (shifted["bias"], shifted["std"]) == (1, 0)
    assert shifted["spearman"] == pytest.approx(1)
    assert (shifted["low"], shifted["high"]) == (1, 1)


def test_a_judge_that_is_compressed_at_the_top(tmp_path):
    """It gives all good and best images an 8 or a 9 by item: classes of models, not neighbours at the top."""

    def top(key, scoring):
        return TRUTH[key] if key[0] == "weak" else 8 + key[2] % 2

    found = compared(tmp_path, truth, top, resamples=200)["columns"]["SC"]
    assert found["tasks"]["pooled"]["pearson"] > 0.8
    pairs = {tuple(pair["systems"]): pair for pair in found["systems"]["pairs"]}
    assert pairs["weak", "good"]["candidate"]["decided"]
    near = pairs["good", "best"]
    assert near["reference"]["decided"]
    assert near["candidate"]["decided"] is False
    assert near["candidate"]["difference"] == 0
    means = found["systems"]["means"]
    assert means["good"]["bias"] == pytest.approx(8.5 - np.mean([TRUTH[k] for k in TRUTH if k[0] == "good"]))
    assert found["systems"]["spearman"] == pytest.approx(math.sqrt(3) / 2), "two systems tie"
    of_task = found["systems"]["tasks"]["single_object"]
    assert of_task["means"]["best"]["reference"] == np.mean([TRUTH["best", "single_object", i] for i in range(ITEMS)])
    assert of_task["spearman"] == pytest.approx(math.sqrt(3) / 2)


def test_random_and_constant_judges(tmp_path):
    row = compared(tmp_path / "a", truth, lambda key, s: RANDOM[key])["columns"]["SC"]["tasks"]["pooled"]
    assert abs(row["spearman"]) < 0.3
    row = compared(tmp_path / "b", truth, lambda key, s: 5)["columns"]["SC"]["tasks"]["pooled"]
    assert row["spearman"] is None
    assert row["why"] == "constant scores of the candidate"
    assert row["bias"] == pytest.approx(5 - np.mean(list(TRUTH.values())))


def test_the_ceiling_is_the_judge_with_itself(tmp_path):
    def noisy(key, scoring):
        return min(10, max(0, TRUTH[key] + (RANDOM[key] + scoring) % 3 - 1))

    result = compared(tmp_path, noisy, truth, scorings=2)
    row = result["columns"]["SC"]["tasks"]["pooled"]
    first, second = ([noisy(key, s) for key in sorted(TRUTH, key=str)] for s in (1, 2))
    assert row["ceiling"]["spearman"] == pytest.approx(slow(first, second)["spearman"], abs=1e-9)
    assert row["ceiling"]["alpha"] == pytest.approx(slow_alpha(list(zip(first, second, strict=True))), abs=1e-9)
    assert row["spearman"] == pytest.approx(
        np.mean([slow(one, [TRUTH[key] for key in sorted(TRUTH, key=str)])["spearman"] for one in (first, second)])
    )


def slow_alpha(units):
    values = [value for unit in units for value in unit if not math.isnan(value)]
    units = [[value for value in unit if not math.isnan(value)] for unit in units]
    n = len(values)
    within = sum(sum((a - b) ** 2 for a in unit for b in unit) / (len(unit) - 1) for unit in units if len(unit) > 1)
    return 1 - (within / n) / (sum((a - b) ** 2 for a in values for b in values) / (n * (n - 1)))


def test_alpha_with_missing_ratings():
    ratings = np.array([[1, 2, 1], [3, math.nan, 4], [5, 5, 5], [2, 3, math.nan]], dtype=float)
    assert interval_alpha(ratings) == pytest.approx(slow_alpha(ratings.tolist()))
    assert math.isnan(interval_alpha(np.full((5, 2), 3.0)))
    assert quadratic_kappa(np.array([1.0, 1.0]), np.array([1.0, 1.0])) != 1, "not defined"


def test_the_mean_over_tasks_is_not_decided_by_a_perfect_one():
    """Fisher's z; a correlation of 1 of 10 images enters as 0.95."""
    from scone_pl.evaluation.agreement.compare import _mean

    rows = [{"spearman": 1.0, "bias": 3.0, "n": 10}, {"spearman": 0.0, "bias": 1.0, "n": 10}]
    assert _mean(rows, "spearman") == pytest.approx(math.tanh(math.atanh(0.95) / 2))
    assert _mean(rows, "bias") == 2
    assert _mean(rows[:1] * 3, "spearman") == 1
    assert _mean([{"spearman": None, "n": 2}], "spearman") is None
    small = [{"spearman": 0.5, "n": 20}, {"spearman": 0.3, "n": 50}]
    assert _mean(small, "spearman") == pytest.approx(math.tanh((math.atanh(0.5) + math.atanh(0.3)) / 2))


def test_intervals_hold_the_statistic():
    """40 items, a known correlation; none below 30 items."""
    generator = np.random.default_rng(0)
    first, second = Source("a"), Source("b")
    from scone_pl.evaluation.agreement.sources import Image

    for item in range(40):
        x = generator.normal()
        image = Image("m", "t", str(item), 1)
        first.add("SC", image, "1", x)
        second.add("SC", image, "1", x + 0.5 * generator.normal())
    row = compare(first, second, resamples=100, seed=0)["columns"]["SC"]["tasks"]["t"]
    for name, (low, high) in row["intervals"].items():
        assert low < row[name] < high, name
    assert compare(first, second, resamples=100, seed=0)["columns"]["SC"]["tasks"]["t"] == row
    assert set(row["intervals"]) == {"pearson", "spearman", "kendall", "kappa", "bias"}
    del first.ratings["SC"][image]
    for item in range(11):
        del second.ratings["SC"][Image("m", "t", str(item), 1)]
    assert compare(first, second, resamples=100, seed=0)["columns"]["SC"]["tasks"]["t"]["intervals"] == {}


def test_the_command(tmp_path, capsys):
    first = write(tmp_path / "a", truth)
    second = write(tmp_path / "b", lambda key, s: max(0, TRUTH[key] - key[2] % 2))
    command = ["agreement", "--benchmark", "omnicontext", "--reference", *first, "--candidate", *second]
    command += ["--columns", "SC", "--resamples", "20"]
    assert main([*command, "--output", str(tmp_path / "out"), "--require", "SC.spearman>=0.6", "SC.bias<0"]) == 0
    text = capsys.readouterr().out
    assert "## candidate against reference" in text
    assert "| pooled" in text
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"agreement.md", "agreement.json", "report.html", "SC.png", "SC.pdf"}
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<article>") == 20
    assert "says 9 &lt;b&gt;" in page
    assert "limits of agreement" in page
    assert "whether a judge decides them" in page
    assert main([*command, "--require", "SC.spearman>0.999"]) == 1
    assert "SC.spearman>0.999 fails: it is 0.9" in capsys.readouterr().out
    other = write(tmp_path / "c", truth, picture="another {model}")
    assert main([*command[:7], *["--candidate", *other]]) == 2
    assert "is not the same image on both sides" in capsys.readouterr().err


CSV = """rater,task_type,key,sampling,column,value,system
ann,single_object,0,1,SC,3,weak
bob,single_object,0,1,SC,4,weak
ann,single_object,1,1,SC,5,weak
ann,multi_object,2,1,SC,7,weak
bob,multi_object,2,1,SC,,weak
ann,multi_object,3,1,SC,2,weak
"""


def test_people(tmp_path, capsys):
    scores = write(tmp_path / "a", truth)[:1]
    table = tmp_path / "people.csv"
    table.write_text("\ufeff" + CSV)
    source = read_source([str(table)], [], None, "people")
    assert source.incomplete == 1
    assert sum(len(raters) for raters in source.ratings["SC"].values()) == 5
    command = ["agreement", "--benchmark", "omnicontext", "--ratings", str(table), "--candidate", *scores, "--json"]
    assert main([*command, "--resamples", "0"]) == 0
    row = json.loads(capsys.readouterr().out)["columns"]["SC"]["tasks"]["pooled"]
    assert row["n"] == 4
    # Ann: 3 5 7 2 against 2 3 5 3; Bob has rated one image only.
    assert row["bias"] == pytest.approx((-1 - 2 - 2 + 1) / 4)
    with pytest.raises(UserError, match=r"no rated image in common .*/2, sampling 1 of system 'weak', and .* 'x'"):
        compare(source, renamed(source, "x"), resamples=0, seed=0)
    other = Source("b", {"XX": source.ratings["SC"]})
    with pytest.raises(UserError, match="no column in common: SC, and XX"):
        compare(source, other, resamples=0, seed=0)
    table = table.rename(tmp_path / "people.CSV")
    command[command.index("--ratings") + 1] = str(table)
    table.write_text(CSV.replace(",system", "").replace(",weak", ""))
    assert main([*command, "--resamples", "0"]) == 0, "one system needs no name"


def renamed(source, system):
    ratings = {
        column: {image._replace(system=system): values for image, values in images.items()}
        for column, images in source.ratings.items()
    }
    return Source(source.name, ratings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rater,", "who,"), "has no column rater"),
        ((",5,weak", ",five,weak"), "row 4: `value` 'five' is no number"),
        ((",5,weak", ",inf,weak"), "row 4: `value` 'inf' is too large"),
        (("ann,single_object,1,1", "ann,single_object,1,0"), "row 4: `sampling` must be a whole number"),
        (("ann,single_object,1,1", "ann,single_object,0,1"), "row 4: ann has already rated SC"),
        (("ann,single_object,1,1", ",single_object,1,1"), "row 4: rater, task_type, key and column must not"),
        (("1,1,SC,5", "1,1,../x,5"), r"row 4: `column` '\.\./x' must be a short name"),
        (("ann,single_object,1,1,SC,5,weak", "ann,single_object"), "row 4: has not as many cells"),
    ],
)
def test_bad_tables_are_named(tmp_path, change, message):
    table = tmp_path / "people.csv"
    table.write_text(CSV.replace(*change, 1))
    with pytest.raises(UserError, match=message) as error:
        read_source([str(table)], [], None, "people")
    assert "people.csv" in str(error.value)


def test_damaged_tables(tmp_path):
    draw, table = random.Random(3), tmp_path / "people.csv"
    for _ in range(150):
        table.write_bytes(damaged(CSV.encode(), draw))
        one_line(lambda: read_source([str(table)], [], None, "people"), table)


def test_dreambench_plus(tmp_path, capsys):
    """Two groups of people and a metric, in the published form: a file a method, NaN possible."""
    keys = ["live_subject_animal_00_cat_0", "live_subject_human_01_man_3", "object_02_clock_1", "style_03_oil_8"]
    for group, shift in (("human1", 0), ("human2", 1), ("gpt", 0)):
        for method in ("blip-diffusion", "dreambooth"):
            values = {key: [i + shift, 4 - i] for i, key in enumerate(keys)}
            values[keys[0]][1] = math.nan if group == "human1" else 4
            (tmp_path / group).mkdir(exist_ok=True)
            (tmp_path / group / f"{group}-{method}.json").write_text(json.dumps(values))
    people = read_source([str(tmp_path / "human1"), str(tmp_path / "human2")], [], None, "people")
    assert people.systems == ["blip-diffusion", "dreambooth"]
    assert {image.task for image in people.ratings["CP"]} == {
        "live_subject_animal", "live_subject_human", "object", "style"
    }  # fmt: skip
    assert people.incomplete == 2
    command = ["agreement", "--ratings", str(tmp_path / "human1"), str(tmp_path / "human2")]
    assert main([*command, "--candidate", str(tmp_path / "gpt"), "--resamples", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["columns"]
    pooled = found["CP"]["tasks"]["pooled"]
    assert (pooled["bias"], pooled["spearman"]) == (-0.5, pytest.approx(1)), "mean over both groups"
    assert pooled["ceiling"]["bias"] == 1
    (tmp_path / "gpt/gpt-dreambooth.json").write_text('{"object_1": [1]}')
    with pytest.raises(UserError, match=r"gpt-dreambooth\.json: 'object_1' must have two numbers"):
        read_source([str(tmp_path / "gpt")], [], None, "x")


@pytest.mark.parametrize("text", ["SC", "SC.spearman", "SC.rho>1", "SC.spearman>=x", "SC.spearman=>1", ">1"])
def test_bad_requirements(text):
    with pytest.raises(UserError, match="--require"):
        Requirement.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --reference"),
        (["--reference", "a", "--ratings", "b.csv"], "give either --reference"),
        (["--reference", "a", "b"], "names 2 files of scores, --candidate 1"),
        (["--reference", "a", "--names", "x"], "--names: give two"),
        (["--reference", "a", "--resamples", "-1"], "--resamples is -1"),
        (["--reference", "a"], "--benchmark: say which"),
    ],
)
def test_bad_options(options, message, capsys):
    assert main(["agreement", "--candidate", "nowhere/scores.jsonl", *options]) == 2
    assert message in capsys.readouterr().err
