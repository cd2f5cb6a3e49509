"""Odd records, seeded: values of every type, in files of every form."""

import json

import numpy as np

TEXTS = ["", " ", "a dog", "a\x00b", "\u2028", "x" * 5000, "\U0001f600", "{" * 70, "<|im_end|>", "NaN"]
PATHS = ["a.png", "./a.png", "none.png", "", ".", "..", "../../../..", "/dev/zero", "/dev/null", "pipe", "loop", "dir"]
PATHS += [
    "~/a.png",
    "*.png",
    "a.png\x00",
    "x" * 300,
    "x/" * 3000,
    "https://host/a.png",
    "data:image/png;base64,AA",
    "bad.png",
]
VALUES = [None, True, False, 0, -1, 10**400, 1.5, 1e308, [], {}, [[]], [None], [[["a"]]], {"a": {"b": []}}, "text"]
BOX = {"box": [0, 0, 0.5, 1], "meant": True}
CANDIDATES = [[[BOX]], [[BOX, BOX]], [[]], [BOX], [[{"box": "text"}]], [[{"box": [1, 2]}]], [[{**BOX, "meant": 1}]]]
CANDIDATES += [
    [[{**BOX, "name": 5}]],
    [[{**BOX, "more": 1}]],
    {"a": 1},
    "text",
    [["text"]],
    [[{"box": [True, "a", 0, 0]}]],
]
KEYS = [
    "k",
    "K",
    "..",
    "a/b",
    "a\\b",
    "\x00",
    "\n",
    " ",
    ".x",
    "x" * 300,
    "\U0001f600" * 60,
    5,
    10**300,
    True,
    None,
    1.5,
    [],
]
NAMES = ["input_images", "input_image", "image_paths", "references", "reference_images", "refs", "image"]


def _pick(rng, values):
    return values[rng.integers(len(values))]


def odd_row(rng):
    """An object; about half are good or nearly so."""
    row = {"instruction": _pick(rng, [*TEXTS, "good", "good"]), "key": f"k{rng.integers(1 << 30)}"}
    name = _pick(rng, [*NAMES, "input_images", "input_images"])
    paths = [_pick(rng, [*PATHS, *["a.png"] * 20]) for _ in range(rng.integers(1, 4))]
    row[name] = _pick(rng, [paths, paths, paths[0], [{"path": p} for p in paths], [{"path": paths[0], "bytes": None}]])
    row["target"] = "a.png"
    row["task_type"] = _pick(rng, ["composition_single", "distinction_single_cross"])
    if row["task_type"].startswith("distinction"):
        row |= {"subject_list": [["a", "b"]], "subject_label": [[0, 1]]}
    fields = ["instruction", name, "target", "answer", "kind", "key", "task_type", "case_type", "subject_list"]
    fields += ["subject_label", "instruction_language", "source", "caption", "candidates"]
    for _ in range(rng.integers(0, 3)):
        field = _pick(rng, fields)
        values = {"candidates": CANDIDATES, "key": KEYS, "task_type": KEYS, "target": PATHS}.get(field, [])
        row[field] = _pick(rng, [*VALUES, *TEXTS, *values * 3])
    if rng.random() < 0.1:
        del row[_pick(rng, list(row))]
    return row


def odd_line(rng, row):
    """The object as a line of bytes, some of them spoiled."""
    text = json.dumps(row, ensure_ascii=bool(rng.integers(2))).encode()
    way = int(rng.integers(14))
    if way == 0:
        return text[: rng.integers(len(text))]
    if way == 1:
        position = rng.integers(len(text))
        return text[:position] + bytes([rng.integers(256)]) + text[position + 1 :]
    odd = [b"[" * 100000, b"\xff", b"null", b"[]", b'"text"', b'{"instruction": "\\ud800"}', b'{"a": 1, "a": 2}']
    odd += [b'{"instruction": NaN}', b'{"a": 1e999}', b'{"n": ' + b"9" * 5000 + b"}", b'{"a":' * 80 + b"1" + b"}" * 80]
    if way == 2:
        return _pick(rng, odd).replace(b"\n", b"")
    return b"\xef\xbb\xbf" * (way == 3) + b" " * (way == 4) + text + b"\t \r" * (way == 5)


def odd_file(rng, lines):
    """The lines as a file, some of them spoiled as a whole."""
    lines = [line.replace(b"\n", b" ") for line in lines]
    way = rng.integers(9)
    if way == 0:
        content = b"[" + b",".join(lines) + b"]"
    elif way == 1:
        content = b"\xef\xbb\xbf [\n" + b",\r\n".join(lines) + b"\n]\n\n"
    elif way == 2:
        content = b"\r\n\r\n".join(lines)
    else:
        content = b"\n".join(lines) + b"\n" * int(rng.integers(3))
    if rng.random() < 0.1:
        content = content[: rng.integers(len(content) + 1)]
    if rng.random() < 0.1:
        position = rng.integers(len(content) + 1)
        content = content[:position] + rng.bytes(3) + content[position:]
    return content


def generator(seed):
    return np.random.default_rng(seed)
