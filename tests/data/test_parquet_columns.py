"""Columns of parquet in every form that tools write images and texts in."""

import pyarrow
import pyarrow.parquet
import pytest
from data_helpers import encode

from scone_pl.data.fields import FieldNames
from scone_pl.data.inputs import open_input
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError

A, B = encode(16, 16), encode(24, 24)
STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
LARGE = pyarrow.struct([("bytes", pyarrow.large_binary()), ("path", pyarrow.large_string())])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(A)
    (tmp_path / "b.png").write_bytes(B)
    return tmp_path


def write(folder, **columns):
    file = folder / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"instruction": ["draw"] * 2, **columns}), file)
    return str(file)


def read(source, **options):
    opened = open_input(source, **options)
    return [found.reason if isinstance(found, BrokenSampleError) else found for _, found in opened.read(0, len(opened))]


@pytest.mark.parametrize(
    ("type", "images"),
    [
        (pyarrow.binary(), (A, B)),
        (pyarrow.large_binary(), (A, B)),
        (pyarrow.string(), ("a.png", "b.png")),
        (pyarrow.large_string(), ("a.png", "b.png")),
        (pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), ("a.png", "b.png")),
        (STRUCT, ({"bytes": A, "path": "x.png"}, {"bytes": B, "path": None})),
        (STRUCT, ({"bytes": None, "path": "a.png"}, {"bytes": None, "path": "b.png"})),
        (LARGE, ({"bytes": A, "path": None}, {"bytes": None, "path": "b.png"})),
    ],
)
@pytest.mark.parametrize("several", [pyarrow.list_, pyarrow.large_list, lambda one: pyarrow.list_(one, 2)])
def test_images_in_every_form(folder, type, images, several):
    joined = write(folder, image=pyarrow.array([list(images)] * 2, several(type)))
    assert [(one.references, one.target) for one in read(joined)] == [((A,), B)] * 2
    apart = write(
        folder,
        input_images=pyarrow.array([list(images)] * 2, several(type)),
        target=pyarrow.array([images[1]] * 2, type),
    )
    assert [(one.references, one.target) for one in read(apart)] == [((A, B), B)] * 2


def test_one_image_is_the_target(folder):
    source = write(folder, image=pyarrow.array([{"bytes": A, "path": None}] * 2, STRUCT))
    assert [(one.references, one.target) for one in read(source)] == [((), A)] * 2
    assert "target from image, no references" in open_input(source).describe()


def test_columns_are_named_and_objects_entered(folder):
    source = write(
        folder,
        refs=[[A], [A, B]],
        out=[B, B],
        more=[{"en": "one", "id": 1}, {"en": "two", "id": 2}],
        kind=["multi"] * 2,
    )
    names = FieldNames(references="refs", target="out", instruction="more.en", key="more.id")
    opened = open_input(source, fields=names)
    assert list(opened.keys()) == ["1", "2"]
    found = list(opened.read(0, 2))
    assert [(key, one.instruction, one.references, one.target, one.kind) for key, one in found] == [
        ("1", "one", (A,), B, "multi"),
        ("2", "two", (A, B), B, "multi"),
    ]


def test_several_candidates_make_a_multi_sample(folder):
    box = {"box": [0.0, 0.0, 0.5, 1.0], "meant": True, "name": "cat"}
    source = write(folder, image=[[A, B]] * 2, candidates=[[[box]], [[box, {**box, "meant": False}]]])
    assert [one.kind for one in read(source)] == ["single", "multi"]


def test_few_rows_without_references_are_counted(folder):
    source = write(folder, input_images=[[A], None], target=[B, B])
    one, other = read(source)
    assert (one.references, other) == ((A,), "missing references")
    assert [len(sample.references) for sample in read(source, require_references=False)] == [1, 0]


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        (
            {"image": [[1, 2]] * 2},
            {},
            r"column image \(references\) has the type list<.*int64>; an image is bytes, a path",
        ),
        ({"image": [[[A]]] * 2}, {}, r"column image .* has the type list<"),
        ({"image": [{"data": A}] * 2}, {}, r"column image .* has the type struct<data: binary>"),
        (
            {"image": [[A, B]] * 2, "instruction": [1, 2]},
            {},
            r"column instruction .* has the type int64; it must hold strings",
        ),
        ({"input_images": [[A]] * 2, "target": [1.5, 2]}, {}, r"column target \(target\) has the type double"),
        ({"reference_images": [[A]] * 2, "target": [B] * 2}, {}, "no row has reference images; .*reference_images"),
        ({"image": [A, A], "reference_images": [[A]] * 2}, {}, "there are images in reference_images, too"),
        ({"image": [[A]] * 2, "output": [B] * 2}, {}, "there are images in output, too"),
        ({"image": [[A]] * 2, "target": [B] * 2}, {}, "there is a column image, too; give --fields.references image"),
        (
            {"image": [[A]] * 2},
            {"references": "refs"},
            r"no column 'refs' \(--fields.references\); columns are instruction",
        ),
        ({"image": [[A]] * 2}, {"instruction": "image.en"}, "no column 'image.en'"),
        ({"picture": [[A]] * 2}, {}, "no column image, nor columns of references and target; .*is it picture"),
        ({"image": [[A]] * 2, "kind": [1, 2]}, {}, r"column kind \(kind\) has the type int64"),
    ],
)
def test_columns_that_cannot_be_read_are_one_line(folder, columns, names, message):
    with pytest.raises(UserError, match=message) as error:
        open_input(write(folder, **columns), fields=FieldNames(**names), has_field_options=True)
    assert str(error.value).startswith(str(folder / "x.parquet"))


def test_a_column_that_is_there_twice(folder):
    table = pyarrow.Table.from_arrays(
        [pyarrow.array([[A]]), pyarrow.array(["x"]), pyarrow.array(["y"])], ["image", "text", "text"]
    )
    pyarrow.parquet.write_table(table, folder / "x.parquet")
    with pytest.raises(UserError, match="column text occurs 2 times"):
        open_input(str(folder / "x.parquet"))


def test_hidden_files_and_mixed_folders(folder):
    write(folder, image=[[A, B]] * 2)
    (folder / "._x.parquet").write_bytes(b"no parquet")
    assert len(open_input(str(folder))) == 2
    (folder / "x.jsonl").write_text('{"instruction": "x", "input_images": [], "target": "a.png"}\n')
    with pytest.raises(UserError, match=r"holds x\.jsonl and x\.parquet; say which are read with --format"):
        open_input(str(folder))
    assert (len(open_input(str(folder), "jsonl")), len(open_input(str(folder), "parquet"))) == (1, 2)


def test_nested_images_that_nothing_reads_are_named_and_named_ones_are_described(folder):
    nested = pyarrow.array([{"img": {"bytes": A, "path": None}, "id": 3}] * 2)
    source = write(folder, ref=nested, target=pyarrow.array([B] * 2, pyarrow.binary()))
    with pytest.raises(UserError, match=r"no row has reference images; .*ref.*--fields\.references ref\.img"):
        open_input(source, has_field_options=True)
    opened = open_input(source, fields=FieldNames(references="ref.img"))
    assert [found.references for _, found in opened.read(0, 2)] == [(A,)] * 2
    assert "references from ref.img, target, instruction" in opened.describe()
