"""The tar members of a sample: names and contents."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from scone_pl.data.sample import BrokenSampleError, Kind, Sample, parse_candidates
from scone_pl.errors import UserError
from scone_pl.files import decode, parse_json

MAX_KEY_LENGTH = 80
"""Characters; a tar name holds 100."""
MAX_SAMPLE_BYTES = 1 << 30
"""Maximum size of a sample's members; larger ones are treated as damage and would not fit in memory."""

_BLOCK = 512
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_-]")
_PART = re.compile(r"json|target\.\w+|ref(0|[1-9]\d{0,8})\.\w+", re.ASCII)
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_REGULAR = (b"0", b"\0")
_OTHER_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a folder",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"x": "a PAX header",
    b"g": "a PAX header",
    b"L": "a long name",
    b"K": "a long link name",
}


def parse_members(data: bytes, key: str, origin: str) -> tuple[Sample, int]:
    """The sample in a sequence of tar members, and its checksum.

    Args:
        data: the bytes of all members of one sample, and nothing else.
        key: the expected key of the members.
        origin: file that the bytes were read from, for messages.

    Raises:
        BrokenSampleError: damaged headers, links and other members that are not regular files, members of another
            sample, missing, unknown or duplicate members, invalid JSON.
    """
    parts: dict[str, bytes] = {}
    members = list(_regular_files(data, f"{origin}: sample {key}"))
    for name, content in members:
        stem, _, part = name.partition(".")
        if stem != key:
            raise BrokenSampleError("torn shard", f"{origin}: found {name} instead of {key}")
        match = _PART.fullmatch(part)
        if match is None:
            raise BrokenSampleError("unknown member", f"{origin}: {name} is not part of a sample")
        part = part if part == "json" else part.partition(".")[0]
        if part in parts:
            raise BrokenSampleError("duplicate member", f"{origin}: {key} has {part} twice")
        if not content:
            raise BrokenSampleError("empty member", f"{origin}: {name} has no bytes")
        parts[part] = content
    info, target = parts.pop("json", None), parts.pop("target", b"")
    references = [parts.get(f"ref{i}") for i in range(len(parts))]
    if info is None or None in references:
        raise BrokenSampleError("missing member", f"{origin}: sample {key} lacks its JSON or a reference image")
    fields = _from_json(info, f"{origin}: {key}.json")
    return Sample(key=key, references=tuple(data for data in references if data), target=target, **fields), checksum(
        members
    )


def checksum(members: Iterable[tuple[str, bytes]]) -> int:
    """CRC-32 over the members in the order of their names: name, zero byte, size, zero byte, content of each.

    It depends neither on the order in the tar nor on the dialect of its headers.
    """
    crc = 0
    for name, content in sorted(members):
        crc = zlib.crc32(content, zlib.crc32(f"{name}\0{len(content)}\0".encode(), crc))
    return crc


def _regular_files(data: bytes, source: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member.

    Python's `tarfile` treats the first unreadable header as the end of the archive, follows links, and reads sparse
    files at the size that they claim. So headers are parsed here, and anything but complete regular files is refused.

    Raises:
        BrokenSampleError: see `parse_members`.
    """
    position = 0
    while position < len(data):
        header = data[position : position + _BLOCK]
        if len(header) < _BLOCK:
            raise BrokenSampleError("torn shard", f"{source}: ends within the header of a member")
        # The checksum is computed with its own field as blanks.
        if _octal(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise BrokenSampleError("torn shard", f"{source}: the header of a member is damaged at byte {position}")
        type_ = header[156:157]
        if type_ not in _REGULAR:
            description = _OTHER_TYPES.get(type_, f"of the type {type_!r}")
            raise BrokenSampleError("unsupported member", f"{source}: a member is {description}, not a regular file")
        name, _, rest = header[:100].partition(b"\0")
        if rest.strip(b"\0") or (header[257:263] == b"ustar\0" and header[345]) or not name.isascii():
            raise BrokenSampleError("unsupported member", f"{source}: a member has an unusable name")
        size = _octal(header[124:136])
        begin = position + _BLOCK
        end = begin if size is None else begin + size
        position = -(-end // _BLOCK) * _BLOCK
        if size is None or position > len(data):
            raise BrokenSampleError("torn shard", f"{source}: a member has a wrong size, or is cut off")
        if data[end:position].strip(b"\0"):
            raise BrokenSampleError("torn shard", f"{source}: a member has data after its end at byte {end}")
        yield name.decode(), data[begin:end]


def _octal(field: bytes) -> int | None:
    match = _OCTAL.fullmatch(field)
    return int(match[1], 8) if match else None


def is_key(value: Any) -> bool:
    """Whether a value is a valid sample key."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def plain_key(name: str, max_length: int = MAX_KEY_LENGTH) -> str:
    """`name` as a key of at most `max_length` characters; changed names get a hash appended to stay distinct."""
    plain = _NOT_IN_KEYS.sub("_", name)
    if plain == name and len(name) <= max_length:
        return name
    return f"{plain[: max_length - 9]}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def sample_json(sample: Sample) -> bytes:
    """Content of the member `{key}.json`."""
    info = {
        "instruction": sample.instruction,
        "kind": sample.kind,
        "candidates": None
        if sample.candidates is None
        else [[candidate.to_json() for candidate in group] for group in sample.candidates],
        "metadata": sample.metadata,
        **({"answer": sample.answer} if sample.answer else {}),
    }
    return json.dumps(info, ensure_ascii=False).encode()


def _from_json(content: bytes, source: str) -> dict[str, Any]:
    try:
        info = parse_json(decode(content, source), source, dict)
    except UserError as error:
        raise BrokenSampleError("wrong JSON", str(error)) from None
    kind, metadata = info.get("kind", "single"), info.get("metadata") or {}
    answer, instruction = info.get("answer") or "", info.get("instruction")
    if not isinstance(instruction, str):
        raise BrokenSampleError("missing instruction", f"{source} has no instruction text")
    if kind not in get_args(Kind) or not isinstance(metadata, dict) or not isinstance(answer, str):
        raise BrokenSampleError("wrong JSON", f"{source}: kind, metadata or answer of a wrong type")
    try:
        candidates = parse_candidates(info.get("candidates"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BrokenSampleError("wrong JSON", f"{source}: candidates: {error!r}") from None
    return {
        "instruction": instruction,
        "kind": kind,
        "candidates": candidates,
        "metadata": metadata,
        "answer": answer,
    }
