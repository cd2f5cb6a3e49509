"""Damaged weights, indices and headers: one line that names file and tensor, before anything else is read."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import tiny_model, write_folder

from scone_pl.checkpoints.model import from_pretrained, read_config, save_pretrained
from scone_pl.checkpoints.safetensors_header import read_header
from scone_pl.checkpoints.tensor_files import TensorSource, is_finite, write_tensors
from scone_pl.errors import UserError

pytestmark = pytest.mark.slow

WEIGHTS = "model.safetensors"
NAME = "connector.fc1.bias"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("damage") / "folder")


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(base, tmp_path / "folder"))


def one_line(call: Callable[[], object], *parts: str) -> str:
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def parts_of(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_parts(file: Path, header: object, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("name", [WEIGHTS, "ae.safetensors"])
@pytest.mark.parametrize(
    "kind", [torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.int64, torch.bool, torch.uint8]
)
def test_types_that_weights_cannot_have_are_refused_on_opening(folder: Path, name: str, kind: torch.dtype) -> None:
    tensors = load_file(folder / name)
    last = sorted(tensors)[-1]
    save_file({**tensors, last: tensors[last].to(kind)}, folder / name)
    one_line(lambda: read_config(folder), name, last, "weights must be F32, F16, BF16")


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_types_that_weights_can_have_are_read_and_written_alike(
    folder: Path, tmp_path: Path, kind: torch.dtype
) -> None:
    for name in (WEIGHTS, "ae.safetensors"):
        save_file({key: tensor.to(kind) for key, tensor in load_file(folder / name).items()}, folder / name)
    for target in (torch.float32, kind):
        model = from_pretrained(folder, dtype=target)
        assert model.vae2llm.weight.equal(load_file(folder / WEIGHTS)["vae2llm.weight"].to(target))
    save_pretrained(from_pretrained(folder, dtype=kind), tmp_path / "out")
    before, after = load_file(folder / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert all(after[key].dtype == kind and after[key].equal(before[key]) for key in before if "pos_embed" not in key)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_found_wherever_they_are(value: float, kind: torch.dtype) -> None:
    for length in (1, 3, 8, 17, 1000):
        tensor = torch.linspace(-2, 2, length).to(kind)
        assert is_finite(tensor)
        for place in {0, length // 2, length - 1}:
            wrong = tensor.clone()
            wrong[place] = value
            assert not is_finite(wrong)
            assert not is_finite(wrong.view(1, -1, 1))
    assert is_finite(torch.empty(0, 3))


@pytest.mark.parametrize("name", [WEIGHTS, "ae.safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_name_file_and_tensor(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / name)
    last = sorted(tensors)[-1]
    tensors[last].view(-1)[-1] = value
    save_file(tensors, folder / name)
    one_line(lambda: from_pretrained(folder), name, last, "NaN or infinite")


def test_values_that_a_type_cannot_hold_are_not_written(tmp_path: Path) -> None:
    source = TensorSource.of(torch.tensor([1e6]), torch.float16)
    one_line(lambda: write_tensors({"a": source}, tmp_path / "x"), "a is NaN or infinite in F16", "--dtype float32")


DAMAGED_FILES = {
    "empty": b"",
    "seven bytes": b"\x10\0\0\0\0\0\0",
    "no header": struct.pack("<Q", 0),
    "huge header": struct.pack("<Q", 2**63) + b"{}",
    "header over the end": struct.pack("<Q", 1000) + b"{}",
    "not JSON": struct.pack("<Q", 4) + b"{{{{",
    "a list": struct.pack("<Q", 2) + b"[]",
    "deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "not UTF-8": struct.pack("<Q", 4) + b'"\xff" ',
    "long number": struct.pack("<Q", 5007) + b'{"a": ' + b"9" * 5000 + b"}",
    "twice": struct.pack("<Q", 15) + b'{"a":1, "a": 2}',
    "metadata": struct.pack("<Q", 19) + b'{"__metadata__": 3}',
}


@pytest.mark.parametrize("kind", DAMAGED_FILES)
@pytest.mark.parametrize("name", [WEIGHTS, "ae.safetensors"])
def test_damaged_headers(folder: Path, name: str, kind: str) -> None:
    (folder / name).write_bytes(DAMAGED_FILES[kind])
    one_line(lambda: read_config(folder), f"{name}: not a whole safetensors file")


ENTRIES: dict[str, object] = {
    "null": None,
    "list": [],
    "no dtype": {"shape": [32], "data_offsets": [0, 128]},
    "extra": {"dtype": "F32", "shape": [32], "data_offsets": [0, 128], "more": 1},
    "number as dtype": {"dtype": 3, "shape": [32], "data_offsets": [0, 128]},
    "unknown dtype": {"dtype": "F9", "shape": [32], "data_offsets": [0, 128]},
    "negative shape": {"dtype": "F32", "shape": [-32], "data_offsets": [0, 128]},
    "huge shape": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 128]},
    "text shape": {"dtype": "F32", "shape": "32", "data_offsets": [0, 128]},
    "bool shape": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
    "other shape": {"dtype": "F32", "shape": [31], "data_offsets": [0, 128]},
    "swapped offsets": {"dtype": "F32", "shape": [32], "data_offsets": [128, 0]},
    "one offset": {"dtype": "F32", "shape": [32], "data_offsets": [0]},
    "offset over the end": {"dtype": "F32", "shape": [32], "data_offsets": [10**9, 10**9 + 128]},
    "overlap": {"dtype": "F32", "shape": [32], "data_offsets": [4, 132]},
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_damaged_entries_name_a_tensor(folder: Path, kind: str) -> None:
    header, data = parts_of(folder / WEIGHTS)
    write_parts(folder / WEIGHTS, {**header, NAME: ENTRIES[kind]}, data)
    one_line(lambda: read_config(folder), WEIGHTS)


def test_cut_and_lengthened_files(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    for changed in (content[:-1], content[: len(content) // 2], content + b"\0"):
        (folder / WEIGHTS).write_bytes(changed)
        one_line(lambda: read_config(folder), WEIGHTS, "not a whole safetensors file")


def sharded(folder: Path) -> dict[str, Any]:
    """Spreads the weights over two files with an index, and returns it."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    return index


