"""Reading and writing of small files: one way to read text and JSON; files and folders appear whole or not at all.

What is written is synced before it gets its name, and the name after that, so it also survives a power cut.
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
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_COUNTER = itertools.count()
_OLD = re.compile(r"\.(?P<name>.+)\.\d+\.old")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Of Linux's renameat2: paths count from the working folder; both names change places at once."""
_YAML_NAMES = {dict: "a mapping (`key: value` lines)", list: "a list"}
_JSON_NAMES = {dict: "a JSON object", list: "a JSON list", str: "a JSON string"}


def read_bytes(file: Path) -> bytes:
    """Content of a regular file.

    Raises:
        UserError: `file` cannot be read, or is a folder, pipe or device, which might never end.
    """
    with readable(file):
        return file.read_bytes()


@contextmanager
def readable(file: Path) -> Iterator[int]:
    """Checks a regular file of unknown origin and turns what goes wrong while it is read into one line.

    Yields:
        Bytes in the file.

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
        UserError: `text` is not JSON, is nested too deeply, has a key twice in one object or half a surrogate pair in a
            string (which no file or tokenizer can take), or holds a value of another type.
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
        UserError: `file` cannot be read, is not YAML, has a key twice in one mapping, or holds a value of another type.
    """
    text = read_text(file)
    try:
        check_yaml_keys(text)
        content = yaml.safe_load(text)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{file}: YAML is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, a number of 5000 digits
        raise UserError(f"{file}: not YAML ({error})") from error
    if not isinstance(content, expected) and content is not None:
        raise UserError(f"{file}: must be {_YAML_NAMES.get(expected, expected.__name__)}")
    return expected() if content is None else content  # type: ignore[return-value]


def check_yaml_keys(text: str) -> None:
    """Raises `UserError` if a mapping has a key twice: of two values one would silently not count."""
    waiting = [yaml.compose(text, Loader=yaml.SafeLoader)]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            twice = [name for name, count in names.items() if count > 1 and name != "<<"]
            if twice:
                line = node.start_mark.line + 1
                raise UserError(f"the key {twice[0]!r} comes twice in one mapping, which begins in line {line}")
            waiting += [part for pair in node.value for part in pair]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} comes twice in one object")
    return content


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


@contextmanager
def writing(file: Path) -> Iterator[IO[bytes]]:
    """A binary file to fill, which replaces `file` when all is written, or vanishes if that fails.

    Its folder is made if needed.

    Raises:
        UserError: it cannot be written, such as on a full disk, or `file` is a folder, pipe or device.
    """
    # A short name: what `file` is called may be as long as the file system allows.
    aside = file.with_name(f".{file.name[:40]}.{os.getpid()}-{next(_COUNTER)}.partial")
    try:
        if "\0" in str(file):
            raise UserError(f"{str(file)!r}: a path cannot hold a null byte")
        check_kind(file, stat.S_ISREG, "not a regular file")
        make_folder(file.parent)
        with aside.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, file)
        sync_folder(file.parent)
    except OSError as error:
        if error.filename in (None, *map(str, (aside, file, *file.parents))):
            raise unwritable(file, error) from error
        raise  # what the block read
    finally:
        _remove(aside)


def write_bytes(content: bytes, file: Path) -> None:
    """Replaces `file`, making its folder if needed; see `writing`."""
    with writing(file) as stream:
        stream.write(content)


def write_text(text: str, file: Path) -> None:
    """Replaces `file`, making its folder if needed; see `writing`."""
    write_bytes(text.encode(), file)


def write_json(content: dict[str, Any], file: Path) -> None:
    """Replaces `file`, making its folder if needed; see `writing`."""
    write_text(json.dumps(content, indent=1) + "\n", file)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A folder to fill, which replaces `path` when all is written, or vanishes if that fails.

    Raises:
        UserError: it cannot be written, such as on a full disk, or `path` is no folder.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        check_output_folder(path)
        make_folder(path.parent)
        restore(path)
        _remove(aside)
        aside.mkdir()
        yield aside
        replace_folder(aside, path)
    except OSError as error:
        # Of a copy that found the disk full, the source is named.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(aside):
            raise unwritable(path, error) from error
        raise  # what the block read
    finally:
        _remove(aside)


def replace_folder(new: Path, path: Path) -> None:
    """Renames `new` to `path`; what was there is deleted.

    At no moment a crash leaves neither: both change places at once where the system can do that. Where it cannot, the
    old one has another name in between, by which `restore` finds it.
    """
    sync_tree(new)
    if not os.path.lexists(path):
        new.rename(path)
        sync_folder(path.parent)
        return
    if _exchange(new, path):
        sync_folder(path.parent)
        _remove(new)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    _remove(old)
    path.rename(old)
    new.rename(path)
    sync_folder(path.parent)
    _remove(old)


def restore(path: Path) -> None:
    """Finishes or undoes a `replace_folder` that a crash has interrupted: `path` is the new or the old folder."""
    for left in path.parent.glob(".*.old"):
        match = _OLD.fullmatch(left.name)
        if match is not None and match["name"] == path.name:
            _restore_from(left, path)


def clear_leftovers(folder: Path) -> None:
    """Restores what an interrupted `replace_folder` has moved aside in `folder`, and deletes what is half-written.

    To be called by whoever may write there alone.
    """
    for left in folder.glob(".*.old"):
        match = _OLD.fullmatch(left.name)
        if match is not None:
            _restore_from(left, folder / match["name"])
    for left in folder.glob(".*.partial"):
        _remove(left)


def _restore_from(old: Path, path: Path) -> None:
    if os.path.lexists(path):
        _remove(old)
    else:
        old.rename(path)
        sync_folder(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Lets two paths change places at once; False where kernel or file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if not rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)):
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def _remove(path: Path) -> None:
    """Deletes a file, a link or a folder, as far as that is possible."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError, ValueError):  # a null byte
        path.unlink()


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, so that they survive a power cut."""
    missing = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def sync_tree(path: Path) -> None:
    """Makes a folder with all that is in it survive a power cut."""
    for place, _, files in os.walk(path):
        for file in files:
            _sync(os.path.join(place, file))
        _sync(place)


def sync_folder(path: Path) -> None:
    """Makes renames within a folder survive a power cut."""
    _sync(path)


def _sync(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
