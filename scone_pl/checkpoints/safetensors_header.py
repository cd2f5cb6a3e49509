"""Reads and validates the header of a safetensors file.

The format: 8 bytes with the header's length, the header (JSON: name -> dtype, shape, offsets), the tensors' bytes.
"""

from __future__ import annotations

import math
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scone_pl.errors import UserError
from scone_pl.files import parse_json

MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""
_8_BYTES = ("F64", "I64", "U64")
_4_BYTES = ("F32", "I32", "U32")
_2_BYTES = ("F16", "BF16", "I16", "U16")
_1_BYTE = ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_BYTES = {name: size for size, names in ((8, _8_BYTES), (4, _4_BYTES), (2, _2_BYTES), (1, _1_BYTE)) for name in names}
_MAX_SIZE = 2**62


@dataclass(frozen=True)
class HeaderEntry:
    """Header entry of one tensor."""

    dtype: str
    """The format's name, such as BF16."""
    shape: tuple[int, ...]


def read_header(file: Path) -> dict[str, HeaderEntry]:
    """Name -> header entry of all tensors in a safetensors file; no tensor data are read.

    Raises:
        UserError: `file` is not a regular file or cannot be read, its size contradicts its header, or the header is
            damaged; names the file and, if applicable, the tensor.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{file}: not a regular file; expected safetensors")
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, status.st_size - 8):
                raise _damaged(file, f"a header of {length} bytes in a file of {status.st_size}")
            text = stream.read(length)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; copy it again") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    header = _parse(text, file)
    entries, spans = {}, []
    for name, raw in header.items():
        entry, span = _entry(raw, name, file)
        entries[name] = entry
        spans.append((*span, name))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise _damaged(file, f"{_printable(name)} starts at byte {start} where {end} is next")
        end = stop
    if end != status.st_size - 8 - length:
        raise _damaged(file, f"{status.st_size - 8 - length} bytes of tensors where its header lists {end}")
    return entries


def _parse(text: bytes, file: Path) -> dict[str, Any]:
    try:
        header: dict[str, Any] = parse_json(text.decode(), "its header", dict)
    except ValueError as error:  # `UserError` is one
        raise _damaged(file, _printable(error)) from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(file, "__metadata__ of its header does not map names to texts")
    return header


def _entry(raw: Any, name: str, file: Path) -> tuple[HeaderEntry, tuple[int, int]]:
    if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(file, f"the header's entry of {_printable(name)} is not dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str):
        raise _damaged(file, f"{_printable(name)} has the dtype {_printable(dtype)}")
    if not _are_integers(shape) or math.prod(shape) > _MAX_SIZE:
        raise _damaged(file, f"{_printable(name)} has the shape {_printable(shape)}")
    if not _are_integers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(file, f"{_printable(name)} has the data_offsets {_printable(offsets)}")
    size = offsets[1] - offsets[0]
    if dtype in _BYTES and size != math.prod(shape) * _BYTES[dtype]:
        raise _damaged(file, f"{_printable(name)} is {dtype} of shape {_printable(shape)} in {size} bytes")
    return HeaderEntry(dtype, tuple(shape)), (offsets[0], offsets[1])


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= _MAX_SIZE for n in value)


def _printable(value: object) -> str:
    return " ".join(str(value).encode("ascii", "backslashreplace").decode().split())[:80]


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(f"{file}: not a whole safetensors file ({reason}); copy it again")