def test_an_index_that_is_whole(base: Path, folder: Path) -> None:
    sharded(folder)
    expected = from_pretrained(base).state_dict()
    assert all(expected[name].equal(tensor) for name, tensor in from_pretrained(folder).state_dict().items())


@pytest.mark.parametrize(
    "file",
    ["../model.safetensors", "/etc/passwd", "a/b", "", ".", "..", None, 3, [], {}, "x\0y", "x" * 300, "a\\b", True],
)
def test_an_index_names_files_of_its_folder_alone(folder: Path, file: object) -> None:
    index = sharded(folder)
    index["weight_map"][NAME] = file
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    one_line(lambda: read_config(folder), f"{WEIGHTS}.index.json: weight_map has '{NAME}'")


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"weight_map": []}', '{"weight_map": {}}', "{}", "null", "[" * 100_000]
)
def test_an_index_of_a_wrong_shape(folder: Path, content: str) -> None:
    sharded(folder)
    (folder / f"{WEIGHTS}.index.json").write_text(content)
    one_line(lambda: read_config(folder), f"{WEIGHTS}.index.json")


def test_an_index_and_its_files_must_agree(folder: Path, tmp_path: Path) -> None:
    index = sharded(folder)
    weight_map, file = index["weight_map"], folder / f"{WEIGHTS}.index.json"
    first, second = sorted(set(weight_map.values()))
    wrong = {
        "no such file": {**weight_map, NAME: "missing.safetensors"},
        "which the index has in pipe": {**weight_map, NAME: "pipe"},
        "which the index has in": {**weight_map, NAME: second if weight_map[NAME] == first else first},
        "in no file": {name: where for name, where in weight_map.items() if name != NAME},
        "lacks more": {**weight_map, "more": first},
    }
    os.mkfifo(folder / "pipe")
    for message, changed in wrong.items():
        file.write_text(json.dumps({"weight_map": changed}))
        one_line(lambda: read_config(folder), message)
    file.write_text(json.dumps(index))
    save_file(load_file(folder / first) | {sorted(load_file(folder / second))[0]: torch.zeros(1)}, folder / first)
    one_line(lambda: read_config(folder), "which the index has in")


