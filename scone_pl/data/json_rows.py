"""Rows of a JSON file: one object a line, or one list of objects. Every reader of people's JSON records uses this.

A byte order mark, blank lines, CRLF and blanks around a line have no meaning. Rows are located in one pass and parsed
when asked for, so memory does not grow with the file but by 24 bytes a row.
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
LONGEST_ROW = 1 << 26
"""Bytes of a row; a file without line ends would otherwise be read into memory whole."""
DEEPEST_ROW = 64
"""Most objects and lists around a value."""
_OTHER_CONTENT = (
    (codecs.BOM_UTF16_LE, "UTF-16; save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16; save it as UTF-8"),
    (b"\x1f\x8b", "compressed with gzip; unpack it with: gunzip --keep"),
    (b"PAR1", "a parquet file, not JSON"),
    (b"PK\x03\x04", "a zip archive, not JSON; unpack it"),
)
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)
_SPREAD = re.compile(rb'\{\s*("[^"]*"\s*:\s*[\[{]?\s*)?')
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{\]}]', re.DOTALL)


@dataclass(frozen=True)
class JsonRows:
    """Where the rows of one file are."""

    file: Path
    spans: np.ndarray
    """(rows, 2) int64: first byte, and the byte behind the last."""
    numbers: np.ndarray
    """(rows,) int64: from 0, the line or the item of the list that a row is."""
    is_list: bool
    """Whether the file is one JSON list."""

    @classmethod
    def open(cls, file: Path) -> JsonRows:
        """Finds the rows of a file, whatever it is called.

        Raises:
            UserError: it cannot be read, is no regular file, is visibly something else, is an object over several
                lines, or is a list that does not end.
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
                if more.strip() and _SPREAD.fullmatch(first.rstrip()):
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
        """Each row of a range by its place among the rows, with its content or what is wrong with it.

        Raises:
            UserError: the file cannot be read any more.
        """
        with readable(self.file), self.file.open("rb") as stream:
            for row in range(start, len(self) if stop is None else stop):
                first, last = map(int, self.spans[row])
                if last - first > LONGEST_ROW:
                    yield row, UserError(f"{self.where(row)}: longer than {LONGEST_ROW} bytes")
                    continue
                stream.seek(first)
                yield row, _parse(stream.read(last - first), self.where(row))


def _parse(content: bytes, where: str) -> dict[str, Any] | UserError:
    try:
        text = decode(content, where)
        # As deep as the parser goes, what is read could not be written again.
        if content.count(b"{") + content.count(b"[") > DEEPEST_ROW and _depth(text) > DEEPEST_ROW:
            raise UserError(f"{where}: JSON is nested too deeply")
        row = parse_json(text, where, dict)
        json.dumps(row, allow_nan=False)
    except UserError as error:
        return error
    except ValueError:
        return UserError(f"{where}: a number is not finite; JSON has no NaN and no Infinity")
    return row


def _depth(text: str) -> int:
    """Most brackets open at a time, those in strings not counted."""
    depth = deepest = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        deepest = max(deepest, depth)
    return deepest


def _lines(file: Path, stream: BinaryIO, position: int) -> tuple[array[int], array[int]]:
    spans, numbers, number = array("q"), array("q"), 0
    stream.seek(position)
    while line := stream.readline(LONGEST_ROW + 1):
        if len(line) > LONGEST_ROW:
            raise UserError(f"{file}:{number + 1}: longer than {LONGEST_ROW} bytes; write one object a line")
        if not line.isspace():
            spans.extend((position, position + len(line)))
            numbers.append(number)
        position += len(line)
        number += 1
    return spans, numbers


def _items(file: Path, stream: BinaryIO, size: int, start: int) -> tuple[array[int], array[int]]:
    """The items of the list that begins at byte `start`."""
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
                blank = not content[begin : min(position, begin + LONGEST_ROW)].strip()
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
            raise UserError(f"{file}: the JSON list does not end behind item {len(numbers)}; is the file whole?")
        if content[end : end + LONGEST_ROW].strip():
            raise UserError(f"{file}: the JSON list ends at byte {end}, but the file goes on; write one object a line")
    return spans, numbers
