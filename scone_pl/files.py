"""Validated reading of small text and JSON files; atomic, durable writing of files and folders.

Data are synced before they are renamed into place, and the rename after that, so writes survive a power failure.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml

from scone_pl.errors import UserError
from scone_pl.outputs import check_kind, check_output_folder, unwritable

T = TypeVar("T")
MAX_YAML_NODES = 100_000
"""In a YAML file: a few lines of aliases of aliases can stand for more than memory holds."""
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_LIST_OF_NUMBERS = re.compile(r"\[\n([^\[\]{}\"]*)\n *\]")
"""A list without strings or nested values as `json.dumps` indents it; no part of a JSON string, where newlines are
escaped."""
_COUNTER = itertools.count()
_OLD = re.compile(r"\.(?P<name>.+)\.\d+\.old")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Flags of Linux's renameat2: paths relative to the working directory; atomic exchange."""
_YAML_NAMES: dict[type, str] = {dict: "a mapping (`key: value` lines)", list: "a list"}
_JSON_NAMES: dict[type, str] = {dict: "a JSON object", list: "a JSON list", str: "a JSON string"}


def read_bytes(file: Path) -> bytes:
    """Content of a regular file.

    Raises:
        UserError: `file` cannot be read, or is a folder, pipe or device, which might never end.
    """
    with readable(file):
        return file.read_bytes()


@contextmanager
def readable(file: Path) -> Iterator[int]:
    """Checks that `file` is a regular file, and converts errors while it is read to `UserError`.

    Yields:
        Size of the file in bytes.

    Raises:
        UserError: `file` cannot be read, or is a folder, pipe or device, which might never end.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{file}: not a regular file")
        yield status.st_size
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        if isinstance(error, UserError) or "\0" not in str(file):
            raise
        raise UserError(f"{str(file)!r}: cannot be read (a null byte in its name)") from error


def read_text(file: Path) -> str:
    """Text of a regular UTF-8 file, without its byte order mark if it has one.

    Raises:
        UserError: `file` cannot be read, is not a regular file, or is not UTF-8.
    """
    return decode(read_bytes(file), str(file))


def decode(content: bytes, source: str) -> str:
    """Decodes UTF-8 text, without its byte order mark.

    Args:
        content: encoded text.
        source: its file, or file and line, for messages.

    Raises:
        UserError: `content` is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def replace_surrogates(text: str) -> str:
    """Text that can be encoded: surrogate pairs are joined, lone surrogates replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_json(file: Path, expected: type[T]) -> T:
    """Content of a JSON file.

    Args:
        file: a regular UTF-8 file.
        expected: required type of the outermost value, `dict` or `list`.

    Raises:
        UserError: `file` cannot be read, is not JSON, or has another type.
    """
    return parse_json(read_text(file), str(file), expected)


def parse_json(text: str, source: str, expected: type[T]) -> T:
    """Parses user-supplied JSON.

    Args:
        text: JSON.
        source: its file, or file and line, for messages.
        expected: required type of the outermost value.

    Raises:
        UserError: `text` is not JSON, is nested too deeply, has a duplicate key in an object or a lone surrogate in a
            string (which cannot be encoded), or has another type.
    """
    try:
        content = _DECODER.decode(text)
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


def read_yaml(file: Path, expected: type[T]) -> T:
    """Content of a YAML file; an empty file holds an empty `expected`.

    Raises:
        UserError: `file` cannot be read, is not YAML, holds a value of another type, or see `check_yaml`.
    """
    text = read_text(file)
    try:
        check_yaml(text)
        content = yaml.safe_load(text)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{file}: YAML is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, a number of 5000 digits
        raise UserError(f"{file}: not YAML ({error})") from error
    if not isinstance(content, expected) and content is not None:
        raise UserError(f"{file}: must be {_YAML_NAMES.get(expected, expected.__name__)}")
    return expected() if content is None else content


def check_yaml(text: str) -> None:
    """Checks what YAML allows and no file here may have.

    Raises:
        UserError: a mapping has a key twice, of which one would silently not count; an alias refers to what it is part
            of; or aliases make the content too large.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is not None:
        _check_node(node, {}, set())


