"""Damaged tokenizer files: the same tokenizer, or one line that names the file."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from scone_pl.data.tokenizer import SPECIAL_TOKENS, Tokenizer, byte_tokenizer
from scone_pl.errors import UserError

TEXT = "Ein Löwe – 狮子\tand <|im_start|>  spaces"


def state() -> dict[str, Any]:
    return json.loads(byte_tokenizer()._backend.to_str())


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        Tokenizer.from_folder(folder)
    message = str(error.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": "\\ud800"}', b'{"model": {}}']
)
def test_a_tokenizer_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert "tokenizer.json" in refused(tmp_path)


def test_folders_and_pipes_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    assert "tokenizer.json" in refused(tmp_path)
    (tmp_path / "tokenizer.json").rmdir()
    os.mkfifo(tmp_path / "tokenizer.json")
    assert "tokenizer.json" in refused(tmp_path)


def write(folder: Path, content: dict[str, Any]) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_what_would_change_or_lose_text_silently(tmp_path: Path) -> None:
    changed = state()
    changed["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    changed["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "!",
    }  # fmt: skip
    write(tmp_path, changed)
    assert Tokenizer.from_folder(tmp_path).encode(TEXT) == byte_tokenizer().encode(TEXT)
    changed = state()
    changed["model"]["dropout"] = 0.5
    write(tmp_path, changed)
    assert "at random (dropout 0.5)" in refused(tmp_path)
    changed = state()
    changed["model"]["vocab"]["zz"] = changed["model"]["vocab"].pop("a")
    write(tmp_path, changed)
    assert "lacks 1 of the 256 bytes, such as 'a'" in refused(tmp_path)


def test_special_tokens_need_ids_of_their_own(tmp_path: Path) -> None:
    changed = state()
    changed["model"]["vocab"]["<|im_start|>"] = changed["model"]["vocab"]["a"]
    changed["added_tokens"] = [t for t in changed["added_tokens"] if t["content"] != "<|im_start|>"]
    write(tmp_path, changed)
    assert "to <|im_start|> and to 'a'" in refused(tmp_path)
    for token in SPECIAL_TOKENS:
        changed = state()
        changed["added_tokens"] = [t for t in changed["added_tokens"] if t["content"] != token]
        write(tmp_path, changed)
        # The ids behind a missing one no longer follow each other, which the library itself may refuse.
        assert "lacks" in (message := refused(tmp_path)) or "not a readable" in message


def test_the_vocabulary_counts_to_its_largest_id(tmp_path: Path) -> None:
    changed = state()
    changed["model"]["vocab"]["ab"] = 900
    changed["added_tokens"] = [{**t, "id": t["id"] + 1000} for t in changed["added_tokens"]]
    changed["model"]["vocab"] |= {t["content"]: t["id"] for t in changed["added_tokens"]}
    write(tmp_path, changed)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.vocab_size == 1260
    tokenizer.check_embedding(1260)
    with pytest.raises(UserError, match="has 1260 ids but the model embeds 1259"):
        tokenizer.check_embedding(1259)


def write_slow(folder: Path) -> dict[str, bytes]:
    byte_tokens = state()["model"]["vocab"]
    added = {
        str(257 + i): {
            "content": t, "special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
        }
        for i, t in enumerate(SPECIAL_TOKENS)
    }  # fmt: skip
    files = {
        "vocab.json": json.dumps({**byte_tokens, "ab": 256}),
        "merges.txt": "#version: 0.2\na b\n",
        "tokenizer_config.json": json.dumps({"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added}),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return {name: text.encode() for name, text in files.items()}


ODD = [b"", b"{", b"[]", b"null", b"3", b"\xff", b"[" * 100_000, b'{"a": "\\ud800"}', b'{"a": -1}', b'{"a": "b"}']


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_damaged_vocabulary_and_merges(tmp_path: Path, name: str) -> None:
    expected = None
    for content in (None, *ODD, b'{"tokenizer_class": 3}', b'{"added_tokens_decoder": {"x": 1}}', b"a\n", b"a b c d\n"):
        write_slow(tmp_path)
        if content is None:
            expected = Tokenizer.from_folder(tmp_path).encode(TEXT)
            continue
        (tmp_path / name).write_bytes(content)
        try:
            found = Tokenizer.from_folder(tmp_path)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 - whether it raises is what varies
        else:
            assert name == "merges.txt" or content.startswith(b"{")
            if name != "merges.txt":
                assert found.encode(TEXT) == expected


def test_mutated_tokenizers_are_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    whole, expected = json.dumps(state()), byte_tokenizer().encode(TEXT)
    pieces = ["null", "-1", "1e9", "[]", "{}", '"x"', "true", "9" * 30, "\\u0000", "NaN", '"\\ud800"', ""]
    outcomes = {"same": 0, "other": 0, "refused": 0}
    for _ in range(400):
        place = rng.randrange(len(whole))
        text = whole[:place] + rng.choice(pieces) + whole[place + rng.randrange(20) :]
        (tmp_path / "tokenizer.json").write_text(text)
        try:
            found = Tokenizer.from_folder(tmp_path)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 - whether it raises is what varies
            outcomes["refused"] += 1
        else:
            outcomes["same" if found.encode(TEXT) == expected else "other"] += 1
    assert outcomes["refused"] > 300
    assert outcomes["other"] < 20, "other ids for the same tokens cannot be noticed"
