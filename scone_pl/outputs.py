"""Whether an output can be written: to be asked before anything expensive is computed."""

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
    """To be called before the expensive part: whether `file` can be written at all.

    Raises:
        UserError: it is a folder, pipe or device, or its folder cannot be made or takes no files.
    """
    _check_output(Path(file), stat.S_ISREG, "not a regular file; give the name of a file")


def check_output_folder(
    folder: str | os.PathLike[str], *, files: Iterable[str] = (), folders: Iterable[str] = ()
) -> None:
    """To be called before the expensive part: whether `folder` can be made, and takes files.

    Args:
        folder: of the output.
        files: paths within it of files that will be written or replaced.
        folders: paths within it of folders that will be written to or replaced.

    Raises:
        UserError: it is no folder, cannot be made, or takes no files; or the same of one of `files` or `folders`.
    """
    path = Path(folder)
    _check_output(path, stat.S_ISDIR, "not a folder; choose another")
    for name in folders:
        _check_output(path / name, stat.S_ISDIR, "not a folder; move it aside, or choose another output")
    for name in files:
        _check_output(path / name, stat.S_ISREG, "not a regular file; move it aside, or choose another output")


def _check_output(path: Path, kind: Callable[[int], bool], complaint: str) -> None:
    if "\0" in str(path):
        raise UserError(f"{str(path)!r}: a path cannot hold a null byte")
    try:
        check_kind(path, kind, complaint)
        # Up to the first that is there, or that no folder can be made at.
        places = [path, *path.parents] if kind is stat.S_ISDIR else [*path.parents]
        above = next(place for place in places if os.path.lexists(place))
        check_kind(above, stat.S_ISDIR, "not a folder; choose another")
        if not os.path.exists(above):
            raise UserError(f"{above}: a link to nothing; choose another")
        limit = os.pathconf(above, "PC_NAME_MAX")
        if long := [part for part in path.parts if len(os.fsencode(part)) > limit]:
            raise OSError(errno.ENAMETOOLONG, f"{os.strerror(errno.ENAMETOOLONG)}: {len(long[0])} characters")
        try:
            with tempfile.TemporaryFile(dir=above):
                pass
        except OSError as error:  # which names the temporary file
            raise OSError(error.errno, error.strerror, str(above)) from error
    except OSError as error:
        raise unwritable(path, error) from error


def check_kind(path: Path, kind: Callable[[int], bool], complaint: str) -> None:
    """Refuses `path` with `complaint` where it exists, and its mode is not of a `kind` such as `stat.S_ISDIR`."""
    try:
        if not kind(path.stat().st_mode):
            raise UserError(f"{path}: {complaint}")
    except FileNotFoundError:
        return


def unwritable(path: Path, error: OSError) -> UserError:
    """The one line about something that cannot be written."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        name = os.fsdecode(error.filename)
        reason = reason if name == str(path) or ".partial" in name or error.errno in _FULL else f"{name}: {reason}"
    return UserError(f"{path}: cannot be written ({reason}){_ADVICE.get(error.errno or 0, '')}")
