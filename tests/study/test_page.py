"""Statistics over seeds, and the page made of results."""

import json
import math
import re

import numpy as np
import pytest
from PIL import Image
from running import ROOT
from scipy import stats

from scone_pl.errors import UserError
from scone_pl.study.comparisons import Comparisons, Pair
from scone_pl.study.intervals import Estimate, Variance, difference, estimate, holm, variance_of_episodes
from scone_pl.study.page import filled, section
from scone_pl.study.pages import write_pages
from scone_pl.study.plot import draw_histograms, draw_maps, plot
from scone_pl.study.result import Result
from scone_pl.worlds.icons.evaluator import IconsEvaluator
from scone_pl.worlds.shapes.evaluator import ShapesEvaluator
from scone_pl.worlds.shapes.world import World, WorldConfig


def report(com, dis):
    tasks = {
        "composition_single": {"PF": com, "SC": com, "COM": com},
        "distinction_single_cross": {"PF": com, "SC": com, "COM": com, "DIS": dis, "DIS_recall": dis},
    }
    kept = {"distinction_single_cross": {"precision": 0.9, "recall": 0.8}}
    failures = {"none": 6, "blending": 2}
    choice = {"distinction_single_cross": 0.625}
    content = {"mask": True, "tasks": tasks, "kept": kept, "choice": choice, "failures": failures}
    return {**content, "pictures": 8, "blocked_share": 0.25}


def result(name="demo", seeds=3):
    def runs(shift):
        versions = {"python": "3.11", "torch": "2"}
        return [
            {
                "seed": s,
                "evaluations": {"main": report(5 + shift + 0.1 * s, 6 + shift)},
                "seconds": {"training": 30.0, "evaluation": 10.0},
                "commit": "abc",
                "versions": versions,
            }
            for s in range(seeds)
        ]

    arms = {"one": ("arm one", "a_direct", 0.0), "two": ("arm two", "b_two_step_without_bridge", 1.0)}
    return {
        "experiment": name,
        "title": "A table",
        "question": "Which?",
        "findings": "One has {one.DIS}, two has {two.main.COM}.",
        "paper_table": "table5_stage2",
        "baseline": "one",
        "quick": False,
        "evaluations": {"main": {"kind": "score", "label": "", "per_task": 8}},
        "arms": {k: {"label": l, "paper": p, "settings": {}, "runs": runs(s)} for k, (l, p, s) in arms.items()},
    }


def test_intervals_are_students():
    interval = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval.mean == 3.0
    assert interval.half_width == pytest.approx(2.7764451 * math.sqrt(2.5) / math.sqrt(5))
    assert str(interval) == "3.00 ± 1.96"
    assert str(estimate([2.0])) == "2.00"
    assert str(Estimate(0.599, 0.6004, ())) == "0.599 ± 0.600"
    paired = difference([1.0, 2.0, 3.0], [0.0, 1.1, 1.9])
    assert paired.mean == pytest.approx(1.0)
    assert paired.excludes_zero
    assert not difference([1.0, 2.0], [2.0, 1.0]).excludes_zero


def test_the_draw_of_episodes_counts_as_a_bootstrap_over_them_says():
    rng = np.random.default_rng(0)
    shared = {"a": rng.random(40), "b": 3 * rng.random(25)}  # what makes an episode hard is hard for every seed
    seeds = [{task: values + 0.3 * rng.random(len(values)) for task, values in shared.items()} for _ in range(4)]
    metric = [sum(values.mean() for values in one.values()) for one in seeds]
    resampled = []
    for _ in range(4000):
        drawn = {task: rng.integers(len(values), size=len(values)) for task, values in shared.items()}
        resampled.append(np.mean([sum(one[task][i].mean() for task, i in drawn.items()) for one in seeds]))
    variance = variance_of_episodes(seeds)
    error = math.sqrt(variance.value)
    assert error == pytest.approx(np.std(resampled), rel=0.08)
    assert 24 < variance.freedom < 63
    own = float(np.std(metric, ddof=1)) / 2
    wide, narrow = estimate(metric, variance), estimate(metric)
    assert wide.half_width == pytest.approx(float(stats.t.ppf(0.975, 3)) * math.hypot(own, error))
    assert wide.half_width > 1.5 * narrow.half_width
    # An effect that is the same in every episode has no noise of episodes.
    assert variance_of_episodes([{"a": [0.5] * 9}, {"a": [0.7] * 9}]).value == 0


