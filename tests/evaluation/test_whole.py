"""Generate, judge, tables, report: one command, on the benchmark that ships with the tests."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import markupsafe
import pytest
import yaml
from fake_judge import serving, write_pictures
from PIL import Image
from safetensors.torch import load_file, save_file

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.evaluation.benchmarks.sconeeval import SCONEEVAL
from scone_pl.evaluation.folder import EvaluationFolder
from scone_pl.evaluation.items import read_items
from scone_pl.evaluation.records import read_records
from scone_pl.evaluation.report import write_report
from scone_pl.evaluation.summary import Summary

sys.path.insert(0, str(Path(__file__).parents[1] / "sampling"))
from pipeline_helpers import write_folder
from running import ROOT

FEW_STEPS = ["--", "--model.init_args.sampling.num_inference_steps", "2", "--trainer.accelerator", "cpu"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def here(monkeypatch):
    """Generates in this process: another one would spend seconds on importing. Holds the commands that ran."""
    import scone_pl.cli.stages
    import scone_pl.training.chain

    ran = []

    def run(command):
        ran.append(command)
        return scone_pl.cli.stages.main([*command, "--trainer.devices", "1"])

    monkeypatch.setattr(scone_pl.training.chain, "run_in_own_process", run)
    monkeypatch.setattr("sys.argv", ["scone_pl"])
    return ran


def arguments(data, output, *more):
    return ["evaluate", "--benchmark", "sconeeval", "--data", str(data), "--output", str(output), *more]


def test_one_command(data, checkpoint, here, tmp_path, capsys):
    output = tmp_path / "run"
    with serving() as server:
        judge = ["--judge.base_url", server.url, "--judge.model", "gpt-4.1"]
        command = arguments(data, output, "--checkpoint", str(checkpoint), "--rounds", "2", "--scorings", "2", *judge)
        command += ["--limit", "1", *FEW_STEPS]
        assert main(command) == 0, capsys.readouterr().err
        first = capsys.readouterr()
        asked = len(server.requests)
        assert len(here) == 2
        again = [*command[: -len(FEW_STEPS)], "--only", "judge"]
        assert main(again) == 0
        assert main([*command[: -len(FEW_STEPS)], "--only", "generate", *FEW_STEPS]) == 0
        assert (len(server.requests), len(here)) == (asked, 2), "the second time there is nothing left to do"
    assert "| **tiny**" in first.out
    assert "generating round 2 of 2: 6 of 6 images" in first.err
    assert re.search(r"judging: 96 of 96 calls, 0 failed, 0 requests retried, 96.0K \+ 960 tokens, \$0\.20", first.err)
    folder = EvaluationFolder(output)
    records = read_records(folder.scores, SCONEEVAL)
    assert [r["sampling"] for r in records] == [1] * 12 + [2] * 12
    for record in records:
        assert record["failure"] is None
        made = record["generation"]
        assert (made["sampling"]["seed"], made["round"]) == (1234, record["sampling"] - 1)
        assert made["sampling"]["num_inference_steps"] == 2
        assert made["sampling"]["guidance_rescale"] == "text_channel"
    one, two = (folder.images_of(n) / "composition_single/0001.png" for n in (1, 2))
    assert one.read_bytes() != two.read_bytes()
    table = json.loads((folder.tables / "table.json").read_text())
    assert (table["name"], table["combined"]["n_groups"]) == ("tiny", 4)
    assert {file.name for file in folder.tables.iterdir()} >= {"table.md", "table.tex", "radar.png", "stability.pdf"}
    page = folder.report.read_text()
    assert page.count("<article ") == 6
    # A picture is lost: it alone is made again, equal.
    before = one.read_bytes()
    one.unlink()
    assert main([*command[: -len(FEW_STEPS)], "--only", "generate", *FEW_STEPS]) == 0
    assert len(here) == 3
    assert one.read_bytes() == before


@pytest.mark.slow
def test_steps_alone(data, checkpoint, here, tmp_path, capsys):
    output, items = tmp_path / "run", read_items(SCONEEVAL, data)
    write_pictures(items, tmp_path / "elsewhere")
    with serving() as server:
        judge = ["--judge.base_url", server.url, "--judge.model", "local"]
        steps = arguments(data, output, "--images", str(tmp_path / "elsewhere"), "--name", "another", *judge)
        assert main([*steps, "--only", "judge", "--scorings", "1"]) == 0
    assert "cost unknown" in capsys.readouterr().out
    assert not (output / "tables").exists()
    assert main(arguments(data, output, "--only", "tables", "--tasks", "composition_single", "composition_multi")) == 0
    text = capsys.readouterr().out
    assert "| **another**" in text
    assert "Groups without every task have no average." in text
    assert ">no image<" not in (output / "report.html").read_text(), "where the pictures were is remembered"
    assert not here
    one = ["--only", "tables", "--tasks=composition_single", "--compare", str(output / "scores.jsonl")]
    assert main(arguments(data, output, *one)) == 0
    rows = json.loads((output / "tables/table.json").read_text())["comparisons"][0]
    assert (rows["with"], rows["n"]) == ("another 2", {"composition_single": 2})
    ours, theirs = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| **another"))
    assert ours.split("|")[2:] == theirs.split("|")[2:], "of the chosen items both"
    table = ["tables", "--benchmark", "sconeeval", "--scores", str(output / "scores.jsonl"), "--json"]
    assert main(table) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "another"
    assert (
        main(
            [
                *arguments(data, tmp_path / "g"),
                "--checkpoint",
                str(checkpoint),
                "--only",
                "generate",
                "--rounds",
                "1",
                "--limit",
                "1",
                *FEW_STEPS,
            ]
        )
        == 0
    )
    assert len(list((tmp_path / "g/round_1/predictions").rglob("*.png"))) == 6
    assert not (tmp_path / "g/answers.jsonl").exists()


def test_a_judge_that_could_judge_nothing_is_a_failure(data, tmp_path, capsys):
    items = read_items(SCONEEVAL, data)
    write_pictures(items, tmp_path / "damaged")
    for picture in (tmp_path / "damaged").rglob("*.png"):
        picture.write_bytes(b"no picture")
    with serving() as server:
        judge = ["--judge.base_url", server.url, "--judge.model", "local", "--scorings", "1", "--only", "judge"]
        assert main(arguments(data, tmp_path / "run", "--images", str(tmp_path / "damaged"), *judge)) == 1
    assert "judged: 0 of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--checkpoint: give the folder"),
        (["--only", "judge"], "no images"),
        (["--only", "tables"], "scores.jsonl: no such file"),
        (["--checkpoint", "x"], "$OPENAI_API_KEY is not set"),
        (["--checkpoint", "no/such", "--judge.base_url", "http://127.0.0.1:9"], "no/such"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--only", "judge", "--images", "nowhere"], "nowhere"),
        (["--only", "judge", "--", "--trainer.devices", "2"], "for generating, which is not done here"),
        (["--only", "tables", "--tasks", "cross"], "has no task 'cross'"),
        (["--judge.concurency", "3"], "did you mean --judge.concurrency?"),
        (["--checkpoint", "x", "--judge.prices", "no.yaml", "--judge.base_url", "http://127.0.0.1:9"], "no.yaml"),
        (["--checkpoint", "x", "--judge.prompts", "no", "--judge.base_url", "http://127.0.0.1:9"], "no/VERSION"),
        (["--only", "tables", "--tasks=composition_single,cross"], "has no task 'cross'"),
        (["--benchmark", "imagenet"], "sconeeval"),
    ],
)
def test_mistakes_are_one_line(data, tmp_path, capsys, here, more, message):
    if "judge" in more and "--images" in more:
        more = [*more, "--judge.base_url", "http://127.0.0.1:9"]
    if more[:2] == ["--only", "judge"] and len(more) == 2:
        more = [*more, "--judge.base_url", "http://127.0.0.1:9"]
    assert main(arguments(data, tmp_path, *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_the_sampler_is_the_one_of_the_predict_recipe():
    from scone_pl.evaluation.generate import RECIPE

    ours, recipe = (yaml.safe_load(f.read_text()) for f in (RECIPE, ROOT / "experiments/predict.yaml"))
    assert ours["model"]["class_path"] == recipe["model"]["class_path"]
    for name, value in ours["model"]["init_args"].items():
        assert recipe["model"]["init_args"][name] == value


def test_ranks_wait_for_each_other_before_one_of_them_judges(items, checkpoint, tmp_path, monkeypatch):
    import torch.distributed as dist

    from scone_pl.evaluation import generate as module

    done = []
    monkeypatch.setattr(module, "launched_rank", lambda: 0)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "barrier", lambda: done.append("barrier"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: done.append("apart"))

    def predict(command):
        done.append("predict")
        return 0

    module.generate(EvaluationFolder(tmp_path), items, str(checkpoint), 2, predict=predict)
    assert done == ["predict", "barrier", "predict", "barrier", "apart"]


def test_a_refused_checkpoint_does_not_give_its_name(data, checkpoint, here, tmp_path, capsys):
    other = shutil.copytree(checkpoint, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, other / "model.safetensors")
    command = arguments(data, tmp_path / "run", "--limit", "1", "--rounds", "1", "--only", "generate")
    assert main([*command, "--checkpoint", str(checkpoint), *FEW_STEPS]) == 0
    assert main([*command, "--checkpoint", str(other), *FEW_STEPS]) == 2
    assert "goes on" not in capsys.readouterr().err.splitlines()[-1], "the same command never will"
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["name"] == "tiny"
    assert main([*arguments(data, tmp_path / "new", "--only", "generate"), "--checkpoint", "no/such", *FEW_STEPS]) == 2
    assert not (tmp_path / "new").exists()


def test_a_changed_item_does_not_keep_its_old_picture(items, checkpoint, tmp_path, monkeypatch):
    import scone_pl.training.chain
    from scone_pl.evaluation.generate import generate

    ran = []
    monkeypatch.setattr(scone_pl.training.chain, "run_in_own_process", lambda command: ran.append(command) or 0)
    folder = EvaluationFolder(tmp_path)
    generate(folder, items, str(checkpoint), 1, predict=pytest.fail)
    write_pictures(items, folder.images_of(1))
    changed = [replace(items[0], instruction="draw something else"), *items[1:]]
    with pytest.raises(UserError, match=r"composition_single/0001\.png: was generated from another instruction"):
        generate(folder, changed, str(checkpoint), 1, predict=pytest.fail)
    folder.image(items[0], 1).unlink()
    generate(folder, changed, str(checkpoint), 1, predict=pytest.fail)
    assert len(ran) == 2


def test_a_folder_holds_one_benchmark(data, tmp_path, capsys, items):
    write_pictures(items, tmp_path / "pictures")
    EvaluationFolder(tmp_path / "run").begin(SCONEEVAL, name="x")
    other = data.parent / "omnicontext"
    status = main(["judge", "--benchmark", "omnicontext", "--data", str(other), "--output", str(tmp_path / "run"),
                   "--images", str(tmp_path / "pictures")])  # fmt: skip
    assert status == 2
    assert "holds an evaluation of 'sconeeval'; choose another --output" in capsys.readouterr().err


NASTY = '<script>alert("x")</script> & </article> $title {{x}} \u2028 é'


@pytest.fixture
def report(folder, data, tmp_path):
    """A page about items, answers and a model that are all called `NASTY`; the first item has no picture."""
    copy = tmp_path / "nasty"
    shutil.copytree(data, copy)
    lines = [json.loads(line) for line in (copy / "data.jsonl").read_text().splitlines()]
    for line in lines:
        line["instruction"] += NASTY
        line["case_type"] = "1O"
        line["subject_list"] = [[name + NASTY for name in group] for group in line.get("subject_list", [])]
    (copy / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = read_items(SCONEEVAL, copy)
    folder.image(items[0], 1).unlink()
    records = []
    for number, item in enumerate(items):
        record = {"sampling": 1, "scoring": 1, "key": item.key, "task_type": item.task_type, "PF": 8.0, "SC": 9.0}
        record |= {"PF_reason": NASTY, "SC_reason": "fine", "failure": None, "judge": {"model": NASTY}}
        if item.labels:
            record |= {"label": [list(g) for g in item.labels], "pred": [list(g) for g in item.labels]}
        if number == 0:
            record |= {"PF": None, "failure": NASTY}
        if number == 1:
            record["SC"] = 2.0
        if number == 4:
            record["pred"] = [[1, 1]]
        if number == 5:
            record["pred"] = [[0, 0]]
        records.append(record)
    place = tmp_path / "report.html"
    write_report(place, Summary.of(records, SCONEEVAL, NASTY), items, records, folder.image)
    return place.read_text(encoding="ascii")


def test_the_report_escapes_everything(report):
    assert "<script>alert" not in report
    assert report.count("<script>") == 1
    assert report.count("<article ") == report.count("</article>") == 12
    assert str(markupsafe.escape(NASTY)).encode("ascii", "xmlcharrefreplace").decode() in report
    assert not re.findall(r"""(?:src|href)=["'](?!data:image/)""", report), "nothing comes from elsewhere"
    assert "default-src 'none'" in report
    assert len(report) < 1_000_000


