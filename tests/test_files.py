"""Small files of unknown origin are read with one line that names the file, whatever is in it; and written."""

import json
import os

import pytest

from scone_pl.errors import UserError
from scone_pl.files import parse_json, read_bytes, read_json, read_text, write_json


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_json(tmp_path / "a.json", dict) == {"a": "é"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe{", "not UTF-8 at byte 0"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "must be a JSON object"),
        (b'{"a": "\\ud83d"}', "half a surrogate pair"),
        (b'[{"a": 1, "b": {"c": 1, "c": 2}}]', "the key 'c' comes twice"),
        (b'{"a": "\\udead"}', "half a surrogate pair"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_what_is_wrong_with_a_json_file_is_one_line_with_its_name(tmp_path, content, message):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read_json(file, dict)
    assert str(refused.value).startswith(f"{file}: ")
    assert "\n" not in str(refused.value)


def test_whole_surrogate_pairs_are_characters():
    assert parse_json('"\\ud83d\\ude00"', "line 1", str) == "\U0001f600"


def test_pipes_devices_folders_and_missing_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", tmp_path, tmp_path / "absent", tmp_path / "a\0b"):
        with pytest.raises(UserError):
            read_bytes(file)
    with pytest.raises(UserError, match="not a regular file"):
        read_text(type(tmp_path)("/dev/zero"))


def test_written_json_has_a_list_of_numbers_on_a_line(tmp_path):
    odd = '[\n 1,\n 2\n] "[" [ 3, 4 ]'
    content = {"a": [[1, -2.5e-7, float("inf")], []], "b": {odd: [None, True, odd]}, "c": [{"d": [0]}, [odd], [1, "2"]]}
    write_json(content, tmp_path / "x.json")
    lines = (tmp_path / "x.json").read_text().splitlines()
    assert lines[:5] == ["{", ' "a": [', "  [1, -2.5e-07, Infinity],", "  []", " ],"]
    assert '   "d": [0]' in lines
    assert json.loads("\n".join(lines)) == content


def test_a_user_error_is_one_printable_line_whatever_it_quotes():
    assert str(UserError("a\n  b\x00c \ud83d \x1b[31m é")) == "a b\\x00c \\ud83d \\x1b[31m é"
