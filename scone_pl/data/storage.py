"""Where the files of a data set lie: a local folder, or a URL whose files are copied to a cache when needed.

A cached file appears under its name only when it is complete and its checksum is right, so any number of ranks and
workers may share a cache; a lock file keeps two of them from fetching the same shard.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from scone_pl.errors import UserError

_LONGEST_WAIT = 30.0
_GIVEN_UP_SECONDS = 60.0
_COPIES = "/".join(("[0-9a-f]" * 16, "[0-9a-f]" * 16 + "-*.tar"))
"""Whatever else lies in the folder is not ours to remove."""
_PERMANENT = (401, 403, 404, 410)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_MOST_BYTES_UNKNOWN = 1 << 32
"""Of a manifest or index, whose size nobody has told: a server's answer may never end."""
_ERRORS = {  # base classes that are no OSError; a library that is not imported has raised nothing
    "aiohttp": "ClientError",
    "httpx": "HTTPError",
    "httpx2": "HTTPError",
    "botocore.exceptions": "BotoCoreError",
}


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """How data sets behind a URL are fetched; local folders are read where they are."""

    cache_dir: str | None = None
    """Folder for copies; null = $SCONE_CACHE, else ~/.cache/scone_pl."""
    cache_gigabytes: float | None = None
    """Most that the cache may hold: shards not used for longest are removed. Null = no limit."""
    attempts: int = 6
    """Times that a file is asked for before its samples count as skipped."""
    backoff_seconds: float = 0.5
    """Pause after the first failure; doubles each time, up to 30 s."""
    timeout_seconds: float = 60.0
    """Longest silence of an http(s) or s3 server before an attempt counts as failed."""
    prefetch_packs: int = 8
    """Packs ahead of the one in hand whose shards each worker fetches in the background."""

    def __post_init__(self) -> None:
        if not (
            self.attempts >= 1 and self.backoff_seconds >= 0 and self.timeout_seconds > 0 and self.prefetch_packs >= 0
        ):
            raise UserError("storage: attempts must be at least 1, timeout_seconds more than 0, the others at least 0")
        if self.cache_gigabytes is not None and not self.cache_gigabytes > 0:
            raise UserError(f"storage.cache_gigabytes is {self.cache_gigabytes}; it must be more than 0")

    @property
    def cache(self) -> Path:
        """The folder for copies."""
        return Path(self.cache_dir or os.environ.get("SCONE_CACHE") or Path.home() / ".cache" / "scone_pl")


class FetchError(OSError):
    """A file that cannot be had, after all attempts; one line."""


class Storage(Protocol):
    """A folder of files that are read locally."""

    name: str
    """As the user wrote it, without a password."""
    remote: bool

    def local(self, file: str, *, sha256: str | None = None, size: int | None = None) -> Path:
        """Path of a complete local copy of `file`; with `sha256` an earlier copy of `size` bytes will do.

        Raises:
            FetchError: it cannot be fetched.
            UserError: the cache cannot be written.
        """
        ...


def open_storage(path: str | os.PathLike[str], config: StorageConfig | None = None) -> Storage:
    """The folder at `path`: a local one, or a URL that fsspec knows (http, https, s3, hf, ...)."""
    text = os.fspath(path)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return RemoteFolder(text, config or StorageConfig()) if "://" in text else LocalFolder(text)


class LocalFolder:
    """Files where they are."""

    remote = False

    def __init__(self, path: str) -> None:
        self.name = path
        self.path = Path(path)

    def local(self, file: str, *, sha256: str | None = None, size: int | None = None) -> Path:
        return self.path / file


