"""Where the files of a data set lie: a local folder, or a URL whose files are copied to a cache when needed.

A cached file appears under its name only when it is complete and its checksum is right, so any number of ranks and
workers may share a cache; a lock file keeps two of them from fetching the same shard.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
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
        if self.attempts < 1 or self.backoff_seconds < 0 or self.timeout_seconds <= 0 or self.prefetch_packs < 0:
            raise UserError("storage: attempts must be at least 1, timeout_seconds more than 0, the others at least 0")
        if self.cache_gigabytes is not None and self.cache_gigabytes <= 0:
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

    def local(self, file: str, *, sha256: str | None = None) -> Path:
        """Path of a complete local copy of `file`; with `sha256` an earlier copy will do.

        Raises:
            FetchError: it cannot be fetched.
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

    def local(self, file: str, *, sha256: str | None = None) -> Path:
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

    def local(self, file: str, *, sha256: str | None = None) -> Path:
        self.cache.mkdir(parents=True, exist_ok=True)
        copy = self.cache / (f"{sha256[:16]}-{file}" if sha256 else file)
        if sha256 and _used(copy):
            return copy
        until, message = self._given_up.get(file, (0.0, ""))
        if time.monotonic() < until:
            raise FetchError(message)
        with _locked(copy):
            if not (sha256 and _used(copy)):
                self._fetch(file, copy, sha256)
                self._make_room(copy)
        return copy

    def _fetch(self, file: str, copy: Path, sha256: str | None) -> None:
        part = copy.with_name(f".{copy.name}.{os.getpid()}.part")
        wait, error = self.config.backoff_seconds, ""
        try:
            for attempt in range(self.config.attempts):
                if attempt:
                    time.sleep(wait)
                    wait = min(2 * wait, _LONGEST_WAIT)
                try:
                    _copy(f"{self._url}/{file}", part, self.config.timeout_seconds)
                    if sha256 is None or sha256_of(part) == sha256:
                        os.replace(part, copy)
                        return
                    error = "its checksum differs from the manifest's"
                except _transient_errors() as failure:
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
                stat = path.stat()
                copies.append((stat.st_mtime, stat.st_size, path))
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


def _used(copy: Path) -> bool:
    """Whether there is a copy; notes that it was needed now."""
    try:
        if time.time() - copy.stat().st_mtime > 1:
            os.utime(copy)
        return True
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _locked(copy: Path) -> Iterator[None]:
    """One thread of one process at a time; a process that dies lets go."""
    with copy.with_name(f".{copy.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copy(url: str, part: Path, timeout: float) -> None:
    import fsspec

    try:
        # Opened anew each time: an asynchronous file system does not survive the fork into a data worker.
        system, path = fsspec.core.url_to_fs(url, **_options(url, timeout))
    except (ImportError, ValueError) as error:
        text = " ".join(_without_password(f"{url}: {error}").split())
        raise UserError(f"{text}; install that, or copy the data set here") from None
    system.get_file(path, str(part))


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
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
