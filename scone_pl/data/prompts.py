"""Prompts as JSON rows, in the format of SconeEval and OmniContext (docs/benchmarks.md 1).

A row has `key` (file name of the generated image), an instruction and reference images (paths relative to the file, in
order; may be empty) under any of the names in `data/fields.py`; optionally `task_type` (folder of the generated image).
Other fields are ignored. Images are preprocessed as in the release's inference, except that their EXIF orientation is
applied unless `data.packing.exif_orientation` is `ignore`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scone_pl.data.fields import FieldNames
from scone_pl.data.json_rows import SUFFIXES, JsonRows
from scone_pl.data.rows import Row, RowRules, read_row
from scone_pl.data.sample import BrokenSampleError, Sample
from scone_pl.errors import UserError

MAX_NAME_BYTES = 200
"""Of a key or task type in UTF-8: file systems allow 255, and the name gets a suffix."""
_FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f\ud800-\udfff]')
_RULES = RowRules(names=FieldNames(key="key"), require_target=False, require_references=False, prompts=True)


@dataclass(frozen=True)
class Request:
    """One prompt."""

    key: str
    task_type: str
    """Empty if the row has none."""
    row: Row
    where: str
    """File and line, for messages."""

    @property
    def instruction(self) -> str:
        return self.row.instruction

    @property
    def images(self) -> tuple[Path, ...]:
        """Files of the reference images."""
        return tuple(image for image in self.row.references if isinstance(image, Path))

    def read(self) -> Sample:
        """Reads the images; the result is a sample without target.

        Raises:
            BrokenSampleError: an image cannot be read.
        """
        return self.row.load(self.key, self.where, {"task_type": self.task_type})


def is_prompt_file(path: str) -> bool:
    """Whether a prediction source is a file of prompts rather than a folder or URL of shards."""
    return "://" not in path and not Path(path).is_dir() and (path.endswith(SUFFIXES) or Path(path).exists())


def read_requests(files: Sequence[str | Path]) -> list[Request]:
    """Reads and checks all rows of the files.

    Raises:
        UserError: names file and line: invalid JSON, a missing or invalid field, a missing image file, a key that is
            not a valid file name or not unique within its task type.
    """
    return [request for request, _ in requests_and_records(files)]


def requests_and_records(files: Sequence[str | Path]) -> Iterator[tuple[Request, dict[str, Any]]]:
    """Like `read_requests`, each request with its complete row."""
    seen: dict[tuple[str, str], str] = {}
    for file in map(Path, files):
        rows = JsonRows.open(file)
        for number, record in rows.read():
            if isinstance(record, UserError):
                raise record
            request = _request(record, rows.where(number), file.parent)
            identity = (_folded(request.task_type), _folded(request.key))
            if identity in seen:
                raise UserError(
                    f"{request.where}: the key {request.key!r} is already used at {seen[identity]} (compared without "
                    "case, since some file systems are case-insensitive)"
                )
            seen[identity] = request.where
            yield request, record
    if not seen:
        raise UserError(f"{' '.join(map(str, files))}: has no prompts")


def _request(record: dict[str, Any], where: str, folder: Path) -> Request:
    try:
        row = read_row(record, _RULES, where, folder)
    except BrokenSampleError as error:
        raise UserError(str(error)) from None
    task_type = record.get("task_type")
    name = "" if task_type in (None, "") else plain_name(task_type, "task_type", where)
    if name.endswith((".png", ".json")):
        raise UserError(f"{where}: `task_type` {name!r} names a folder; it must not end in .png or .json")
    request = Request(plain_name(record.get("key"), "key", where), name, row, where)
    for image in request.images:
        if not _is_file(image):
            raise UserError(f"{where}: no such image file {str(image)!r:.300}; paths are relative to the JSON file")
    return request


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a null byte
        return False


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def plain_name(value: Any, field: str, where: str) -> str:
    """`value` as a portable file name without a path."""
    name = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not name.strip() or name.startswith(".") or _FORBIDDEN.search(name) or len(name.encode()) > MAX_NAME_BYTES:
        raise UserError(
            f"{where}: `{field}` {value!r:.300} is not a valid file name; use up to {MAX_NAME_BYTES} bytes of UTF-8 "
            "without path separators, not starting with a dot"
        )
    return name
