"""Seeded damage to checkpoint folders: of configs, weights, index, tokenizer, and of the files as such."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 2**31, 10**30, 1.5, 1e308, float("nan"), float("inf")),
    *("", "64", "x", "\ud83d", [], [[]], [1, 2], {}, {"a": {}}, {"rope_type": "yarn"}),
)
"""Values in place of any other."""


def damage(folder: Path, draw: random.Random) -> str:
    """Damages one or two files of a folder; a description of what was done."""
    done = [draw.choice(KINDS)(folder, draw) for _ in range(draw.choice((1, 1, 1, 2)))]
    return "; ".join(done)


def mutated(value: Any, draw: random.Random) -> Any:
    """JSON content with one part replaced, removed, doubled or renamed."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(sorted(value))
        rest = {key: inner for key, inner in value.items() if key != name}
        how = draw.randrange(8)
        if how == 0:
            return rest
        if how == 1:
            return {**rest, draw.choice((f"{name}x", "", "a\0b", "quantization_config")): value[name]}
        return {**rest, name: mutated(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        return [*value[:at], mutated(value[at], draw), *value[at + draw.choice((0, 1, 1)) :]]
    return draw.choice(ODD)


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if file.is_file() and not file.is_symlink())


def _config(folder: Path, draw: random.Random) -> str:
    file = draw.choice(_files(folder, "*.json") or [folder / "llm_config.json"])
    try:
        content = json.loads(file.read_text(errors="replace"))
    except (ValueError, OSError):
        content = {}
    file.write_text(json.dumps(mutated(content, draw)))
    return f"{file.name}: another value"


def _bytes(folder: Path, draw: random.Random) -> str:
    file = draw.choice(_files(folder, "*") or [folder / WEIGHTS])
    content = bytearray(file.read_bytes()) if file.is_file() else bytearray()
    for _ in range(draw.choice((1, 3))):
        at = draw.randrange(len(content) + 1) if draw.random() < 0.5 else draw.randrange(min(len(content), 4000) + 1)
        match draw.randrange(3):
            case 0:
                content[at : at + draw.randrange(1, 9)] = bytes(draw.randrange(256) for _ in range(4))
            case 1:
                del content[at : at + draw.randrange(1, 9)]
            case 2:
                del content[at:]
    file.write_bytes(content)
    return f"{file.name}: bytes"


def _instead(folder: Path, draw: random.Random) -> str:
    file = draw.choice(_files(folder, "*") or [folder / WEIGHTS])
    file.unlink(missing_ok=True)
    kinds: dict[str, Callable[[], object]] = {
        "missing": lambda: None,
        "a folder": file.mkdir,
        "a pipe": lambda: os.mkfifo(file),
        "a link to nothing": lambda: file.symlink_to(folder / "nothing"),
        "a link to itself": lambda: file.symlink_to(file),
        "a link to a device": lambda: file.symlink_to("/dev/zero"),
        "empty": lambda: file.write_bytes(b""),
        "an empty object": lambda: file.write_text("{}"),
        "nested": lambda: file.write_text("[" * 5000),
    }
    kind = draw.choice(sorted(kinds))
    kinds[kind]()
    return f"{file.name}: {kind}"


def _tensor(folder: Path, draw: random.Random) -> str:
    """One tensor of a whole file gets another dtype, shape, name or value, or is gone."""
    file = draw.choice(_files(folder, "*.safetensors") or [folder / WEIGHTS])
    content = file.read_bytes() if file.is_file() else b""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        data = {name: content[8 + length + e["data_offsets"][0] : 8 + length + e["data_offsets"][1]]
                for name, e in header.items() if name != "__metadata__"}  # fmt: skip
        name = draw.choice(sorted(data))
        kind, shape = header[name]["dtype"], header[name]["shape"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return f"{file.name}: damaged before"
    match draw.randrange(6):
        case 0:
            kind = draw.choice(("F64", "F16", "BF16", "I8", "BOOL", "F8_E4M3", "C64", "I64", "U8", "F4", "x"))
            size = {"F64": 8, "I64": 8, "C64": 8, "F16": 2, "BF16": 2}.get(kind, 1)
            data[name] = bytes(size * max(1, len(data[name]) // 4))
        case 1:
            shape = draw.choice(([], [1, *shape], shape[::-1], [*shape, 0], [2 * n for n in shape], [1]))
            count = 1
            for side in shape:
                count *= side
            data[name] = bytes(4 * count)
        case 2:
            data[draw.choice((f"{name}x", "", "a\nb", "é"))] = data.pop(name)
        case 3:
            data[name] = struct.pack("<f", draw.choice((float("nan"), float("inf")))) + data[name][4:]
        case 4:
            del data[name]
        case 5:
            data[name] = bytes(len(data[name]))
    entries, position, parts = {}, 0, []
    for other, raw in data.items():
        entry = header.get(other, {"dtype": kind, "shape": shape})
        if other == name:
            entry = {"dtype": kind, "shape": shape}
        entries[other] = {**entry, "data_offsets": [position, position + len(raw)]}
        position += len(raw)
        parts.append(raw)
    text = json.dumps(entries).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    return f"{file.name}: {name} {kind} {shape}"


def _index(folder: Path, draw: random.Random) -> str:
    """The weights behind an index, which may be wrong."""
    file = folder / WEIGHTS
    if not file.is_file() or file.is_symlink():
        return f"{WEIGHTS}: damaged before"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        names = sorted(json.loads(content[8 : 8 + length]))
    except ValueError:
        return f"{WEIGHTS}: damaged before"
    file.rename(folder / "model-00001-of-00001.safetensors")
    index: Any = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    if draw.random() < 0.8:
        some = draw.choice(names)
        odd = draw.choice(("missing.safetensors", "../x", "llm_config.json", "ae.safetensors", *ODD))
        index = draw.choice((mutated(index, draw), {**index, "weight_map": {**index["weight_map"], some: odd}}))
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    return f"{WEIGHTS}: behind an index"


KINDS = (_config, _config, _config, _bytes, _instead, _tensor, _tensor, _index)
