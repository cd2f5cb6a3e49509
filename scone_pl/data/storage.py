"""Storage of data sets: a local folder, or a URL whose files are cached on demand.

A cached file is renamed into place only when it is complete and its checksum matches, so any number of ranks and
workers may share a cache; lock files prevent them from fetching the same shard twice. Shards are handed out as open
files, which stay readable when another process of the machine evicts or replaces the copy.
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
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from scone_pl.errors import UserError
from scone_pl.ranges import check_number, check_whole

_MAX_BACKOFF_SECONDS = 30.0
_RETRY_AFTER_SECONDS = 60.0
_CACHED_SHARDS = "/".join(("[0-9a-f]" * 16, "[0-9a-f]" * 16 + "-*.tar"))
"""Only these files are ever evicted."""
_PERMANENT = (401, 403, 404, 410)
_LIBRARIES = {
    **dict.fromkeys(("http", "https"), "aiohttp"),
    "s3": "s3fs",
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    "hf": "huggingface_hub",
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
}
"""What to install for a URL's scheme."""
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_NO_COPY = (errno.ENOENT, errno.ESTALE, errno.EINVAL)
"""Of opening a copy: it is missing, was just removed from a network file system by another machine, or is no file."""
_MAX_UNKNOWN_BYTES = 1 << 32
"""Limit for a manifest or index, whose size is not known in advance: a server's response may be endless."""
_LIBRARY_ERRORS = {  # base classes that are not OSErrors; libraries that are not imported cannot have raised any
    "aiohttp": "ClientError",
    "httpx": "HTTPError",
    "httpx2": "HTTPError",
    "botocore.exceptions": "BotoCoreError",
}


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """How data sets at a URL are fetched and cached; local folders are read directly."""

    cache_dir: str | None = None
    """Cache folder; null = $SCONE_CACHE, else ~/.cache/scone_pl."""
    cache_gigabytes: float | None = None
    """Cache size; the least recently used shards are evicted. Null = unlimited."""
    attempts: int = 6
    """Number of attempts to fetch a file before its samples are skipped."""
    backoff_seconds: float = 0.5
    """Delay after the first failed attempt; doubles each time, up to 30 s."""
    timeout_seconds: float = 60.0
    """Connect and read timeout for http(s) and s3."""
    prefetch_packs: int = 8
    """Number of upcoming packs whose shards each worker prefetches in the background."""

    def __post_init__(self) -> None:
        check_whole("data.storage.attempts", self.attempts, minimum=1)
        check_number("data.storage.backoff_seconds", self.backoff_seconds, minimum=0, maximum=3600)
        check_number("data.storage.timeout_seconds", self.timeout_seconds, above=0, maximum=86400)
        check_whole("data.storage.prefetch_packs", self.prefetch_packs)
        if self.cache_gigabytes is not None:
            check_number("data.storage.cache_gigabytes", self.cache_gigabytes, above=0, maximum=1e9)

    @property
    def cache(self) -> Path:
        """The cache folder."""
        return Path(self.cache_dir or os.environ.get("SCONE_CACHE") or Path.home() / ".cache" / "scone_pl")


class FetchError(OSError):
    """A file cannot be fetched, after all attempts; the message is one line."""


class Storage(Protocol):
    """A folder of files with local copies."""

    name: str
    """As given by the user, without a password."""
    remote: bool

    def local(self, file: str, *, sha256: str | None = None) -> Path:
        """Path of a complete local copy of `file`; with `sha256`, a cached copy is reused.

        Not for shards of a remote folder, which may be evicted before the path is opened.

        Raises:
            FetchError: it cannot be fetched.
            UserError: the cache cannot be used.
        """
        ...

    def open(self, file: str, *, sha256: str, size: int) -> FileIO:
        """Opens a complete local copy of `file`; a cached copy of `size` bytes is reused.

        Raises:
            FetchError: it cannot be fetched.
            OSError: it is local and cannot be opened, or is not a regular file.
            UserError: the cache cannot be used.
        """
        ...


def open_storage(path: str | os.PathLike[str], config: StorageConfig | None = None) -> Storage:
    """The storage at `path`: a local folder, or a URL supported by fsspec (http, https, s3, hf, ...)."""
    text = os.fspath(path)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return RemoteFolder(text, config or StorageConfig()) if "://" in text else LocalFolder(text)


