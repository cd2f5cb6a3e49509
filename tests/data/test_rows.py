"""Names of fields, and what happens to rows whose references, target or text nothing reads."""

import json

import pytest
from data_helpers import encode

from scone_pl.cli.verbs import run
from scone_pl.data.convert import convert
from scone_pl.data.faults import Faults
from scone_pl.data.fields import USUAL_NAMES, FieldNames, unused_images
from scone_pl.data.inputs import open_input
from scone_pl.data.prompts import read_requests
from scone_pl.data.sample import BrokenSampleError, Sample
from scone_pl.data.shards import ShardSet
from scone_pl.errors import UserError


def main(args: list[str]) -> int:
    """Runs a command of `shards`; an error raises."""
    return run(["shards", *args])


ROW = {"instruction": "draw", "target": "t.png"}
UNKNOWN = ["reference_images", "ref_images", "control_images", "refs", "conditioning_image", "source_img", "pics"]


@pytest.fixture
def folder(tmp_path):
    for name, size in (("a", 16), ("b", 24), ("t", 32)):
        (tmp_path / f"{name}.png").write_bytes(encode(size, size))
    return tmp_path


def write(folder, *rows, name="x.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def outcomes(source, **options):
    """Of each row the number of its references, or the reason why it is left out."""
    opened = open_input(source, **options)
    found = [found for _, found in opened.read(0, len(opened))]
    return [f.reason if isinstance(f, BrokenSampleError) else len(f.references) for f in found]


@pytest.mark.parametrize("name", USUAL_NAMES["references"])
def test_every_command_knows_the_same_names(folder, name):
    for instruction in USUAL_NAMES["instruction"]:
        row = {name: ["a.png"], instruction: "draw", "key": "k"}
        file = write(folder, row, row | {"key": "l", name: "a.png"}, row | {"key": "m", name: [{"path": "a.png"}]})
        assert outcomes(file, require_target=False) == [1, 1, 1]
        assert [request.images for request in read_requests([file])] == [(folder / "a.png",)] * 3


@pytest.mark.parametrize("name", UNKNOWN)
def test_references_under_an_unknown_name_do_not_vanish(folder, name):
    file = write(folder, *[{**ROW, name: ["a.png"], "key": str(i)} for i in range(3)])
    with pytest.raises(
        UserError, match=f"no row has reference images; unused fields: [a-z_, ]*{name}.*--fields.references"
    ):
        open_input(file, has_field_options=True)
    with pytest.raises(UserError, match=f"x.jsonl:1: no references; .*{name}"):
        read_requests([file])
    assert outcomes(file, fields=FieldNames(references=name)) == [1, 1, 1]
    assert outcomes(file, require_references=False) == [0, 0, 0]


def test_a_field_that_no_row_has_is_refused_before_images_are_read(folder):
    file = write(folder, {**ROW, "input_images": ["none.png"]}, {**ROW, "input_images": []})
    for role, words in (
        ("references", "no row has the field 'refs'.*the rows have 'input_images', which is read without"),
        ("answer", "no row has the field 'refs' .--fields.answer"),
        ("key", "no row has the field 'refs'.*fields: input_images, instruction, target"),
        ("candidates", "--fields.candidates"),
        ("kind", "--fields.kind"),
    ):
        with pytest.raises(UserError, match=words):
            open_input(file, fields=FieldNames(**{role: "refs"}), has_field_options=True)


def test_few_rows_without_references_are_counted(folder):
    rows = [{**ROW, "input_images": ["a.png"]}] * 97 + [ROW, {**ROW, "input_images": None}, {**ROW, "img": "a.png"}]
    file = write(folder, *rows, {**ROW, "input_images": []})
    assert outcomes(file) == [1] * 97 + ["missing references"] * 3 + [0]
    assert outcomes(file, require_references=False) == [1] * 97 + [0] * 4


def test_text_to_image_rows_need_no_option(folder):
    file = write(folder, {**ROW, "image_size": "16x16", "image_caption": "a dog", "image_id": "7", "score": 3})
    assert outcomes(file) == [0]
    assert read_requests([write(folder, {"key": "k", "prompt": "x", "image_tgt_path": "t.png"})])[0].images == ()


def test_the_first_name_that_is_not_empty_is_read(folder):
    row = {**ROW, "input_images": [], "input_image": "a.png", "references": None, "target": "", "output_image": "t.png"}
    (_, sample) = next(open_input(write(folder, row)).read(0, 1))
    assert (len(sample.references), sample.target) == (1, encode(32, 32))


def test_missing_texts_and_targets_say_what_there_is(folder):
    rows = [{"input_images": ["a.png"], "promt": "x", "edited_image": "t.png"}, {"input_images": [], "prompt": "x"}]
    opened = open_input(write(folder, *rows), has_field_options=True)
    first, second = (str(error) for _, error in opened.read(0, 2))
    assert "no instruction; unused fields: edited_image, promt; is it promt? Then give --fields.instruction" in first
    assert "no target; no field is unused; usual names: target" in second
    named = open_input(write(folder, {**rows[0], "prompt": "x"}), has_field_options=True)
    assert "is it edited_image?" in str(next(named.read(0, 1))[1])


def test_names_with_dots_lead_into_objects(folder):
    row = {"caption": {"img2": "draw"}, "images": {"0": "a.png"}, "all": [{"path": "a.png"}, "t.png"], "a.b": "key 1"}
    names = FieldNames(instruction="caption.img2", references="all.0", target="all.1", key="a.b")
    opened = open_input(write(folder, row), fields=names)
    ((key, sample),) = opened.read(0, 1)
    assert (sample.instruction, len(sample.references), sample.target) == ("draw", 1, encode(32, 32))
    assert key.startswith("key_1-")
    assert sample.metadata.keys() == {"caption", "images", "all", "source"}
    with pytest.raises(UserError, match=r"no row has the field 'caption\.img3'"):
        open_input(write(folder, row), fields=FieldNames(instruction="caption.img3"))


def test_several_candidates_make_a_multi_sample(folder):
    box = {"box": [0, 0, 0.5, 1], "meant": True}
    row = {**ROW, "references": ["a.png"]}
    rows = [
        row,
        {**row, "candidates": [[box]]},
        {**row, "candidates": [[box, {**box, "meant": False}]]},
        {**row, "subject_list": [["a dog", "a cat"]], "subject_label": [[1, 0]]},
        {**row, "subject_list": [["a dog"]]},
        {**row, "kind": "multi"},
        {**row, "kind": "single", "candidates": [[box, box]]},
        {**row, "candidates": [[box], [box]]},
        {**row, "boxes": [[box, box]]},
    ]
    found = [found for _, found in open_input(write(folder, *rows)).read(0, 9)]
    kinds = [f.kind if isinstance(f, Sample) else f.reason for f in found]
    expected = ["single", "single", "multi", "multi", "single", "multi", "wrong field", "wrong candidates", "single"]
    assert kinds == expected
    ((_, named),) = open_input(write(folder, rows[8]), fields=FieldNames(candidates="boxes")).read(0, 1)
    assert (named.kind, len(named.candidates[0])) == ("multi", 2)


def test_the_command_says_what_it_reads_and_what_it_leaves_out(folder, capsys):
    rows = [{"prompt": "x", "image_paths": ["a.png"], "image_tgt_path": "t.png", "mask": "b.png"}]
    file = write(folder, *rows, {**rows[0], "image_paths": ["none.png"]})
    assert main(["convert", file, str(folder / "out"), "--workers", "1"]) == 0
    text = capsys.readouterr().out
    assert "2 items; read: references from image_paths, target from image_tgt_path, instruction from prompt; " in text
    assert "not used: mask" in text
    assert "1 samples (single: 1) in" in text
    assert "skipped: 1 missing image" in text
    assert "none.png: no such file" in text
    with pytest.raises(UserError, match=r"--fields\.target is for jsonl and parquet sources"):
        main(["convert", str(folder / "out"), str(folder / "again"), "--fields.target", "x"])


@pytest.mark.parametrize(
    ("name", "value", "like"),
    [
        ("x", "dir/a.JPG", True),
        ("x", ["a.webp", "b.webp"], True),
        ("x", {"bytes": None, "path": "a.png"}, True),
        ("x", [{"bytes": b"x", "path": None}], True),
        ("x", b"png", True),
        ("x", "https://host/a.png?size=3", True),
        ("ref_img", "dir/000", True),
        ("images_ids", "000", False),
        ("image_caption", "a.dog", False),
        ("refinement", "yes", False),
        ("text", "see a.png for more", False),
        ("n", 3, False),
        ("n", [], False),
    ],
)
def test_what_looks_like_images(name, value, like):
    assert unused_images({name: value}, FieldNames(instruction="other")) == ([name] if like else [])


def test_lists_of_json_are_read_like_lines(folder):
    rows = [{"input_images": ["a.png"], "output_image": "t.png", "instruction": f"{i} }}],"} for i in range(5)]
    lines = write(folder, *rows)
    expected = [sample.instruction for _, sample in open_input(lines).read(0, 5)]
    (folder / "list").mkdir()
    for text in (json.dumps(rows), json.dumps(rows, indent=2), "\ufeff \r\n" + json.dumps(rows) + "\n\n"):
        for name in ("list/rows.json", "list/rows.jsonl", "list/rows.txt"):
            (folder / name).write_text(text, encoding="utf-8")
            opened = open_input(str(folder / name), image_root=str(folder))
            assert [sample.instruction for _, sample in opened.read(0, 5)] == expected
            (folder / name).unlink()
    (folder / "list/rows.json").write_text(json.dumps(rows))
    _, faults = convert(open_input(str(folder / "list"), image_root=str(folder)), folder / "out", progress=False)
    assert faults.total == 0
    assert [entry.instruction for entry in ShardSet(folder / "out").index] == expected


def test_every_reason_has_an_example_whatever_comes_first():
    faults = Faults()
    for number in range(30):
        faults.add(f"k{number}", BrokenSampleError("missing image", f"x:{number}"))
    faults.add("asked", BrokenSampleError("small image", "x:31"))
    faults.add("last", BrokenSampleError("wrong JSON", "x:32"))
    listed = faults.listed(3, exclude=("small image",))
    assert listed == ["k0: missing image: x:0", "k1: missing image: x:1", "last: wrong JSON: x:32"]
    assert len(faults.listed(1)) == 3


def test_messages_are_printable(folder):
    file = write(folder, {"instruction": 5, "x\x1b[2J": "a.png"}, {"promt\x1b\n": "x", "input_images": ["a\x07.png"]})
    found = [str(error) for _, error in open_input(file).read(0, 2)]
    assert all(text.isprintable() for text in [*found, open_input(file).describe()])
    assert "\\x1b" in found[1]
