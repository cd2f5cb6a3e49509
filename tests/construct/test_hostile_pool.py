"""A pool in UNO-1M's layout in which nearly everything is wrong: each row ends as samples or as a counted reason."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from pool_files import pixels, save, state, uno_row, write_config

from scone_pl.__main__ import main
from scone_pl.data.shards import ShardSet


def huge(file: Path) -> None:
    """The beginning of a PNG file of 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + data + b"\0" * 100)


def hostile(folder: Path) -> list[str]:
    """Rows as JSON; images of odd kinds beside them."""
    save(pixels(901), folder / "images/ü mlaut &%.png")
    save(pixels(902).convert("CMYK"), folder / "images/cmyk.jpg")
    save(pixels(903).convert("1"), folder / "images/bits.png")
    save(pixels(904).resize((1, 40)), folder / "images/thin.png")
    save(pixels(905), folder / "secret/private.png")
    huge(folder / "images/huge.png")
    whole = (folder / "images/bits.png").read_bytes()
    (folder / "images/cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "images/page.png").write_text("<html>404</html>")
    (folder / "images/null.png").write_bytes(b"")
    (folder / "images/folder.png").mkdir()
    (folder / "images/loop.png").symlink_to("loop.png")
    caption = {"img_path1": "A cat sleeps.", "img_path2": "A cat runs.", "judgment": "same", "subject": "cat"}
    changes: list[dict[str, Any]] = [
        *({"img_path1": f"images/{name}"} for name in ("ü mlaut &%.png", "cmyk.jpg", "bits.png", "thin.png")),
        *({"img_path2": f"images/{name}"} for name in ("huge.png", "cut.png", "page.png", "null.png", "folder.png")),
        *({"img_path1": path} for path in ("images/loop.png", "images/none.png", "", ".", "images/", "\0", "a\0.png")),
        *({"img_path2": path} for path in ("../secret/private.png", "images/../../x.png", "/etc/hostname", "~/a.png")),
        *({"img_path2": path} for path in ("file:///etc/hostname", "s3://b/a.png", "C:\\a.png", "x" * 5000, "\ud800")),
        *({"img_path1": value} for value in (None, 3, True, [], ["images/0_1.png"], {"path": "images/0_1.png"}, 1e400)),
        *({"caption": value} for value in (None, "text", [], 3, {}, {"img_path1": None}, {"caption": caption})),
        *({"caption": {**caption, "img_path1": value}} for value in ("", " \n", 7, [], {"text": "a"}, "\ud83d")),
        *({"caption": {**caption, "img_path2": value}} for value in ("a" * 200_000, "\x00\x07", "é\u202e\u200b 猫")),
        *({"caption": {**caption, "subject": value}} for value in (None, 3, ["cat"], {"a": 1}, "", "c" * 9999)),
        *({"caption": {**caption, "judgment": value}} for value in (None, 1, 0, False, "no", "NO, different", [], {})),
        *({"vlm_filter_cot": value} for value in (None, [], "4.0", 4, {}, {"score_part": None}, {"score_final": {}})),
        *({"vlm_filter_cot": {"score_final": value}} for value in ("4.0", "3.5 / 4", "", None, True, [4], 13118.67)),
        *({"vlm_filter_cot": {"score_final": value}} for value in (-0.5, float("nan"), float("inf"), 10**400, 3.4)),
        {"extra": {"a": [{"b": None}] * 3}},
        {"img_path1": "images/0_2.png", "img_path2": "images/0_1.png"},  # a pair again, the other way around
        {"img_path1": "images/0_1.png", "img_path2": "images/0_2.png"},
        {"img_path1": "images/0_1.png", "img_path2": "./images/../images/0_1.png"},
    ]  # fmt: skip
    rows = [json.dumps(uno_row(i, folder, **one)) for i, one in enumerate(changes, 3)]
    rows += ["null", "3", '"x"', "[]", "[[]]", "{}", "NaN", '{"img_path1": "a", "img_path1": "b"}', "1e999"]
    return rows


@pytest.mark.parametrize("where", [[], ["vlm_filter_cot.score_final >= 3.5"]], ids=["all", "where"])
def test_every_row_ends_as_samples_or_a_counted_reason(
    tmp_path: Path, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pool"
    rows = [*(json.dumps(uno_row(i, folder)) for i in range(3)), *hostile(folder)]
    half = len(rows) // 2
    (folder / "labels").mkdir()
    (folder / "labels/a.json").write_text(f"[{', '.join(rows[:half])}]")
    listed = ",\n".join(rows[half:])
    (folder / "labels/b.json").write_bytes(b"\xef\xbb\xbf" + f"[\n{listed}\n]\n".encode())
    pool = {"name": "uno", "path": str(folder / "labels"), "image_root": str(folder), "license": "cc0", "origin": "U"}
    steps = [{"step": "quality", "min_side": 20, "min_sharpness": 0}, {"step": "duplicates"}]
    config = write_config(tmp_path / "c.yaml", pools=[{**pool, "where": where}], steps=steps)
    assert main(["construct", "run", "--config", config]) == 0
    found = state(tmp_path, "pools")
    assert found.read == 2 * len(rows) == found.kept + sum(found.reasons.values())
    assert {"image outside the pool", "missing image", "unreadable image", "unusable score", "judged different",
            "target is a reference", "wrong field", "missing instruction"} <= found.reasons.keys()  # fmt: skip
    rejected = [json.loads(line) for line in next((tmp_path / "out/steps").glob("00*/rejected.jsonl")).open()]
    assert len(rejected) == found.read - found.kept
    assert all(one["reason"] and one["detail"] for one in rejected)
    for name in ("quality", "duplicates"):
        one = state(tmp_path, name)
        assert one.read == one.kept + sum(one.reasons.values())
    assert state(tmp_path, "duplicates").reasons["near-duplicate"] >= 4  # of both pairs that come again
    shards = ShardSet(tmp_path / "out/shards/samples")
    assert len(shards) > 40
    for i in range(len(shards)):
        sample = shards.read(i)
        assert sample.metadata["license"] == "cc0"
        assert sample.metadata["origin"] == "U"
        assert sample.metadata["source"]["file"] in ("a.json", "b.json")
        assert sample.metadata.get("score_final") is None or 0 <= sample.metadata["score_final"] <= 4
    assert main(["construct", "sheet", "--config", config, "--show", "2"]) == 0
    assert main(["construct", "status", "--config", config]) == 0
    assert f"{found.reasons['unusable score']} unusable score" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [b"", b"[", b"[{]", b"\xff\xfe[]", b'[{"img_path1": "\xff", "img_path2": "b"}]', b"{}", b"[" * 100_000, b"\0" * 99],
    ids=lambda content: repr(content[:12]),
)
def test_a_label_file_that_is_none_is_one_line_or_counted(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a good one: its rows are counted, or the file is named before anything is written."""
    folder = tmp_path / "pool"
    (folder / "labels").mkdir(parents=True)
    (folder / "labels/a.json").write_text(json.dumps([uno_row(0, folder)]))
    (folder / "labels/b.json").write_bytes(content)
    pool = {"name": "uno", "path": str(folder / "labels"), "image_root": str(folder), "layout": "uno"}
    config = write_config(tmp_path / "c.yaml", pools=[pool], steps=[])
    code = main(["construct", "run", "--config", config])
    errors = capsys.readouterr().err
    if code == 0:
        assert state(tmp_path, "pools").kept == 2
        return
    assert code == 2
    assert "b.json" in errors
    assert len([line for line in errors.splitlines() if line.startswith("error:")]) == 1
    assert not (tmp_path / "out").exists()