class LocalFolder:
    """A local folder."""

    remote = False

    def __init__(self, path: str) -> None:
        self.name = path
        self.path = Path(path)

    def local(self, file: str, *, sha256: str | None = None) -> Path:
        return self.path / file

    def open(self, file: str, *, sha256: str, size: int) -> FileIO:
        return open_regular(self.path / file)


class RemoteFolder:
    """A folder at a URL, copied to the cache on demand."""

    remote = True

    def __init__(self, url: str, config: StorageConfig) -> None:
        self._url = url.rstrip("/")
        self.name = _without_password(self._url)
        self.config = config
        self.cache = config.cache / hashlib.sha256(self._url.encode()).hexdigest()[:16]
        self._failed: dict[str, tuple[float, str]] = {}
        self._intact: set[Path] = set()
        """Copies whose checksum was verified."""

    def local(self, file: str, *, sha256: str | None = None) -> Path:
        self._open(file, sha256, None).close()
        return self._copy_of(file, sha256)

    def open(self, file: str, *, sha256: str, size: int) -> FileIO:
        return self._open(file, sha256, size)

    def _open(self, file: str, sha256: str | None, size: int | None) -> FileIO:
        copy = self._copy_of(file, sha256)
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            if sha256 and (stream := _open_copy(copy, size)):
                return stream
            until, message = self._failed.get(file, (0.0, ""))
            if time.monotonic() < until:
                raise FetchError(message)
            with _locked(copy):
                if sha256 and (stream := _open_copy(copy, size)):
                    return stream
                with contextlib.ExitStack() as opened:
                    stream = opened.enter_context(self._fetch(file, copy, sha256, size))
                    self._evict(copy)
                    opened.pop_all()
                    return stream
        except FetchError:
            raise
        except OSError as error:
            advice = "free some space, or " if error.errno in _DISK_ERRORS else ""
            raise UserError(
                f"{self.cache}: the cache cannot be used ({error.strerror or error}); {advice}set "
                "data.storage.cache_dir (or SCONE_CACHE) to another folder"
            ) from error

    def recheck(self, file: str, sha256: str) -> bool:
        """Removes the cached copy of `file` if it no longer matches its checksum.

        Returns:
            Whether it is worth reading the file again: false if this process has verified the copy before. An intact
            copy may have replaced the damaged one that was read.
        """
        copy = self._copy_of(file, sha256)
        if copy in self._intact:
            return False
        with contextlib.suppress(OSError), _locked(copy):
            if sha256_of(copy) == sha256:
                self._intact.add(copy)
            else:
                copy.unlink()
        return True

    def _copy_of(self, file: str, sha256: str | None) -> Path:
        return self.cache / (f"{sha256[:16]}-{file}" if sha256 else file)

    def _fetch(self, file: str, copy: Path, sha256: str | None, size: int | None) -> FileIO:
        part = copy.with_name(f".{copy.name}.{os.getpid()}.part")
        wait, error = self.config.backoff_seconds, ""
        try:
            for attempt in range(self.config.attempts):
                if attempt:
                    time.sleep(wait)
                    wait = min(2 * wait, _MAX_BACKOFF_SECONDS)
                try:
                    _copy(f"{self._url}/{file}", part, self.config.timeout_seconds, size or _MAX_UNKNOWN_BYTES)
                    if stream := _rename_complete(part, copy, sha256):
                        return stream
                    error = f"its checksum differs from the manifest's; received {part.stat().st_size} bytes"
                except _transient_errors() as failure:
                    if getattr(failure, "errno", None) in _DISK_ERRORS:
                        raise
                    error = _without_password(" ".join(f"{type(failure).__name__}: {failure}".split()))[:200]
                    if isinstance(failure, FileNotFoundError) or getattr(failure, "status", None) in _PERMANENT:
                        break
            message = f"{self.name}/{file}: cannot be fetched ({error})"
            self._failed[file] = (time.monotonic() + _RETRY_AFTER_SECONDS, message)
            raise FetchError(message)
        finally:
            part.unlink(missing_ok=True)

    def _evict(self, newest: Path) -> None:
        if self.config.cache_gigabytes is None:
            return
        copies = []
        for path in self.config.cache.glob(_CACHED_SHARDS):
            with contextlib.suppress(FileNotFoundError):  # evicted by another process
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
    """A URL, or a text with URLs, with credentials removed."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def _open_copy(copy: Path, size: int | None) -> FileIO | None:
    """Opens a copy if there is one, of `size` bytes if known; updates its time of last use."""
    try:
        with contextlib.ExitStack() as opened:
            stream = opened.enter_context(open_regular(copy))
            status = os.fstat(stream.fileno())
            if size is not None and status.st_size != size:
                return None
            if time.time() - status.st_mtime > 1:
                os.utime(stream.fileno())
            opened.pop_all()
            return stream
    except OSError as error:
        if error.errno in _NO_COPY:
            return None
        raise


@contextlib.contextmanager
def _locked(copy: Path) -> Iterator[None]:
    """Locks a copy between threads and processes; the lock is released if the process dies."""
    with copy.with_name(f".{copy.name}.lock").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _rename_complete(part: Path, copy: Path, sha256: str | None) -> FileIO | None:
    """Renames a complete file into place, durably; returns it opened, None if it differs from its checksum."""
    with contextlib.ExitStack() as opened:
        stream = opened.enter_context(open_regular(part))
        if sha256 is not None and stream_sha256(stream) != sha256:
            return None
        os.fsync(stream.fileno())
        os.replace(part, copy)
        opened.pop_all()
        return stream


def _copy(url: str, part: Path, timeout: float, max_bytes: int) -> None:
    """Downloads a file of at most `max_bytes` bytes; a larger one is an `OSError`."""
    import fsspec

    class Limit(fsspec.Callback):  # type: ignore[misc]  # fsspec has no annotations
        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            if self.value > max_bytes:
                raise OSError(errno.EFBIG, f"received more than {max_bytes} bytes")

    try:
        # A new instance each time: an asynchronous file system does not survive the fork into a data worker.
        system, path = fsspec.core.url_to_fs(url, **_options(url, timeout))
    except (ImportError, ValueError) as error:
        text = " ".join(_without_password(f"{url}: {error}").split())
        library = _LIBRARIES.get(url.partition("://")[0])
        advice = f"pip install {library}, or " if isinstance(error, ImportError) and library else ""
        raise UserError(f"{text}; {advice}copy the data set here") from None
    system.get_file(path, str(part), callback=Limit())


def _options(url: str, timeout: float) -> dict[str, Any]:
    if url.startswith(("http://", "https://")):
        import aiohttp

        # No limit on the total time: a large shard over a slow connection is not an error.
        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        return {"client_kwargs": {"timeout": limits}}
    if url.startswith("s3://"):
        # No retries of its own: `attempts` counts them.
        retries = {"total_max_attempts": 1}
        return {"config_kwargs": {"connect_timeout": timeout, "read_timeout": timeout, "retries": retries}}
    return {}


def _transient_errors() -> tuple[type[Exception], ...]:
    """Exceptions that file systems raise for server and network failures."""
    libraries = {module: sys.modules[module] for module in _LIBRARY_ERRORS if module in sys.modules}
    of_libraries = [getattr(library, _LIBRARY_ERRORS[module]) for module, library in libraries.items()]
    return (OSError, EOFError, asyncio.TimeoutError, *of_libraries)


def open_regular(path: Path) -> FileIO:
    """Opens a file for reading, unbuffered.

    Raises:
        OSError: it cannot be opened, or is a folder, pipe or device.
    """
    # Non-blocking, or opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with contextlib.ExitStack() as on_error:
        on_error.callback(os.close, descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        stream = FileIO(descriptor)
        on_error.pop_all()
        return stream


def stream_sha256(stream: FileIO) -> str:
    """SHA-256 in hexadecimal of an open file, from start to end; its position is the start afterwards.

    Raises:
        OSError: it cannot be read.
    """
    sha256 = hashlib.sha256()
    stream.seek(0)
    while piece := stream.read(1 << 20):
        sha256.update(piece)
    stream.seek(0)
    return sha256.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 in hexadecimal of a regular file.

    Raises:
        OSError: it cannot be read, or is a folder, pipe or device.
    """
    with open_regular(path) as stream:
        return stream_sha256(stream)
