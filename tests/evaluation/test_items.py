"""The published JSONL form: what is read of it, and what is complained about."""

import json
import re
import shutil

import pytest

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmarks.omnicontext import OMNICONTEXT
from scone_pl.evaluation.benchmarks.sconeeval import SCONEEVAL
from scone_pl.evaluation.items import read_items


def lines(folder):
    return [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]


@pytest.fixture
def copy(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    return tmp_path / "data"


def write(folder, records):
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_items_are_as_in_the_file(data, items):
    for item, line in zip(items, lines(data), strict=True):
        assert (item.key, item.task_type, item.instruction) == (line["key"], line["task_type"], line["instruction"])
        assert [str(image.relative_to(data)) for image in item.images] == line["input_images"]
        assert [list(names) for names in item.subjects] == line.get("subject_list", [])
        assert [list(labels) for labels in item.labels] == line.get("subject_label", [])
        assert not item.scene


def test_every_line_end_that_json_allows_within_a_text(copy):
    records = lines(copy)
    records[0]["instruction"] += "\u2028new\u2029\x85line"
    text = "\r\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (copy / "data.jsonl").write_bytes(text.encode())
    assert [item.instruction for item in read_items(SCONEEVAL, copy)] == [record["instruction"] for record in records]


def test_selection(data, omni_items):
    assert len(read_items(SCONEEVAL, data / "data.jsonl", limit=1)) == 6
    chosen = read_items(SCONEEVAL, data, tasks=["distinction_multi_intra", "composition_single"])
    assert [item.task_type for item in chosen] == ["composition_single"] * 2 + ["distinction_multi_intra"] * 2
    english = read_items(OMNICONTEXT, data.parent / "omnicontext", language="en")
    assert len(english) == 7 == len([item for item in omni_items if item.language == "en"])
    assert sum(item.scene for item in omni_items) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_type": "composition"}, r"data.jsonl:5: 'composition' is no task of sconeeval"),
        ({"subject_list": None}, "must be lists"),
        ({"subject_list": ["a"]}, "must be lists"),
        ({"subject_label": [[0, True]]}, "must be lists"),
        ({"subject_label": [[0]]}, "shape of `subject_list`"),
        ({"subject_label": [[0, 2]]}, "0 and 1 only"),
        ({"subject_label": [[]], "subject_list": [[]]}, "names no candidate"),
        ({"subject_list": [["a", "b"], ["c"]], "subject_label": [[0, 1], [1]]}, "2 lists in `subject_list` for 1"),
        ({"subject_list": [["a", " "]]}, "no description"),
        ({"case_type": 2}, "`case_type` must be a string"),
        ({"key": "0001", "task_type": "composition_single"}, "is already used at"),
        ({"input_images": ["no.png"]}, "no such image file"),
        ({"key": "\u732b" * 70}, "is not a valid file name; use up to 200 bytes"),
        ({"key": "\ud800"}, "half a surrogate pair"),
        ({"task_type": "../x"}, "`task_type` '../x' is not a valid file name"),
    ],
)
def test_bad_lines_are_named(copy, change, message):
    records = lines(copy)
    records[4] |= change
    write(copy, records)
    with pytest.raises(UserError, match=message) as error:
        read_items(SCONEEVAL, copy)
    assert "data.jsonl:5: " in str(error.value)


def test_other_mistakes(data, tmp_path):
    with pytest.raises(UserError, match=r"no data\.jsonl there"):
        read_items(SCONEEVAL, tmp_path)
    with pytest.raises(UserError, match="has no task 'single'; its tasks: composition_single"):
        read_items(SCONEEVAL, data, tasks=["single"])
    with pytest.raises(UserError, match="language fr"):
        read_items(SCONEEVAL, data, language="fr")
    with pytest.raises(UserError, match="--limit is 0"):
        read_items(SCONEEVAL, data, limit=0)


def test_a_strange_case_type_is_told_and_does_not_stop(copy, caplog):
    records = lines(copy)
    records[0]["case_type"] = "Single"
    records[1]["case_type"] = "1 image, scene"
    write(copy, records)
    items = read_items(SCONEEVAL, copy)
    assert "'Single' (1) partly unrecognised" in caplog.text
    assert [item.scene for item in items[:2]] == [False, True]


def test_an_item_that_can_not_be_won_is_told_and_kept(copy, caplog):
    records = lines(copy)
    records[4]["subject_label"] = [[0, 0]]
    write(copy, records)
    assert len(read_items(SCONEEVAL, copy)) == 12
    assert re.search(r"data\.jsonl:5: no candidate is labelled 1.*\(1 such items\)", caplog.text)


def test_one_image_under_the_old_name(copy):
    records = lines(copy)
    records[0]["input_image"] = records[0].pop("input_images")[0]
    write(copy, records)
    assert len(read_items(SCONEEVAL, copy)[0].images) == 1