@pytest.mark.parametrize(
    ("of_seeds", "of_episodes", "of_both", "low", "high"),
    [
        (0.05, 0.3, 0.4, 0.93, 0.98),
        (0.1, 0.3, 0.4, 0.93, 0.97),
        (0.02, 0.45, 0.0, 0.93, 0.97),
        (0.0, 0.3, 0.4, 0.95, 1),
    ],
)
def test_intervals_over_seeds_and_episodes_cover_the_mean(of_seeds, of_episodes, of_both, low, high):
    """Five seeds, 100 episodes, a true mean of 0; 1500 experiments know a share of 0.95 to 0.011 (two deviations)."""
    rng = np.random.default_rng(0)
    covered, experiments = 0, 1500
    for _ in range(experiments):
        scores = of_both * rng.standard_normal((5, 100))
        scores += of_seeds * rng.standard_normal((5, 1)) + of_episodes * rng.standard_normal((1, 100))
        interval = estimate(scores.mean(1), variance_of_episodes([{"a": row} for row in scores]))
        covered += not interval.excludes_zero
    assert low <= covered / experiments <= high


def test_degrees_of_freedom_lie_between_those_of_seeds_and_episodes():
    values = [1.0, 2.0, 3.0, 4.0, 5.0]  # 0.5 with 4 degrees of freedom
    assert estimate(values).freedom == 4
    assert estimate(values, Variance(0.5, 99)).freedom == pytest.approx(1 / (0.25 / 4 + 0.25 / 99))
    assert estimate(values, Variance(5000.0, 99)).freedom == pytest.approx(99, abs=0.1)
    assert estimate(values[:4], Variance(5000.0, 99)).freedom == 3, "a variance of four is too badly known"
    interval = estimate(values, Variance(0.5, 99))
    assert interval.half_width == pytest.approx(float(stats.t.ppf(0.975, interval.freedom)))
    assert Estimate(interval.half_width, interval.half_width, (), interval.freedom).p_value == pytest.approx(0.05)


def with_episodes(content):
    """Every report with the scores of four episodes of each task, whose means stay what they were."""
    offsets = np.array([1.0, -1.0, 0.5, -0.5])
    for arm in content["arms"].values():
        for run in arm["runs"]:
            tasks = run["evaluations"]["main"]["tasks"]
            run["evaluations"]["main"]["episodes"] = {
                score: {task: (row[score] + offsets).tolist() for task, row in tasks.items() if score in row}
                for score in ("COM", "DIS")
            }
    return content


def test_intervals_of_an_arm_include_episodes_and_paired_differences_cancel_what_is_common():
    old, new = Result(result()), Result(with_episodes(result()))
    assert not old.counts_episodes
    assert new.counts_episodes
    for metric in ("COM", "DIS", "overall"):
        reports = new.reports("one", "main")
        parts = ShapesEvaluator.by_episode(reports[0], metric)
        assert sum(np.mean(values) for values in parts.values()) == pytest.approx(new.values("one", "main", metric)[0])
        assert new.estimate("one", "main", metric).half_width > old.estimate("one", "main", metric).half_width
        same = [r.difference("two", "one", "main", metric) for r in (old, new)]
        assert same[0].half_width == pytest.approx(same[1].half_width, abs=1e-9)
    assert ShapesEvaluator.by_episode(reports[0], "PF") is None


def test_overall_of_composition_tasks_alone_is_their_com():
    """Mean and interval, read off a kept result of two tasks: 200 episodes each."""
    kept = Result.read(ROOT / "docs/evidence/icons_stage1.json")
    assert kept.estimate("step2", "main", "overall") == kept.estimate("step2", "main", "COM")
    both = [kept.difference("step2", "step1", "main", metric) for metric in ("overall", "COM")]
    assert both[0] == both[1]