def _check_node(node: yaml.Node, sizes: dict[int, int], above: set[int]) -> int:
    """Number of nodes in `node`, each alias counted as what it stands for."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in above:
        raise UserError(f"what begins in line {node.start_mark.line + 1} has an alias of itself in it")
    if id(node) in sizes:
        return sizes[id(node)]
    if isinstance(node, yaml.MappingNode):
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = [name for name, count in names.items() if count > 1 and name != "<<"]
        if twice:
            line = node.start_mark.line + 1
            raise UserError(f"the key {twice[0]!r} comes twice in one mapping, which begins in line {line}")
        parts = [part for pair in node.value for part in pair]
    else:
        parts = node.value
    above.add(id(node))
    size = 1 + sum(_check_node(part, sizes, above) for part in parts)
    above.remove(id(node))
    if size > MAX_YAML_NODES:
        raise UserError(f"more than {MAX_YAML_NODES} values, counting aliases as what they stand for")
    sizes[id(node)] = size
    return size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} comes twice in one object")
    return content


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


@contextmanager
def writing(file: Path) -> Iterator[IO[bytes]]:
    """A temporary binary file that atomically replaces `file` on success and is removed on failure.

    Parent folders are created.

    Raises:
        UserError: it cannot be written, such as on a full disk, or `file` is a folder, pipe or device.
    """
    # Truncated, since the name of `file` may be as long as the file system allows.
    temporary = file.with_name(f".{file.name[:40]}.{os.getpid()}-{next(_COUNTER)}.partial")
    try:
        if "\0" in str(file):
            raise UserError(f"{str(file)!r}: a path cannot hold a null byte")
        check_kind(file, stat.S_ISREG, "not a regular file")
        make_folder(file.parent)
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        sync(file.parent)
    except OSError as error:
        if error.filename in (None, *map(str, (temporary, file, *file.parents))):
            raise unwritable(file, error) from error
        raise  # raised by reading within the block
    finally:
        _remove(temporary)


def write_bytes(content: bytes, file: Path) -> None:
    """Atomically replaces `file`; see `writing`."""
    with writing(file) as stream:
        stream.write(content)


def write_text(text: str, file: Path) -> None:
    """Atomically replaces `file`; see `writing`."""
    write_bytes(text.encode(), file)


def write_json(content: dict[str, Any], file: Path) -> None:
    """Atomically replaces `file`; see `writing`. Lists of numbers are written on one line each."""
    text = _LIST_OF_NUMBERS.sub(lambda lines: f"[{' '.join(lines[1].split())}]", json.dumps(content, indent=1))
    write_text(text + "\n", file)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary folder that replaces `path` on success and is removed on failure.

    Raises:
        UserError: it cannot be written, such as on a full disk, or `path` is not a folder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        check_output_folder(path)
        make_folder(path.parent)
        restore(path)
        _remove(temporary)
        temporary.mkdir()
        yield temporary
        replace_folder(temporary, path)
    except OSError as error:
        # If a copy fills the disk, the error names its source.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(temporary):
            raise unwritable(path, error) from error
        raise  # raised by reading within the block
    finally:
        _remove(temporary)


def replace_folder(new: Path, path: Path) -> None:
    """Renames `new` to `path` and deletes the folder that was there.

    One of both survives a crash at any time: they are exchanged atomically if the system supports it; otherwise the old
    folder temporarily has a name by which `restore` finds it.
    """
    sync_tree(new)
    if not os.path.lexists(path):
        new.rename(path)
        sync(path.parent)
        return
    if _exchange(new, path):
        sync(path.parent)
        _remove(new)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    _remove(old)
    path.rename(old)
    new.rename(path)
    sync(path.parent)
    _remove(old)


def restore(path: Path) -> None:
    """Completes or reverts an interrupted `replace_folder`; `path` is then the new or the old folder."""
    for leftover in path.parent.glob(".*.old"):
        match = _OLD.fullmatch(leftover.name)
        if match is not None and match["name"] == path.name:
            _restore_from(leftover, path)


def clear_leftovers(folder: Path) -> None:
    """Reverts interrupted calls of `replace_folder` in `folder`, and deletes temporary files and folders.

    The caller must be the only writer.
    """
    for leftover in folder.glob(".*.old"):
        match = _OLD.fullmatch(leftover.name)
        if match is not None:
            _restore_from(leftover, folder / match["name"])
    for leftover in folder.glob(".*.partial"):
        _remove(leftover)


def _restore_from(old: Path, path: Path) -> None:
    if os.path.lexists(path):
        _remove(old)
    else:
        old.rename(path)
        sync(path.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Atomically exchanges two paths; False if kernel or file system do not support it."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if not rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE)):
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))


def _remove(path: Path) -> None:
    """Deletes a file, link or folder; errors are ignored."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError, ValueError):  # a null byte
        path.unlink()


def make_folder(path: Path) -> None:
    """Creates a folder and its parents durably."""
    missing = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def sync_tree(path: Path) -> None:
    """Syncs a folder and its contents to disk."""
    for folder, _, files in os.walk(path):
        for file in files:
            sync(os.path.join(folder, file))
        sync(folder)


def sync(path: str | Path) -> None:
    """Syncs a file, or the renames within a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
