"""A study's page says nothing about the models; what raters save comes back as fractions and agreement."""

from __future__ import annotations

import base64
import copy
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from study_runs import ITEMS, NAMES, colour, write_runs

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.evaluation.blind_study.choices import read_choices
from scone_pl.evaluation.blind_study.key import StudyKey


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a page and its key."""
    folder = tmp_path_factory.mktemp("study")
    assert main(["study-page", "--runs", *write_runs(folder), "--output", str(folder / "out")]) == 0
    return folder / "out"


def content_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_is_blind_and_the_key_is_right(study: Path) -> None:
    page, key = (study / "study.html").read_text(), StudyKey.read(study / "study_key.json")
    bare = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert not [word for word in (*NAMES, str(study.parent), "item0.png", "Software") if word in bare]
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)|@import|fetch\(|XMLHttpRequest""", bare)
    content = content_of(study / "study.html")
    assert content["study"] == key.study
    assert sorted((item.task, item.key) for item in key.items) == sorted(ITEMS)
    assert [(item.task, item.key) for item in key.items] != ITEMS
    assert len({tuple(item.systems) for item in key.items}) > 1
    for shown, item in zip(content["items"], key.items, strict=True):
        assert shown["instruction"] == f"{item.task} </script> {item.key}"
        assert len(shown["references"]) == 1
        for url, system in zip(shown["images"], item.systems, strict=True):
            encoded = base64.b64decode(url.partition(",")[2])
            assert system.encode() not in encoded
            with Image.open(io.BytesIO(encoded)) as image:
                assert image.info == {}
                assert image.getpixel((3, 3)) == colour(system, item.task, item.key)


def test_a_seed_decides_and_items_are_limited(study: Path, tmp_path: Path) -> None:
    runs = [str(study.parent / name) for name in NAMES]
    for name, seed in (("same", "0"), ("other", "1")):
        assert main(["study-page", "--runs", *runs, "--output", str(tmp_path / name), "--seed", seed]) == 0
    assert (tmp_path / "same/study.html").read_bytes() == (study / "study.html").read_bytes()
    assert (tmp_path / "other/study.html").read_bytes() != (study / "study.html").read_bytes()
    renamed = [f"A={runs[0]}", f"B={runs[1]}/round_1/predictions"]
    prompts = ["--prompts", f"{runs[0]}/prompts.jsonl", "--limit", "2"]
    assert main(["study-page", "--runs", *renamed, *prompts, "--output", str(tmp_path / "few")]) == 0
    key = StudyKey.read(tmp_path / "few/study_key.json")
    assert (key.systems, len(key.items), key.benchmark) == (["A", "B"], 2, None)


def save(folder: Path, key: StudyKey, rater: str, chosen: list[str | None]) -> str:
    """The file of a rater who chooses these systems, in the order of the key."""
    choices = [
        {"item": n, "image": None if name is None else item.systems.index(name), "position": name and 0, "seconds": 1.0}
        for n, (item, name) in enumerate(zip(key.items, chosen, strict=False))
    ]
    file = folder / f"{rater}.json"
    file.write_text(json.dumps({"study": key.study, "rater": rater, "choices": choices}))
    return str(file)