@pytest.mark.parametrize("metric", ["choice", "choice / 10", "choice_single_cross", "choice_multi_intra"])
def test_intervals_of_choice_include_episodes(metric):
    """Of all tasks and of one, read off a kept result: 400 episodes a task."""
    kept = Result.read(ROOT / "docs/evidence/icons_table5.json")
    parts = IconsEvaluator.by_episode(kept.reports("c_soft", "main")[0], metric)
    assert sum(np.mean(values) for values in parts.values()) == pytest.approx(kept.values("c_soft", "main", metric)[0])
    assert len(parts) == (1 if metric.startswith("choice_") else 4)
    assert {len(values) for values in parts.values()} == {400}


def test_metrics_are_read_off_reports():
    one = Result(result())
    means = {name: one.estimate("one", "main", name).mean for name in ShapesEvaluator.metrics}
    assert means["COM"] == pytest.approx(5.1)
    assert means["overall"] == pytest.approx((5.1 + 6) / 2)
    assert (means["exact"], means["blending"], means["omission"]) == (75.0, 25.0, 0.0)
    assert means["choice"] == 62.5
    assert (means["precision"], means["recall"], means["blocked"]) == (90.0, 80.0, 25.0)
    assert means["presence_recall"] == pytest.approx(60.0)
    fewer = result()
    fewer["arms"]["two"]["runs"] = fewer["arms"]["two"]["runs"][:1]
    assert Result(fewer).difference("one", "two", "main", "COM") is None


def test_holm_corrects_a_family():
    # Worked example: sorted p times 3, 2, 1, then never less than the one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, math.nan, 0.9])[::2] == [1.0, 1.0]
    assert math.isnan(holm([0.5, math.nan, 0.9])[1])
    values = [0.4, 0.9, 0.2, 0.6, 0.1]
    interval = estimate(values)
    assert interval.p_value == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue)
    assert (interval.p_value < 0.05) == interval.excludes_zero
    assert (estimate([1.0, 1.0]).p_value, estimate([0.0, 0.0]).p_value) == (0.0, 1.0)


def test_only_what_holds_after_correction_is_bold():
    content = result(seeds=5)
    for run, shift in zip(content["arms"]["two"]["runs"], (0.1, 1.9, 0.2, 1.4, 1.6), strict=True):
        run["evaluations"]["main"] = report(5 + 0.1 * run["seed"] + 0.1 * shift, 6 + shift)
    comparisons = Comparisons(Result(content))
    (row,) = comparisons.with_baseline
    alone = {pair.metric: comparisons.difference(pair) for pair in row.pairs}
    assert alone["DIS"].excludes_zero
    assert 0.02 < alone["DIS"].p_value < 0.05, "three such differences: no longer after the correction"
    assert [comparisons.cell(pair)[0] for pair in row.pairs][:3] == ["_", "_", "_"]
    assert comparisons.counts == (4, 3, 0)
    assert comparisons.adjusted_p(row.pairs[1].turned) == comparisons.adjusted_p(row.pairs[1])
    assert filled("{two-one.main.DIS.p}", comparisons) == f"{comparisons.adjusted_p(row.pairs[1]):.2g}"
    assert math.isnan(comparisons.adjusted_p(Pair("one", "one", "main", "PF", "main")))


def test_a_result_of_some_arms_has_neither_findings_nor_a_missing_baseline(tmp_path):
    content = {**result(), "partial": True, "paper_table": ""}
    del content["arms"]["one"]
    text = section(Comparisons(Result(content)), tmp_path)
    assert "arm two" in text
    assert "**Only some of the study's arms have been run.**" in text
    assert "minus" not in text
    assert "**Result.**" not in text
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence/demo.json").write_text(json.dumps(content))
    assert "Only arm two so far, no answer yet." in write_pages(tmp_path / "evidence", tmp_path).read_text()


