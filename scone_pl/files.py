"""Reading and writing of small files: one way to read text and JSON; files and folders appear whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from scone_pl.errors import UserError

T = TypeVar("T")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_JSON_NAMES = {dict: "a JSON object", list: "a JSON list", str: "a JSON string"}


def read_bytes(file: Path) -> bytes:
    """Content of a regular file.

    Raises:
        UserError: `file` cannot be read, or is a folder, pipe or device, which might never end.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise UserError(f"{file}: not a regular file")
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def read_text(file: Path) -> str:
    """Text of a regular UTF-8 file, without its byte order mark if it has one.

    Raises:
        UserError: `file` cannot be read, is not a regular file, or is not UTF-8.
    """
    return decode(read_bytes(file), str(file))


def decode(content: bytes, source: str) -> str:
    """UTF-8 text without its byte order mark.

    Args:
        content: encoded text.
        source: what a message calls it: a file, or a file and a line.

    Raises:
        UserError: `content` is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def replace_surrogates(text: str) -> str:
    """Text that can be encoded: pairs of surrogates joined, single ones replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_json(file: Path, expected: type[T]) -> T:
    """Content of a JSON file.

    Args:
        file: a regular UTF-8 file.
        expected: type that the outermost value must have, `dict` or `list`.

    Raises:
        UserError: `file` cannot be read, is not JSON, or holds a value of another type.
    """
    return parse_json(read_text(file), str(file), expected)


def parse_json(text: str, source: str, expected: type[T]) -> T:
    """Parses JSON of unknown origin.

    Args:
        text: JSON.
        source: what a message calls it: a file, or a file and a line.
        expected: type that the outermost value must have.

    Raises:
        UserError: `text` is not JSON, is nested too deeply, has half a surrogate pair in a string (which no file or
            tokenizer can take), or holds a value of another type.
    """
    try:
        content = json.loads(text)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{source}: half a surrogate pair in a string; write characters whole") from error
    except RecursionError as error:
        raise UserError(f"{source}: JSON is nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{source}: not JSON ({error})") from error
    if not isinstance(content, expected):
        raise UserError(f"{source}: must be {_JSON_NAMES.get(expected, expected.__name__)}")
    return content


def write_text(text: str, file: Path) -> None:
    """Replaces `file`, making its folder if needed."""
    write_bytes(text.encode(), file)


def write_bytes(content: bytes, file: Path) -> None:
    """Replaces `file`, making its folder if needed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}.partial")
    aside.write_bytes(content)
    os.replace(aside, file)


def write_json(content: dict[str, Any], file: Path) -> None:
    """Replaces `file`."""
    write_text(json.dumps(content, indent=1) + "\n", file)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A folder to fill, which replaces `path` when all is written, or vanishes if that fails."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        replace_folder(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Renames `new` to `path`; what was there is deleted."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        path.rename(old)
    sync_folder(new)
    new.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Makes renames within a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
