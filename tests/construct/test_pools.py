"""Pools in their published layouts: every row becomes samples or a counted reason."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pool_files import encoded, pixels, save, uno_row, write_list

from scone_pl.construct.items import Item
from scone_pl.construct.placeholders import in_words
from scone_pl.construct.pools import Images, Pool, PoolConfig, merged
from scone_pl.data.fields import FieldNames
from scone_pl.data.sample import BrokenSampleError, Sample
from scone_pl.data.shard_writer import write_shards
from scone_pl.errors import UserError


def read(pool: Pool) -> list[Item | str]:
    """Items, or the reasons why they are none."""
    return [item.reason if isinstance(item, BrokenSampleError) else item for _, item in pool.items(0, len(pool))]


def only(path: Path, **settings: Any) -> list[Item | str]:
    return read(PoolConfig(name="p", path=str(path), **settings).open())


# ---------------------------------------------------------------------- UNO-1M
def test_a_uno_pair_is_two_samples_with_the_other_captions(tmp_path: Path) -> None:
    write_list([uno_row(0, tmp_path)], tmp_path / "labels/a.json")
    first, second = only(tmp_path / "labels", image_root=str(tmp_path), license="cc-by-nc-4.0", origin="UNO-1M")
    assert isinstance(first, Item)
    assert isinstance(second, Item)
    assert (first.instruction, second.instruction) == (
        "A cat runs through garden number 0.",
        "A cat sleeps on chair number 0.",
    )
    assert first.target == second.references[0]
    assert second.target == first.references[0]
    assert first.metadata["subjects"] == ["cat"]
    assert (first.metadata["license"], first.metadata["origin"]) == ("cc-by-nc-4.0", "UNO-1M")
    assert first.key != second.key


DIRTY: list[tuple[Any, str]] = [
    ({"vlm_filter_cot": {"score_final": 131184.67}}, "unusable score"),
    ({"vlm_filter_cot": {"score_final": 8.5}}, "unusable score"),
    ({"vlm_filter_cot": {"score_final": -1}}, "unusable score"),
    ({"vlm_filter_cot": {"score_final": "4"}}, "unusable score"),
    ({"vlm_filter_cot": {"score_final": True}}, "unusable score"),
    ({"vlm_filter_cot": {"score_final": None}}, "unusable score"),
    ({"vlm_filter_cot": [4]}, "unusable score"),
    ({"caption": "a cat"}, "missing instruction"),
    ({"caption": {"img_path1": " ", "img_path2": ""}}, "missing instruction"),
    ({"caption": {"img_path1": 3, "img_path2": ["a"]}}, "wrong field"),
    ({"caption": {"img_path1": "a", "img_path2": "b", "judgment": "Different."}}, "judged different"),
    ({"caption": {"img_path1": "a", "img_path2": "b", "judgment": "No, another cat."}}, "judged different"),
    ({"vlm_filter_cot": {"score_final": 10**400}}, "unusable score"),
    ({"img_path1": None}, "missing references"),
    ({"img_path1": 7}, "wrong field"),
    ({"img_path1": "images/none.png"}, "missing image"),
    ({"img_path1": "../../etc/passwd"}, "image outside the pool"),
    ({"img_path1": "/etc/passwd"}, "image outside the pool"),
    ({"img_path1": "https://example.org/a.png"}, "missing image"),
    ({"img_path1": "images/0_2.png"}, "target is a reference"),
    ({"img_path1": "copy.png"}, "target is a reference"),
    ({"img_path1": "images"}, "missing image"),
    ({"img_path1": "text.png"}, "unreadable image"),
    ({"img_path1": "empty.png"}, "empty image"),
]


@pytest.mark.parametrize(("changes", "reason"), DIRTY, ids=lambda value: str(value)[:50])
def test_a_dirty_uno_row_is_counted_and_spoils_no_other(tmp_path: Path, changes: Any, reason: str) -> None:
    rows = [uno_row(0, tmp_path, **changes), uno_row(1, tmp_path)]
    save(pixels(2), tmp_path / "copy.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    write_list(rows, tmp_path / "a.json")
    found = only(tmp_path / "a.json")
    assert reason in found[:2]
    assert all(isinstance(item, Item) for item in found[2:])
    assert len(found) == 4


@pytest.mark.parametrize("row", [None, 3, "x", [], {}, {"img_path1": {}}], ids=str)
def test_anything_in_a_uno_list_is_counted(tmp_path: Path, row: Any) -> None:
    write_list([uno_row(0, tmp_path), row], tmp_path / "a.json")
    assert [isinstance(item, Item) for item in only(tmp_path / "a.json")] == [True, True, False, False]


def test_where_keeps_numbers_of_rows(tmp_path: Path) -> None:
    scores = [4.0, 3.5, 3.4, 8.5]
    rows = [uno_row(i, tmp_path, vlm_filter_cot={"score_final": score}) for i, score in enumerate(scores)]
    write_list(rows, tmp_path / "a.json")
    config = merged(
        PoolConfig(name="p", path=str(tmp_path / "a.json")), ("vlm_filter_cot.score_final >= 3.5",), FieldNames()
    )
    found = read(config.open())
    assert [isinstance(item, Item) for item in found] == [True] * 4 + [False] * 4
    assert found[4:] == ["not vlm_filter_cot.score_final >= 3.5"] * 2 + ["unusable score"] * 2


@pytest.mark.parametrize("text", ["", "a", "a >= b", "a > 1 and b > 2", "a >= nan", "a = 3", ">= 3", "a >= 1.2.3"])
def test_other_conditions_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="where"):
        PoolConfig(name="p", path="x", where=(text,))


def test_a_condition_on_a_field_that_no_row_has_is_refused(tmp_path: Path) -> None:
    write_list([uno_row(0, tmp_path)], tmp_path / "a.json")
    with pytest.raises(UserError, match=r"no row has a number vlm_filter\.score"):
        only(tmp_path / "a.json", where=("vlm_filter.score >= 3",))


def test_mutilated_uno_files_end_in_one_line_or_counts(tmp_path: Path) -> None:
    """Seeded: bytes of a label file are changed, lost or repeated."""
    text = json.dumps([uno_row(i, tmp_path) for i in range(3)]).encode()
    generator = random.Random(7)
    for _ in range(200):
        data = bytearray(text)
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(len(data))
            data[at : at + generator.randint(0, 4)] = bytes(
                generator.choices(b'{}[]",:0\\nax\xff', k=generator.randint(0, 3))
            )
        (tmp_path / "a.json").write_bytes(data)
        try:
            found = only(tmp_path / "a.json", layout="uno", image_root=str(tmp_path))
        except UserError:  # its message is one line
            continue
        assert all(isinstance(item, Item | str) for item in found)


# ---------------------------------------------------------------------- others
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "The flower <img><|image_1|></img> is in the vase of <img><|image_2|></img>.",
            "The flower in image 1 is in the vase of image 2.",
        ),
        ("<img><|image_1|></img> <|image_2|> together", "image 1 in image 2 together"),
        ("No placeholder  at all.", "No placeholder  at all."),
    ],
)
def test_placeholders_become_words(text: str, words: str) -> None:
    assert in_words(text, 2) == words


@pytest.mark.parametrize("text", ["<|image_1|>", "<|image_1|> <|image_3|>", "<img>2</img> x", "a <|image_|> b"])
def test_placeholders_that_do_not_fit_are_counted(text: str) -> None:
    with pytest.raises(BrokenSampleError):
        in_words(text, 2)


def test_x2i_rows_and_nested_names(tmp_path: Path) -> None:
    for i in range(3):
        save(pixels(i), tmp_path / f"{i}.png")
    rows = [
        {"input_images": ["0.png", "1.png"], "output_image": "2.png", "note": 5,
         "instruction": "the cat of <img><|image_1|></img> and the dog of <img><|image_2|></img>"},
        {"input_images": ["0.png"], "output_image": "2.png", "instruction": "<img><|image_2|></img>"},
    ]  # fmt: skip
    (tmp_path / "x2i.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    item, reason = only(tmp_path / "x2i.jsonl")
    assert isinstance(item, Item)
    assert item.instruction == "the cat of image 1 and the dog of image 2"
    assert item.metadata["note"] == 5
    assert reason == "placeholders differ"
    write_list([uno_row(0, tmp_path)], tmp_path / "nested.json")
    names = FieldNames(instruction="caption.img_path2", references="img_path1", target="img_path2")
    (nested,) = only(tmp_path / "nested.json", fields=names)
    assert isinstance(nested, Item)
    assert nested.instruction == "A cat runs through garden number 0."


def test_ordered_folders(tmp_path: Path) -> None:
    def sample(name: str, files: list[str], text: str | None = "put them together") -> None:
        for i, file in enumerate(files):
            save(pixels(hash(name) % 1000 + i), tmp_path / name / file)
        if text is not None:
            (tmp_path / name / "instruction.txt").write_text(text)

    sample("0001", ["ref_1.png", "ref_2.png", "ref_10.png", *[f"ref_{i}.png" for i in range(3, 10)], "target.jpg"])
    sample("0002", ["ref_1.png", "ref_3.png", "target.png"])
    sample("0003", ["ref_1.png"])
    sample("0004", ["ref_1.png", "target.png"], text=None)
    sample("0005", ["target.png"])
    first, *reasons = only(tmp_path)
    assert isinstance(first, Item)
    assert [Path(ref.file).stem for ref in first.references] == [f"ref_{i}" for i in range(1, 11)]
    assert reasons == ["wrong references", "missing target", "missing instruction", "wrong references"]


def test_images_within_rows_are_found_again(tmp_path: Path) -> None:
    """Parquet with `datasets`' structs, and shards: bytes are read from the row when they are needed."""
    data = [encoded(pixels(i)) for i in range(4)]
    table = pyarrow.table(
        {
            "instruction": ["a", "b"],
            "input_images": [[{"bytes": data[0], "path": None}], [{"bytes": data[2], "path": None}]],
            "target": [{"bytes": data[1], "path": None}, {"bytes": data[3], "path": None}],
            "score": [1.0, 5.0],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    samples = [Sample(key=f"s{i}", references=(data[2 * i],), target=data[2 * i + 1], instruction="a") for i in (0, 1)]
    write_shards(samples, tmp_path / "set", progress=False)
    for path, where in ((tmp_path / "a.parquet", ("score >= 1",)), (tmp_path / "set", ())):
        pool = PoolConfig(name="p", path=str(path), where=where).open()
        images = Images({"p": pool}, tmp_path / "blobs")
        found = read(pool)
        assert [images.read(ref) for item in found if isinstance(item, Item) for ref in item.images] == data
    assert only(tmp_path / "a.parquet", where=("score > 3",))[0] == "not score > 3"
    with pytest.raises(UserError, match="no column other"):
        only(tmp_path / "a.parquet", where=("other > 3",))


def test_a_setting_of_another_layout_is_refused(tmp_path: Path) -> None:
    write_list([uno_row(0, tmp_path)], tmp_path / "a.json")
    with pytest.raises(UserError, match=r"fields is for json, parquet, but .* is read as uno"):
        only(tmp_path / "a.json", layout="uno", fields=FieldNames(target="x"))
    with pytest.raises(UserError, match="subset is for parquet"):
        only(tmp_path / "a.json", subset="x")