def test_results_of_several_studies_side_by_side(tmp_path):
    content = {**result("ours", seeds=2), "paper_table": "", "beside": {"Theirs": ["other", "one", "two"]}}
    content["beside"] |= {"Not run": ["later", "one", "two"], "Ours": ["ours", "two"]}
    (tmp_path / "other.json").write_text(json.dumps(result("other", seeds=3)))
    rows = [row.split(" | ") for row in section(Comparisons(Result(content)), tmp_path).splitlines()]
    theirs = {row[0].strip(" |"): [cell.strip(" |") for cell in row[1:]] for row in rows}
    assert theirs["Theirs: arm one"][:2] == ["5.10 ± 0.25", "6.00 ± 0.00"]
    assert theirs["Theirs: arm one"][4] == ""
    assert theirs["Theirs: arm two"][4:6] == ["1.00 ± 0.00", "1.00 ± 0.00"]
    assert theirs["Ours: arm two"][0] == "6.05 ± 0.64"
    assert "Not run: arm one" not in theirs
    (tmp_path / "later.json").write_text(json.dumps({**result("later"), "partial": True}))
    content["beside"] = {"Half run": ["later", "three", "two"]}
    assert "| Half run: arm two | 6.10 ± 0.25" in section(Comparisons(Result(content)), tmp_path)
    content["beside"] = {"Theirs": ["other", "three", "two"]}
    with pytest.raises(UserError, match=r"ours: beside.Theirs names three, which other.json lacks"):
        section(Comparisons(Result(content)), tmp_path)


def test_commits_of_training_and_evaluation(tmp_path):
    content = result(seeds=2)
    content["arms"]["one"]["runs"][0]["trained"] = [{"commit": "123"}, {"commit": "456"}]
    content["arms"]["two"]["runs"][1]["commit"] = "789, abc"
    text = section(Comparisons(Result(content)), tmp_path)
    assert "trained at commit 123, 456, unknown (3 of 4 runs); evaluated at 789, abc;" in text


def test_the_page_is_made_of_the_numbers(tmp_path):
    folder = tmp_path / "evidence"
    folder.mkdir()
    (folder / "published.yaml").write_text((ROOT / "docs/evidence/published.yaml").read_text())
    (folder / "demo.json").write_text(json.dumps(result()))
    plot(Result(result()), folder / "demo.png")
    front = write_pages(folder).read_text()
    assert front == f"# Results of {folder}\n\n## Results\n\n- **[A table](evidence/demo.md)** \n\n"
    text = (folder / "demo.md").read_text()
    assert "\n3 seeds, 8 episodes of each task; the median run trained for 30 s" in text
    assert "5.10 ± 0.25" in text
    assert "**Result.** One has 6.00 ± 0.00, two has 6.10 ± 0.25." in text
    assert "| arm two - arm one |" in text
    assert "| minus arm one | " in text
    assert "**1.00 ± 0.00**" in text
    assert "agrees" in text
    assert "62.50 ± 0.00 %" in text
    assert "8.15" in text
    assert "![demo](demo.png)" in text
    comparisons = Comparisons(Result(result()))
    paired = comparisons.result.difference("two", "one", "main", "COM")
    assert filled("{two-one.main.COM}, {one.main-main.DIS}", comparisons) == f"{paired}, 0.00 ± 0.00"
    for wrong in ("{three.DIS}", "{one.main-other.DIS}", "{one.main.understanding.auroc.0}", "{one.nothing}"):
        with pytest.raises(UserError, match="findings name"):
            filled(wrong, comparisons)
    with pytest.raises(UserError, match="holds no result"):
        write_pages(tmp_path / "nowhere")


def test_a_result_of_an_older_version_is_named_and_left_out(tmp_path):
    folder = tmp_path / "evidence"
    folder.mkdir()
    old = result("old")
    del old["arms"]["two"]["runs"][1]["evaluations"]["main"]["choice"]
    for name, content in (("old", old), ("demo", {**result(), "paper_table": ""})):
        (folder / f"{name}.json").write_text(json.dumps(content))
    text = write_pages(folder).read_text()
    assert "evaluated again: `make old`." in text
    assert text.count("[A table](evidence/") == 1
    assert not (folder / "old.md").exists()