@pytest.mark.parametrize("name", ["llm_config.json", "vit_config.json", "vae_config.json", WEIGHTS])
def test_folders_and_pipes_in_the_way_of_files(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    one_line(lambda: read_config(folder))
    (folder / name).rmdir()
    os.mkfifo(folder / name)
    one_line(lambda: read_config(folder))


MUTATIONS = 250


def test_mutated_headers_are_read_alike_or_refused(base: Path, folder: Path) -> None:
    """Bytes of the header changed, removed or doubled: the same tensors, or one line."""
    rng = random.Random(0)
    whole = (base / WEIGHTS).read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    expected = read_header(base / WEIGHTS)
    refused = changed = 0
    for _ in range(MUTATIONS):
        head = bytearray(whole[:length])
        for _ in range(rng.choice((1, 1, 3))):
            place = rng.randrange(len(head))
            match rng.randrange(4):
                case 0:
                    head[place] ^= 1 << rng.randrange(8)
                case 1:
                    head[place : place + rng.randrange(1, 9)] = b""
                case 2:
                    head[place:place] = bytes(rng.choices(b'0123456789,:[]{}"\\ \xff\0', k=rng.randrange(1, 5)))
                case 3:
                    head[place : place + 4] = rng.choice((b"null", b"true", b"1e99", b"-1.0", b"NaN "))
        if rng.random() < 0.7:  # a length that fits, so that the damage lies in the text
            head[:8] = struct.pack("<Q", len(head) - 8)
        (folder / WEIGHTS).write_bytes(bytes(head) + whole[length:])
        try:
            found = read_header(folder / WEIGHTS)
        except UserError as error:
            refused += "\n" not in str(error)
            continue
        # What is left are other names, types of equal size and shapes of equal product: the loader sees those.
        if found != expected:
            refused += 1
            if changed < 15:
                one_line(lambda: from_pretrained(folder))
                changed += 1
    assert refused > MUTATIONS / 2
    assert changed == 15


@pytest.mark.parametrize("name", ["llm_config.json", "vit_config.json", "vae_config.json", f"{WEIGHTS}.index.json"])
def test_mutated_json_is_read_alike_or_refused(folder: Path, name: str) -> None:
    if name.startswith(WEIGHTS):
        sharded(folder)
    whole, expected = (folder / name).read_text(), read_config(folder)
    rng = random.Random(name)
    pieces = [
        "null",
        "true",
        "-1",
        "0",
        '"x"',
        "[]",
        "{}",
        "1e999",
        "NaN",
        '"\\ud800"',
        "[" * 3000,
        "9" * 5000,
        "\0",
        "é",
    ]
    outcomes = {"same": 0, "changed": 0, "refused": 0}
    for _ in range(MUTATIONS):
        place = rng.randrange(len(whole))
        text = whole[:place] + rng.choice(pieces) + whole[place + rng.randrange(12) :]
        (folder / name).write_bytes(text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "latin-1")), "replace"))
        try:
            found = read_config(folder)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 - whether it raises is what varies
            outcomes["refused"] += 1
        else:
            outcomes["same" if found == expected else "changed"] += 1
    assert outcomes["refused"] > MUTATIONS / 2
    assert outcomes["changed"] < MUTATIONS / 10, "only numbers that no shape can check may change"


def test_a_model_is_whole_after_refusals(base: Path) -> None:
    assert from_pretrained(base).vae2llm.weight.equal(tiny_model().vae2llm.weight)