def test_the_report_filters_by_task_and_failure(report):
    cards = re.findall(
        r'<article data-task="(\w+)" data-faults="([^"]*)" data-place="(\d+)" data-com="([^"]*)"', report
    )
    assert [card[0] for card in cards] == [task for task in SCONEEVAL.tasks for _ in range(2)]
    assert [card[1] for card in cards][:6] == ["failed", "consistency", "", "", "redundancy", "omission drift"]
    assert [int(card[2]) for card in cards] == list(range(12))
    assert cards[0][3] == ""
    assert float(cards[2][3]) == pytest.approx(72**0.5, abs=1e-3)
    options = re.findall(r'<option value="(\w+)">', report)
    assert {"redundancy", "omission", "consistency", "failed", *SCONEEVAL.tasks} <= set(options)
    assert ">no image<" in report
    for name in re.findall(r'getElementById|"(task|fault|order|words)"', report):
        assert not name or f'id="{name}"' in report


def test_pictures_in_the_report_are_small(folder, items, tmp_path):
    big = folder.image(items[0], 1)
    Image.new("RGB", (1024, 512), "red").save(big)
    records = [{"sampling": 1, "scoring": 1, "key": i.key, "task_type": i.task_type} for i in items]
    records = [r | {"PF": 1, "SC": 1} for r in records[:2]]
    write_report(tmp_path / "r.html", Summary.of(records, SCONEEVAL, "x"), items[:1], records, folder.image)
    assert 'width="256" height="128"' in (tmp_path / "r.html").read_text()