def test_the_committed_pages_are_those_the_files_give(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    kept = ROOT / "docs/evidence"
    if not list(kept.glob("*.json")):
        pytest.skip("no result yet")
    copy = tmp_path / "evidence"
    copy.mkdir()
    for file in kept.iterdir():
        if file.suffix != ".md":
            (copy / file.name).write_bytes(file.read_bytes())
    front = write_pages(copy).read_text()
    assert front == (ROOT / "docs/evidence.md").read_text()
    assert len(front.splitlines()) <= 200
    assert {f.name: f.read_text() for f in copy.glob("*.md")} == {f.name: f.read_text() for f in kept.glob("*.md")}


COSTS = (
    *("step_seconds", "step_memory", "step_memory_kept", "prefill_seconds", "sample_step_seconds", "cache_bytes"),
    "full_flops",
)


def case(row, share, value):
    """What was measured, or why not."""
    content = {"error": value} if isinstance(value, str) else dict.fromkeys(COSTS, value)
    return {"row": row, "blocked_percent": share, **content}


def costs(folder, cases, **made):
    """The section beside which `cases` stand."""
    settings = {"tokens": 9, "width": 8, "layers": 7, "threads": 1, "clock": "wall"}
    (folder / "demo_cost.json").write_text(json.dumps({"settings": settings, **made, "cases": cases}))
    return section(Comparisons(Result(result())), folder)


def test_costs_stand_beside_scores(tmp_path):
    cases = [case("later", 50, "out of memory"), case("dropped", 50, 1.0), case("mask", 50, 4.0)]
    cases += [case("paper", 0, 2.0), case("dropped", 0, 3.0)]
    text = costs(tmp_path, cases)
    (line,) = [line for line in text.splitlines() if line.startswith("| 50 % blocked, dropped ")]
    assert line.count("0.25 |") == 7
    (line,) = [line for line in text.splitlines() if line.startswith("| 0 % blocked, dropped, over nothing blocked |")]
    assert line.count("1.50 |") == 7
    assert "Failed: 50 % blocked, left out in all later layers (out of memory)." in text
    assert "; commit abc; torch 2):" in costs(tmp_path, cases, commit="abc", versions={"torch": "2"})


def test_a_share_whose_base_failed_has_no_ratios(tmp_path):
    text = costs(tmp_path, [case("mask", 50, "out of memory"), case("paper", 50, 1.0), case("dropped", 50, 1.0)])
    assert "Failed: 50 % blocked, masked (out of memory)." in text
    assert "| 50 %" not in text


def test_a_single_seed_has_no_differences(tmp_path):
    one = {**result(seeds=1), "findings": "It is {two-one.main.COM} more.", "paper_table": ""}
    text = section(Comparisons(Result(one)), tmp_path)
    assert "It is (one seed) more." in text
    assert "minus arm one" not in text


def test_evaluations_are_compared_within_an_arm(tmp_path):
    content = result()
    content["evaluations"] = {"main": {"kind": "score", "label": "with"}, "less": {"kind": "score", "label": "without"}}
    for arm in content["arms"].values():
        for run in arm["runs"]:
            run["evaluations"]["less"] = report(4, 5)
    compared = Result({**content, "contrasts": [["main", "less"]]})
    text = section(Comparisons(compared), tmp_path)
    com = compared.difference("two", "two", "main", "COM", "less")
    assert com.mean == pytest.approx(2.1)
    assert f"| arm two · with minus without | **{com}** | **2.00 ± 0.00** |" in text
    newer = Result({**content, "contrasts": [["main", "less"], ["main", "added"]]})  # its study asks more by now
    assert re.sub(" +", " ", section(Comparisons(newer), tmp_path)) == re.sub(" +", " ", text)


def test_score_against_cost_is_relative_to_the_first_evaluation(tmp_path):
    content = result()
    content["evaluations"] = {"main": {"kind": "score", "label": "full"}, "less": {"kind": "score", "label": "half"}}
    for arm in content["arms"].values():
        for seconds, run in enumerate(arm["runs"], 1):
            run["evaluations"]["less"] = {**report(4, 5), "cpu_seconds": 1.0 * seconds}
            run["evaluations"]["main"]["cpu_seconds"] = 2.0 * seconds
    content["frontier"] = ["cpu_seconds", "overall"]
    measured = Result(content)
    text = re.sub(" +", " ", section(Comparisons(measured), tmp_path))
    assert "| score against cost | cpu_seconds / full | overall | overall minus full |" in text
    less = measured.difference("two", "two", "less", "overall", "main")
    assert less.mean == pytest.approx(4.5 - measured.estimate("two", "main", "overall").mean)
    assert f"| arm two · half | 0.50 | {measured.estimate('two', 'less', 'overall')} | {less} |" in text
    assert "| arm two · full | 1.00 |" in text
    plot(measured, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").is_file()
    content["frontier"] = ["redundancy", "overall"]  # 0 in all reports
    assert "| arm two · half | nan |" in re.sub(" +", " ", section(Comparisons(Result(content)), tmp_path))
    one = result(seeds=1)
    one["frontier"] = ["COM", "DIS"]
    assert "| arm one | 1.00 | 6.00 | 0.00 |" in re.sub(" +", " ", section(Comparisons(Result(one)), tmp_path))


def test_a_quick_run_has_no_findings(tmp_path):
    text = section(Comparisons(Result({**result(), "quick": True})), tmp_path)
    assert "A quick run, not a result." in text
    assert "**Result.**" not in text
    assert "episodes of each task" not in text  # fewer than the study says


def test_seeds_are_paired_by_their_number():
    content = result()
    content["arms"]["two"] = {**content["arms"]["one"], "runs": content["arms"]["one"]["runs"][::-1]}
    assert Result(content).difference("one", "two", "main", "COM").values == (0.0, 0.0, 0.0)


def test_only_runs_that_trained_count_as_training(tmp_path):
    content = result()
    runs = [run for arm in content["arms"].values() for run in arm["runs"]]
    for run, seconds in zip(runs, (90.0, 60.0, 5.0, 0.01, 0.01, 0.01), strict=True):
        run["seconds"]["training"] = seconds
    assert "; the median run trained for 60 s, " in section(Comparisons(Result(content)), tmp_path)
    for run in runs:
        run["seconds"]["training"] = 0.01
    assert "; nothing was trained, " in section(Comparisons(Result(content)), tmp_path)


def layered(stream, world):
    """A result whose only evaluation is of two layers."""
    task = "distinction_single_cross"
    episode = World(0, WorldConfig(**world), stream=stream).sample(task, 0)
    values = {name: [0.5, 0.6] for name in ("auroc", "effect", "sensitivity")}
    shown = np.random.default_rng(0).random((2, 4, 4)).tolist()
    example = {"task": task, "key": episode.key, "instruction": episode.instruction}
    report = {
        "layers": {expert: {task: values} for expert in ("understanding", "generation")},
        "examples": [{**example, "understanding": shown, "generation": shown}],
    }
    runs = [{"seed": 0, "evaluations": {"layers": report}}]
    settings = {"kind": "layers", "label": "", "world": world, "stream": stream}
    arms = {"one": {"label": "one", "runs": runs}}
    return {"study": "demo", "quick": False, "evaluations": {"layers": settings}, "arms": arms}, episode


def test_maps_show_the_episode_of_their_world(tmp_path, monkeypatch):
    rows = []
    monkeypatch.setattr("scone_pl.study.plot.draw_rows", lambda drawn, file: rows.extend(drawn))
    content, episode = layered("test", {"candidates": 4, "similarity": 0.5})
    draw_maps(Result(content), "layers", tmp_path / "maps.png")
    assert np.array_equal(rows[0].image, episode.references[0])
    assert not np.array_equal(rows[0].image, World(0, stream="test").sample(episode.task, 0).references[0])


def test_a_table_of_layers_has_the_inputs_where_all_results_have_them(tmp_path):
    content, _ = layered("test", {})
    content["arms"]["one"]["runs"][0] |= {"seconds": {"training": 0.0}, "commit": "abc", "versions": {}}
    assert "| layer 0 | layer 1 |" in re.sub(" +", " ", section(Comparisons(Result(content)), tmp_path))
    report = content["arms"]["one"]["runs"][0]["evaluations"]["layers"]
    values = {name: [0.9] for name in ("auroc", "effect", "sensitivity")}
    report["layers"]["inputs"] = {"distinction_single_cross": values}
    text = re.sub(" +", " ", section(Comparisons(Result(content)), tmp_path))
    assert "| similarity | inputs | layer 0 | layer 1 |" in text
    assert "| one | single_cross AUROC | 0.90 | 0.50 | 0.60 |" in text
    assert "| one | generation expert: mean AUROC | | 0.50 | 0.60 |" in text
    plot(Result(content), tmp_path / "both.png")
    report["examples"][0]["inputs"] = np.zeros((1, 4, 4)).tolist()
    draw_maps(Result(content), "layers", tmp_path / "maps.png")
    wider = Image.open(tmp_path / "maps.png").size
    del report["examples"][0]["inputs"]
    draw_maps(Result(content), "layers", tmp_path / "maps.png")
    assert wider[0] > Image.open(tmp_path / "maps.png").size[0]


def test_layers_are_drawn_of_test_episodes(tmp_path):
    content, _ = layered("test", {})
    chosen, _ = layered("validation", {})
    both = {**content, "evaluations": {"chosen": chosen["evaluations"]["layers"], **content["evaluations"]}}
    assert Result(both).of_kind("layers", "test") == ["layers"]
    plot(Result(both), tmp_path / "both.png")  # no arm has numbers of `chosen`
    assert Image.open(tmp_path / "both.png").size[0] > 500
    assert [file.name for file in tmp_path.iterdir()] == ["both.png"]


def test_choices_of_a_layer_and_histograms_are_shown_where_reports_have_them(tmp_path):
    content, _ = layered("test", {})
    conditions = {"seconds": {"training": 0.0}, "commit": "abc", "versions": {}}
    content["arms"]["one"]["runs"] = [{**content["arms"]["one"]["runs"][0], **conditions, "seed": s} for s in (0, 1)]
    for run in content["arms"]["one"]["runs"]:
        run["evaluations"] = {"layers": dict(run["evaluations"]["layers"])}
    reports = [run["evaluations"]["layers"] for run in content["arms"]["one"]["runs"]]
    draw_histograms(Result(content), "layers", tmp_path / "demo_histograms.png")
    assert not any(tmp_path.iterdir())  # an older version kept none
    assert "layer by" not in section(Comparisons(Result(content)), tmp_path)
    for report, auroc in zip(reports, (0.6, 0.7), strict=True):
        own = {"auroc": auroc, "precision": 0.5, "recall": 0.25, "layers": [0, 3]}
        other = {**own, "auroc": auroc + 0.1, "layers": [2, 1]}
        report["layer_choice"] = {"labels": {"set": own, "image": other}}
        report["histograms"] = {"layer": 1, "edges": [0.0, 0.1], "target": [4], "others": [3], "background": [2]}
    draw_histograms(Result(content), "layers", tmp_path / "demo_histograms.png")
    page = section(Comparisons(Result(content)), tmp_path)
    (row,) = [line for line in page.splitlines() if line.startswith("| one ") and "labels" in line]
    intervals = [str(estimate(values)) for values in ([0.6, 0.7], [0.7, 0.8])]
    cells = ["one", "labels", "1 1", intervals[0], "50 %", "25 %", intervals[1], "50 %", "25 %"]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == cells
    assert "![demo_histograms](demo_histograms.png)" in page