class RemoteFolder:
    """Files behind a URL, copied to the cache."""

    remote = True

    def __init__(self, url: str, config: StorageConfig) -> None:
        self._url = url.rstrip("/")
        self.name = _without_password(self._url)
        self.config = config
        self.cache = config.cache / hashlib.sha256(self._url.encode()).hexdigest()[:16]
        self._given_up: dict[str, tuple[float, str]] = {}
        self._sound: set[Path] = set()
        """Copies that were found to be what was fetched."""

    def local(self, file: str, *, sha256: str | None = None, size: int | None = None) -> Path:
        copy = self._copy_of(file, sha256)
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            if sha256 and _used(copy, size):
                return copy
            until, message = self._given_up.get(file, (0.0, ""))
            if time.monotonic() < until:
                raise FetchError(message)
            with _locked(copy):
                if not (sha256 and _used(copy, size)):
                    self._fetch(file, copy, sha256, size)
                    self._make_room(copy)
        except FetchError:
            raise
        except OSError as error:
            raise UserError(
                f"{self.cache}: the cache cannot be written ({error.strerror or error}); make room, or set "
                "data.storage.cache_dir (or SCONE_CACHE) to another folder"
            ) from error
        return copy

    def discard_damaged(self, file: str, sha256: str) -> bool:
        """Removes the copy of `file` if it has changed since it was fetched; whether it had."""
        copy = self._copy_of(file, sha256)
        if copy in self._sound:
            return False
        try:
            with _locked(copy):
                if sha256_of(copy) == sha256:
                    self._sound.add(copy)
                    return False
                copy.unlink()
                return True
        except OSError:
            return False

    def _copy_of(self, file: str, sha256: str | None) -> Path:
        return self.cache / (f"{sha256[:16]}-{file}" if sha256 else file)

    def _fetch(self, file: str, copy: Path, sha256: str | None, size: int | None) -> None:
        part = copy.with_name(f".{copy.name}.{os.getpid()}.part")
        wait, error = self.config.backoff_seconds, ""
        try:
            for attempt in range(self.config.attempts):
                if attempt:
                    time.sleep(wait)
                    wait = min(2 * wait, _LONGEST_WAIT)
                try:
                    _copy(f"{self._url}/{file}", part, self.config.timeout_seconds, size or _MOST_BYTES_UNKNOWN)
                    if sha256 is None or sha256_of(part) == sha256:
                        _publish(part, copy)
                        return
                    error = f"its checksum differs from the manifest's; {part.stat().st_size} bytes came"
                except _transient_errors() as failure:
                    if getattr(failure, "errno", None) in _NO_ROOM:
                        raise
                    error = _without_password(" ".join(f"{type(failure).__name__}: {failure}".split()))[:200]
                    if isinstance(failure, FileNotFoundError) or getattr(failure, "status", None) in _PERMANENT:
                        break
            message = f"{self.name}/{file}: cannot be fetched ({error})"
            self._given_up[file] = (time.monotonic() + _GIVEN_UP_SECONDS, message)
            raise FetchError(message)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, newest: Path) -> None:
        if self.config.cache_gigabytes is None:
            return
        copies = []
        for path in self.config.cache.glob(_COPIES):
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                status = path.stat()
                copies.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in copies) - self.config.cache_gigabytes * 1e9
        for _, size, path in sorted(copies):
            if excess <= 0:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                excess -= size

    def __reduce__(self) -> tuple[object, ...]:
        return RemoteFolder, (self._url, self.config)


def _without_password(text: str) -> str:
    """A URL, or a text with URLs, as it may stand in a log."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def _used(copy: Path, size: int | None) -> bool:
    """Whether there is a copy, of `size` bytes if that is known; notes that it was needed now."""
    try:
        status = copy.stat()
        if size is not None and status.st_size != size:
            return False
        if time.time() - status.st_mtime > 1:
            os.utime(copy)
        return True
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _locked(copy: Path) -> Iterator[None]:
    """One thread of one process at a time; a process that dies lets go."""
    with copy.with_name(f".{copy.name}.lock").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _publish(part: Path, copy: Path) -> None:
    """Gives a complete file its name; after a power cut it is complete, or not there."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, copy)


def _copy(url: str, part: Path, timeout: float, most: int) -> None:
    """Copies a file of at most `most` bytes; a longer answer is an `OSError`."""
    import fsspec

    class Limit(fsspec.Callback):
        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            if self.value > most:
                raise OSError(errno.EFBIG, f"more than {most} bytes came")

    try:
        # Opened anew each time: an asynchronous file system does not survive the fork into a data worker.
        system, path = fsspec.core.url_to_fs(url, **_options(url, timeout))
    except (ImportError, ValueError) as error:
        text = " ".join(_without_password(f"{url}: {error}").split())
        raise UserError(f"{text}; install that, or copy the data set here") from None
    system.get_file(path, str(part), callback=Limit())


def _options(url: str, timeout: float) -> dict[str, Any]:
    if url.startswith(("http://", "https://")):
        import aiohttp

        # No limit on the whole: a large shard over a slow line is no fault, silence is.
        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        return {"client_kwargs": {"timeout": limits}}
    if url.startswith("s3://"):
        # Without attempts of its own: `attempts` says how often a file is asked for.
        retries = {"total_max_attempts": 1}
        return {"config_kwargs": {"connect_timeout": timeout, "read_timeout": timeout, "retries": retries}}
    return {}


def _transient_errors() -> tuple[type[Exception], ...]:
    """What file systems raise when a server or the network fails."""
    libraries = {module: sys.modules[module] for module in _ERRORS if module in sys.modules}
    of_libraries = [getattr(library, _ERRORS[module]) for module, library in libraries.items()]
    return (OSError, EOFError, asyncio.TimeoutError, *of_libraries)


def sha256_of(path: Path) -> str:
    """Hex digest of a regular file, read in pieces.

    Raises:
        OSError: it cannot be read, or is a pipe or device, which might never end.
    """
    digest = hashlib.sha256()
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
