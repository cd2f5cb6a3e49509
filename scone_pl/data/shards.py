"""Reading a data set: WebDataset tars, a manifest, and an index (documented in data_shards/README.md).

The index says where in which tar every sample lies and all that planning needs (image sizes, instruction), so packs
are planned without opening an image, and any sample is one read away. Writing is in `shard_writer`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scone_pl.data.index import INDEX, Index, IndexEntry
from scone_pl.data.members import parse_members
from scone_pl.data.sample import BrokenSampleError, Sample
from scone_pl.data.storage import FetchError, LocalFolder, StorageConfig, open_storage
from scone_pl.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ShardInfo:
    """One tar in the manifest."""

    file: str
    """In the folder itself."""
    samples: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        # Names of files in the cache are made of these, and a set behind a URL is somebody else's.
        if self.file.startswith(".") or Path(self.file).name != self.file or not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"a shard named {self.file!r}, or its checksum")
        if min(self.samples, self.bytes) < 0:
            raise ValueError(f"{self.file}: {self.samples} samples, {self.bytes} bytes")


@dataclass(frozen=True)
class TokenCounts:
    """What the samples' `tokens` in the index are."""

    total: int
    settings: dict[str, Any]
    """What they hold for, see `TokenCounter.settings`."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`manifest.json`: what the folder holds. Written last, so a folder with a manifest is complete."""

    format: int = FORMAT_VERSION
    samples: int
    bytes: int
    kinds: dict[str, int]
    """Samples of each kind."""
    index_sha256: str
    shards: tuple[ShardInfo, ...]
    tokens: TokenCounts | None = None
    """None = not counted when the set was made; everything works without."""

    def to_json(self) -> str:
        fields = asdict(self)
        if self.tokens is None:
            del fields["tokens"]
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads the manifest of `folder`.

        Raises:
            UserError: no such folder, no manifest, or one that cannot be read.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give the folder of a shard set (see shards convert)")
        file = folder / MANIFEST
        if not file.is_file():
            raise UserError(f"{file} is missing: not a shard set, or its conversion did not finish; convert it again")
        try:
            fields = json.loads(file.read_text("utf-8"))
            version = fields["format"]
            if version == FORMAT_VERSION:
                fields["shards"] = tuple(ShardInfo(**shard) for shard in fields["shards"])
                if fields.get("tokens") is not None:
                    fields["tokens"] = TokenCounts(**fields["tokens"])
                manifest = cls(**fields)
                if not _SHA256.fullmatch(manifest.index_sha256):
                    raise ValueError(f"index_sha256 {manifest.index_sha256!r}")
                if (samples := sum(shard.samples for shard in manifest.shards)) != manifest.samples:
                    raise ValueError(f"shards of {samples} samples in all, but samples is {manifest.samples}")
                return manifest
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not a readable manifest ({error!r}); convert the data set again") from None
        raise UserError(
            f"{file}: format {version}, but this version reads {FORMAT_VERSION}; convert the data set again"
        )


class ShardSet:
    """A data set: random access to its samples. Cheap to pickle and safe to use after a fork."""

    def __init__(self, path: str | Path, storage: StorageConfig | None = None, *, check_shards: bool = True) -> None:
        """Opens a folder or URL, checking that every shard is there with its full size.

        Args:
            path: local folder, or a URL that fsspec knows.
            storage: how a URL is fetched.
            check_shards: off = missing and torn shards show when their samples are read. Remote shards always do.

        Raises:
            UserError: anything missing or of another size than the manifest says.
        """
        self.storage = open_storage(path, storage)
        self.manifest = self._read_manifest()
        if check_shards and not self.storage.remote:
            for shard in self.manifest.shards:
                self._check_shard(shard)
        file = self._index_file()
        self.index = Index(file)
        if len(self.index) != self.manifest.samples:
            raise UserError(
                f"{file} has {len(self.index)} lines where {MANIFEST} says {self.manifest.samples} "
                "samples; copy the data set again or convert it again"
            )

    @classmethod
    def open(cls, path: str | Path, storage: StorageConfig | None = None) -> ShardSet:
        """Opens the data set in a folder or behind a URL."""
        return cls(path, storage)

    def _read_manifest(self) -> Manifest:
        if isinstance(self.storage, LocalFolder):
            return Manifest.read(self.storage.path)
        try:
            return Manifest.read(self.storage.local(MANIFEST).parent)
        except FetchError as error:
            raise UserError(f"{error}; check the URL (of the folder that holds {MANIFEST}) and the network") from None

    def _index_file(self) -> Path:
        try:
            file = self.storage.local(INDEX, sha256=self.manifest.index_sha256)
        except FetchError as error:
            raise UserError(f"{error}; copy the data set there again") from None
        if not file.is_file():
            raise UserError(f"{file} is missing; copy the data set again or convert it again")
        return file

    def _check_shard(self, shard: ShardInfo) -> None:
        path = self.storage.local(shard.file)
        if not path.is_file():
            raise UserError(f"{path} is missing; copy the data set again or convert it again")
        if path.stat().st_size != shard.bytes:
            raise UserError(
                f"{path} has {path.stat().st_size} bytes where {MANIFEST} says {shard.bytes}; "
                "copy the data set again or convert it again"
            )

    def __len__(self) -> int:
        return len(self.index)

    def entries(self) -> Iterator[IndexEntry]:
        """All lines of the index, in order, checked against the manifest.

        Raises:
            UserError: one is damaged, or does not lie in the shard whose turn it is.
        """
        start = 0
        for number, info in enumerate(self.manifest.shards):
            for i in range(start, start + info.samples):
                entry = self.index[i]
                if entry.shard != number or entry.offset + entry.length > info.bytes:
                    raise UserError(
                        f"{self.index.file}: line {i + 1} ({entry.key}) does not lie in {info.file}, where "
                        f"{MANIFEST} has it; copy the data set again or convert it again"
                    )
                yield entry
            start += info.samples

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(i) for i in range(len(self)))

    def fetch(self, shard: int) -> Path:
        """A local copy of a shard.

        Raises:
            FetchError: it cannot be fetched.
        """
        info = self.manifest.shards[shard]
        return self.storage.local(info.file, sha256=info.sha256)

    def read(self, i: int) -> Sample:
        """The i-th sample, images still encoded.

        Raises:
            BrokenSampleError: its shard cannot be read, or its members are damaged.
        """
        entry = self.index[i]
        origin = f"{self.storage.name}/{self.manifest.shards[entry.shard].file}"
        try:
            data = self._read_bytes(entry)
        except OSError as error:
            raise BrokenSampleError("unreadable shard", f"{origin}: {error.strerror or error}") from None
        if len(data) != entry.length:
            raise BrokenSampleError("torn shard", f"{origin}: ends within sample {entry.key}")
        return parse_members(data, entry.key, origin)

    def _read_bytes(self, entry: IndexEntry) -> bytes:
        tries = 3 if self.storage.remote else 1
        while True:
            tries -= 1
            try:
                with self.fetch(entry.shard).open("rb", buffering=0) as stream:
                    return os.pread(stream.fileno(), entry.length, entry.offset)
            except FileNotFoundError:  # a cached copy may be removed before it is opened
                if not tries:
                    raise