def result_of(study: Path, files: list[str], capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["study-choices", "--choices", *files, "--key", str(study / "study_key.json"), "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_fractions_and_intervals(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = StudyKey.read(study / "study_key.json")
    files = [
        save(tmp_path, key, "ann", ["keen"] * 6),
        save(tmp_path, key, "bob", ["keen", "keen", "keen", "fair", "fair", None]),
    ]
    found = result_of(study, files, capsys, "--output", str(tmp_path / "out"))
    assert (found["items"], found["raters"], found["choices"], found["none"]) == (6, 2, 11, 1)
    assert {name: row["n"] for name, row in found["systems"].items()} == {"dull": 0, "fair": 2, "keen": 9}
    assert found["systems"]["keen"]["fraction"] == pytest.approx(9 / 11)
    low, high = found["systems"]["keen"]["interval"]
    assert 0.5 < low < 9 / 11 < high <= 1
    assert found["systems"]["dull"]["interval"] == [0, 0]
    (pair,) = [pair for pair in found["pairs"] if pair["systems"] == ["fair", "keen"]]
    assert pair["difference"] == pytest.approx(-7 / 11)
    assert found["positions"] == [11, 0, 0]
    assert found["equal"]["pairs"] == 5
    assert found["equal"]["fraction"] == pytest.approx(3 / 5)
    # Fleiss: 8 of the 10 choices in pairs are of one system, 2 of another.
    assert found["equal"]["kappa"] == pytest.approx((0.6 - 0.68) / (1 - 0.68))
    best = found["agreement"]["columns"]["SC"]["best"]
    assert (best["n"], best["fraction"], best["chance"]) == (11, pytest.approx(9 / 11), pytest.approx(1 / 3))
    systems = found["agreement"]["columns"]["SC"]["systems"]
    assert all(pair["same_sign"] for pair in systems["pairs"])
    assert systems["means"]["keen"]["candidate"] == 9
    text = (tmp_path / "out/choices.md").read_text()
    assert re.search(r"\| keen +\| +9 \| +81.8% \|", text)
    table = (tmp_path / "out/choices.csv").read_text().splitlines()
    assert table[0] == "rater,task_type,key,sampling,column,value,system"
    assert len(table) == 1 + 11 * 3


def test_everybody_agrees(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = StudyKey.read(study / "study_key.json")
    files = [save(tmp_path, key, rater, ["dull"] * 6) for rater in ("ann", "bob")]
    found = result_of(study, files, capsys)
    assert found["systems"]["dull"] == {"n": 12, "fraction": 1.0, "interval": [1.0, 1.0]}
    assert found["equal"] == {"pairs": 6, "fraction": 1.0, "kappa": None}
    assert found["agreement"]["columns"]["PF"]["best"]["fraction"] == 0


def test_equal_scores_count_as_a_random_pick(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = StudyKey.read(study / "study_key.json")
    scores = []
    for name in NAMES:
        rows = (study.parent / name / "scores.jsonl").read_text().splitlines()
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(json.loads(row) | {"SC": 5, "PF": 5}) + "\n" for row in rows))
        scores.append(str(file))
    found = result_of(study, [save(tmp_path, key, "ann", ["keen"] * 6)], capsys, "--scores", *scores)
    assert found["agreement"]["columns"]["SC"]["best"]["fraction"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": "another"}, "no choices of study"),
        ({"rater": " "}, "`rater` must be a name"),
        ({"rater": 3}, "`rater` must be a name"),
        ({"choices": {}}, "`choices` must be a list"),
        ({"choices": [3]}, "choice 1: `item`"),
        ({"choices": [{"item": 6, "image": 0, "position": 0}]}, "`item` must be a whole number below 6"),
        ({"choices": [{"item": True, "image": 0, "position": 0}]}, "`item` must be"),
        ({"choices": [{"item": 0, "image": 3, "position": 0}]}, "`image` must be a whole number below 3"),
        ({"choices": [{"item": 0, "image": 0, "position": -1}]}, "`position` must be"),
        ({"choices": [{"item": 0, "image": 0, "position": 0}] * 2}, "item 0 is chosen from twice"),
        ({"choices": []}, "nothing is chosen"),
    ],
)
def test_what_is_no_choice_is_named(change: dict[str, Any], message: str, study: Path, tmp_path: Path) -> None:
    key = StudyKey.read(study / "study_key.json")
    file = Path(save(tmp_path, key, "ann", ["keen"] * 6))
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message):
        read_choices([str(file)], key)


def test_a_rater_twice_and_a_folder(study: Path, tmp_path: Path) -> None:
    key = StudyKey.read(study / "study_key.json")
    file = Path(save(tmp_path, key, "ann", ["keen"] * 6))
    assert len(read_choices([str(tmp_path)], key)) == 6
    (tmp_path / "copy.json").write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"the choices of 'ann' are in .*, too"):
        read_choices([str(tmp_path)], key)


def test_damaged_keys_are_refused_in_one_line(study: Path, tmp_path: Path) -> None:
    content = json.loads((study / "study_key.json").read_text())
    generator = random.Random(0)
    for _ in range(200):
        damaged = copy.deepcopy(content)
        inner: Any = damaged if generator.random() < 0.5 else generator.choice(damaged["items"])
        name = generator.choice(list(inner))
        if generator.random() < 0.3:
            del inner[name]
        else:
            inner[name] = generator.choice([None, 3, "x", [], {}, [1], True])
        (tmp_path / "key.json").write_text(json.dumps(damaged))
        try:
            found = StudyKey.read(tmp_path / "key.json")
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert all(len(item.systems) == len(item.digests) == len(found.systems) for item in found.items)


def test_runs_that_cannot_be_compared(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(study.parent / name) for name in NAMES]
    images = [f"{run}/round_1/predictions" for run in runs]
    (tmp_path / "empty").mkdir()
    cases = {
        "2 to 4 models; these are 1": runs[:1],
        "2 to 4 models; these are 5": runs + runs[:2],
        "no such folder": [runs[0], "/absent"],
        "--prompts: give the JSONL file": images,
        "of none of its 6 items do all runs have an image": [runs[0], str(tmp_path / "empty")],
    }
    for message, given in cases.items():
        assert main(["study-page", "--runs", *given, "--output", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert message in lines[0]
    assert not (tmp_path / "out").exists()
