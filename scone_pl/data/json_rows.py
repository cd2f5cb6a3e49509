"""Rows of a JSON file: one object per line, or one list of objects. The only reader of users' JSON records.

A byte order mark, blank lines, CRLF and white space around a line are ignored. Rows are located in one pass and parsed
on access, so memory grows by 24 bytes per row only.
"""

from __future__ import annotations

import codecs
import json
import mmap
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from scone_pl.errors import UserError
from scone_pl.files import decode, parse_json, readable

SUFFIXES = (".jsonl", ".json", ".ndjson")
MAX_ROW_BYTES = 1 << 26
"""Else a file without newlines would be read into memory whole."""
MAX_ROW_DEPTH = 64
"""Maximum nesting of objects and lists."""
_OTHER_CONTENT = (
    (codecs.BOM_UTF16_LE, "UTF-16; save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16; save it as UTF-8"),
    (b"\x1f\x8b", "compressed with gzip; unpack it with: gunzip --keep"),
    (b"PAR1", "a parquet file, not JSON"),
    (b"PK\x03\x04", "a zip archive, not JSON; unpack it"),
)
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)
_OBJECT_START = re.compile(rb'\{\s*("[^"]*"\s*:\s*[\[{]?\s*)?')
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{\]}]', re.DOTALL)


@dataclass(frozen=True)
class JsonRows:
    """Locations of the rows in one file."""

    file: Path
    spans: np.ndarray
    """(rows, 2) int64: byte offsets of begin and end (exclusive)."""
    numbers: np.ndarray
    """(rows,) int64: line number or list index of each row, from 0."""
    is_list: bool
    """Whether the file is one JSON list."""

    @classmethod
    def open(cls, file: Path) -> JsonRows:
        """Locates the rows of a file, whatever its name.

        Raises:
            UserError: it cannot be read, is not a regular file or of another type, or holds an object spread over
                several lines or an unterminated list.
        """
        with readable(file) as size, file.open("rb") as stream:
            head = stream.read(4096)
            for start, what in _OTHER_CONTENT:
                if head.startswith(start):
                    raise UserError(f"{file}: {what}")
            begin = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
            text = head[begin:].lstrip()
            if text.startswith(b"["):
                spans, numbers = _items(file, stream, size, begin + head[begin:].index(b"["))
            else:
                first, _, more = text.partition(b"\n")
                if more.strip() and _OBJECT_START.fullmatch(first.rstrip()):
                    raise UserError(
                        f"{file}: an object over several lines; write one object a line, or one list of objects"
                    )
                spans, numbers = _lines(file, stream, begin)
        rows = np.frombuffer(spans, dtype=np.int64).reshape(-1, 2)
        return cls(file, rows, np.frombuffer(numbers, dtype=np.int64), text.startswith(b"["))

    def __len__(self) -> int:
        return len(self.numbers)

    def where(self, row: int) -> str:
        """File and line of a row, for messages."""
        number = int(self.numbers[row]) + 1
        return f"{self.file}: item {number}" if self.is_list else f"{self.file}:{number}"

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
        """Index of each row in a range, with its content or the error.

        Raises:
            UserError: the file cannot be read any more.
        """
        with readable(self.file), self.file.open("rb") as stream:
            for row in range(start, len(self) if stop is None else stop):
                first, last = map(int, self.spans[row])
                if last - first > MAX_ROW_BYTES:
                    yield row, UserError(f"{self.where(row)}: longer than {MAX_ROW_BYTES} bytes")
                    continue
                stream.seek(first)
                yield row, _parse(stream.read(last - first), self.where(row))


def _parse(content: bytes, where: str) -> dict[str, Any] | UserError:
    try:
        text = decode(content, where)
        # At the parser's own recursion limit, what was read could not be written again.
        if content.count(b"{") + content.count(b"[") > MAX_ROW_DEPTH and _depth(text) > MAX_ROW_DEPTH:
            raise UserError(f"{where}: JSON is nested too deeply")
        row = parse_json(text, where, dict)
        json.dumps(row, allow_nan=False)
    except UserError as error:
        return error
    except ValueError:
        return UserError(f"{where}: a number is not finite; JSON has no NaN and no Infinity")
    return row


def _depth(text: str) -> int:
    """Maximum nesting of brackets outside strings."""
    depth = deepest = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        deepest = max(deepest, depth)
    return deepest


def _lines(file: Path, stream: BinaryIO, position: int) -> tuple[array[int], array[int]]:
    spans, numbers, number = array("q"), array("q"), 0
    stream.seek(position)
    while line := stream.readline(MAX_ROW_BYTES + 1):
        if len(line) > MAX_ROW_BYTES:
            raise UserError(f"{file}:{number + 1}: longer than {MAX_ROW_BYTES} bytes; write one object a line")
        if not line.isspace():
            spans.extend((position, position + len(line)))
            numbers.append(number)
        position += len(line)
        number += 1
    return spans, numbers


def _items(file: Path, stream: BinaryIO, size: int, start: int) -> tuple[array[int], array[int]]:
    """Locates the items of the list that begins at byte `start`."""
    spans, numbers = array("q"), array("q")
    depth, begin, end = 0, start + 1, None
    with mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) as content:
        for match in _TOKEN.finditer(content, start):
            token, position = match[0], match.start()
            if end is not None or token == b'"':
                break
            if token in (b"[", b"{"):
                depth += 1
                continue
            if depth == 1 and token in (b",", b"]"):
                blank = not content[begin : min(position, begin + MAX_ROW_BYTES)].strip()
                if not (blank and token == b"]" and not numbers):
                    spans.extend((begin, position))
                    numbers.append(len(numbers))
                begin = position + 1
            if token in (b"]", b"}"):
                depth -= 1
                if depth == 0:
                    if token == b"}":
                        break
                    end = match.end()
        if end is None:
            raise UserError(f"{file}: the JSON list is not terminated after item {len(numbers)}; is the file complete?")
        if content[end : end + MAX_ROW_BYTES].strip():
            raise UserError(f"{file}: there is data after the JSON list's end at byte {end}; write one object per line")
    return spans, numbers
