"""Checks that an output can be written, before anything expensive is computed."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from scone_pl.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ADVICE = {
    **dict.fromkeys(_FULL, "; make room there, or choose another"),
    errno.EACCES: "; choose another",
    errno.EPERM: "; choose another",
    errno.EROFS: "; choose another",
}


def check_output_file(file: str | os.PathLike[str]) -> None:
    """Checks that `file` can be written.

    Raises:
        UserError: it is a folder, pipe or device, or its folder cannot be created or written to.
    """
    _check_output(Path(file), stat.S_ISREG, "not a regular file; give the name of a file")


def check_output_folder(
    folder: str | os.PathLike[str], *, files: Iterable[str] = (), folders: Iterable[str] = ()
) -> None:
    """Checks that `folder` can be created and written to.

    Args:
        folder: the output folder.
        files: relative paths of files that will be written or replaced.
        folders: relative paths of folders that will be written to or replaced.

    Raises:
        UserError: it is not a folder, or cannot be created or written to; or the same for one of `files` or `folders`.
    """
    path = Path(folder)
    _check_output(path, stat.S_ISDIR, "not a folder; choose another")
    for name in folders:
        _check_output(path / name, stat.S_ISDIR, "not a folder; move it aside, or choose another output")
    for name in files:
        _check_output(path / name, stat.S_ISREG, "not a regular file; move it aside, or choose another output")


def _check_output(path: Path, kind: Callable[[int], bool], message: str) -> None:
    if "\0" in str(path):
        raise UserError(f"{str(path)!r}: a path cannot hold a null byte")
    try:
        check_kind(path, kind, message)
        # The nearest ancestor that exists.
        candidates = [path, *path.parents] if kind is stat.S_ISDIR else [*path.parents]
        ancestor = next(candidate for candidate in candidates if os.path.lexists(candidate))
        check_kind(ancestor, stat.S_ISDIR, "not a folder; choose another")
        if not os.path.exists(ancestor):
            raise UserError(f"{ancestor}: a link to nothing; choose another")
        limit = os.pathconf(ancestor, "PC_NAME_MAX")
        if too_long := [part for part in path.parts if len(os.fsencode(part)) > limit]:
            raise OSError(errno.ENAMETOOLONG, f"{os.strerror(errno.ENAMETOOLONG)}: {len(too_long[0])} characters")
        try:
            with tempfile.TemporaryFile(dir=ancestor):
                pass
        except OSError as error:  # which names the temporary file
            raise OSError(error.errno, error.strerror, str(ancestor)) from error
    except OSError as error:
        raise unwritable(path, error) from error


def check_kind(path: Path, kind: Callable[[int], bool], message: str) -> None:
    """Raises `UserError` with `message` if `path` exists and its mode is not of `kind`, such as `stat.S_ISDIR`."""
    try:
        if not kind(path.stat().st_mode):
            raise UserError(f"{path}: {message}")
    except FileNotFoundError:
        return


def unwritable(path: Path, error: OSError) -> UserError:
    """The error for a path that cannot be written."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        name = os.fsdecode(error.filename)
        reason = reason if name == str(path) or ".partial" in name or error.errno in _FULL else f"{name}: {reason}"
    return UserError(f"{path}: cannot be written ({reason}){_ADVICE.get(error.errno or 0, '')}")
