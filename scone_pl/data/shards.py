"""Reads data sets: WebDataset tars, a manifest and an index (documented in docs/shards.md).

The index holds the location of every sample and everything that planning needs (image sizes, instruction), so packs are
planned without opening an image, and any sample is read with one `pread`. `shard_writer` writes them.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from scone_pl.data.decoding import ExifOrientation, image_size
from scone_pl.data.index import INDEX, Index, IndexEntry
from scone_pl.data.manifest import MANIFEST, Manifest, ShardInfo
from scone_pl.data.members import MAX_SAMPLE_BYTES, parse_members
from scone_pl.data.sample import BrokenSampleError, Sample
from scone_pl.data.storage import FetchError, LocalFolder, RemoteFolder, StorageConfig, open_storage, sha256_of
from scone_pl.errors import UserError
from scone_pl.files import decode, read_bytes


class ShardSet:
    """A data set with random access to its samples. Cheap to pickle and fork-safe."""

    def __init__(self, path: str | Path, storage: StorageConfig | None = None, *, check_files: bool = True) -> None:
        """Opens a folder or URL; checks the sizes of all shards and the checksum of the index.

        Args:
            path: local folder, or a URL supported by fsspec.
            storage: how a URL is fetched.
            check_files: false = missing or truncated shards are reported when their samples are read (as remote shards
                always are), and the checksum of the index is not verified.

        Raises:
            UserError: a file is missing or contradicts the manifest.
        """
        self.storage = open_storage(path, storage)
        self.manifest = self._read_manifest()
        if check_files and not self.storage.remote:
            for shard in self.manifest.shards:
                self._check_shard(shard)
        file = self._index_file()
        self.index = Index(file, f"{self.storage.name}/{INDEX}" if self.storage.remote else None)
        if len(self.index) != self.manifest.samples or not self.index.is_complete:
            raise UserError(
                f"{self.index.name} has {len(self.index)} lines where {MANIFEST} says {self.manifest.samples} "
                "samples; copy the data set again or convert it again"
            )
        self._ends = list(itertools.accumulate(shard.samples for shard in self.manifest.shards))
        if check_files and not self.storage.remote and sha256_of(file) != self.manifest.index_sha256:
            list(self.entries())  # raises an error that names the line, if one is invalid
            raise UserError(
                f"{file}: its checksum differs from the one in {MANIFEST}; copy the data set again or convert it again"
            )

    def _read_manifest(self) -> Manifest:
        if isinstance(self.storage, LocalFolder):
            return Manifest.read(self.storage.path)
        try:
            content = read_bytes(self.storage.local(MANIFEST))
        except FetchError as error:
            raise UserError(f"{error}; check the URL (of the folder that holds {MANIFEST}) and the network") from None
        source = f"{self.storage.name}/{MANIFEST}"
        return Manifest.parse(decode(content, source), source)

    def _index_file(self) -> Path:
        try:
            file = self.storage.local(INDEX, sha256=self.manifest.index_sha256)
            if isinstance(self.storage, RemoteFolder) and self.storage.recheck(INDEX, self.manifest.index_sha256):
                file = self.storage.local(INDEX, sha256=self.manifest.index_sha256)
            exists = file.is_file()
        except FetchError as error:
            raise UserError(f"{error}; copy the data set there again") from None
        except OSError as error:
            raise UserError(f"{self.storage.name}/{INDEX}: cannot be read ({error.strerror or error})") from None
        if not exists:
            raise UserError(f"{file} is missing; copy the data set again or convert it again")
        return file

    def _check_shard(self, shard: ShardInfo) -> None:
        path = self.storage.local(shard.file)
        try:
            exists, size = path.is_file(), path.stat().st_size if path.exists() else 0
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
        if not exists:
            raise UserError(f"{path} is missing; copy the data set again or convert it again")
        if size != shard.bytes:
            raise UserError(
                f"{path} has {size} bytes where {MANIFEST} says {shard.bytes}; "
                "copy the data set again or convert it again"
            )

    def __len__(self) -> int:
        return len(self.index)

    def shard_of(self, i: int) -> int:
        """Index of the shard that holds the i-th sample, according to the manifest."""
        return bisect.bisect_right(self._ends, i)

    def first_of(self, shard: int) -> int:
        """Index of the first sample of a shard."""
        return self._ends[shard] - self.manifest.shards[shard].samples

    def entries(self) -> Iterator[IndexEntry]:
        """All lines of the index, in order, checked against the manifest.

        Raises:
            UserError: one is damaged, does not lie in the expected shard, or overlaps its predecessor.
        """
        start = 0
        for number, info in enumerate(self.manifest.shards):
            end = 0
            for i in range(start, start + info.samples):
                entry = self.index[i]
                where = f"{self.index.name}: line {i + 1} ({entry.key})"
                if entry.shard != number or not end <= entry.offset <= info.bytes - entry.length:
                    raise UserError(
                        f"{where} does not lie in {info.file} after the previous line, as {MANIFEST} says; "
                        "copy the data set again or convert it again"
                    )
                if entry.crc32 is None and self.manifest.format > 1:
                    raise UserError(f"{where} has no crc32; copy the data set again or convert it again")
                end = entry.offset + entry.length
                yield entry
            start += info.samples

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(i) for i in range(len(self)))

    def open(self, shard: int) -> FileIO:
        """Opens a local copy of a shard, which is fetched if need be.

        Raises:
            FetchError: it cannot be fetched.
            OSError: it is local and cannot be opened, or is not a regular file.
        """
        info = self.manifest.shards[shard]
        return self.storage.open(info.file, sha256=info.sha256, size=info.bytes)

    def read(self, i: int) -> Sample:
        """The i-th sample, images still encoded, checked against the index.

        Raises:
            BrokenSampleError: its shard cannot be read, its members are damaged, or they differ from the index.
        """
        try:
            return self._read(i)
        except BrokenSampleError:
            info = self.manifest.shards[self.shard_of(i)]
            if not isinstance(self.storage, RemoteFolder) or not self.storage.recheck(info.file, info.sha256):
                raise
        return self._read(i)

    def _read(self, i: int) -> Sample:
        entry, shard = self.index[i], self.shard_of(i)
        origin = f"{self.storage.name}/{self.manifest.shards[shard].file}"
        if entry.shard != shard:
            raise BrokenSampleError("index differs", f"{origin}: {entry.key} is listed in shard number {entry.shard}")
        try:
            data = self._read_bytes(entry, origin)
        except OSError as error:
            raise BrokenSampleError("unreadable shard", f"{origin}: {error.strerror or error}") from None
        if len(data) != entry.length:
            raise BrokenSampleError("torn shard", f"{origin}: ends within sample {entry.key}")
        sample, checksum = parse_members(data, entry.key, origin)
        _check_against_index(sample, entry, origin, self.manifest.exif_orientation)
        if entry.crc32 is not None and checksum != entry.crc32:
            raise BrokenSampleError("wrong checksum", f"{origin}: {entry.key} differs from its crc32 in the index")
        return sample

    def _read_bytes(self, entry: IndexEntry, origin: str) -> bytes:
        with self.open(entry.shard) as stream:
            if entry.length > MAX_SAMPLE_BYTES:
                raise BrokenSampleError("sample too large", f"{origin}: {entry.key} has {entry.length} bytes")
            if entry.offset + entry.length > os.fstat(stream.fileno()).st_size:
                raise BrokenSampleError("torn shard", f"{origin}: ends within sample {entry.key}")
            return os.pread(stream.fileno(), entry.length, entry.offset)


def _check_against_index(sample: Sample, entry: IndexEntry, origin: str, rule: ExifOrientation) -> None:
    """Raises `BrokenSampleError` if a sample differs from its index entry, from which packs are planned."""
    where = f"{origin}: {entry.key}"
    if entry.target is not None and not sample.target:
        raise BrokenSampleError("missing target", f"{where} has no target image, but the index lists one")
    if len(sample.references) != len(entry.references) or (entry.target is None) == bool(sample.target):
        raise BrokenSampleError("index differs", f"{where} has other images than the index says")
    if entry.instruction.strip() and not sample.instruction.strip():
        raise BrokenSampleError("missing instruction", f"{where} has an empty instruction, but the index has one")
    if (sample.instruction, sample.answer, sample.kind) != (entry.instruction, entry.answer, entry.kind):
        raise BrokenSampleError("index differs", f"{where} has another instruction, answer or kind than the index says")
    sizes = tuple(image_size(data, rule) for data in sample.references)
    target = image_size(sample.target, rule) if sample.target else None
    if (sizes, target) != (entry.references, entry.target):
        planned = f"{entry.references} and {entry.target}"
        raise BrokenSampleError("index differs", f"{where} has images of {sizes} and {target}, but the index {planned}")
