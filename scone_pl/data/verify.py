"""Verifies a data set: checksums, images, and every sample against its index entry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from scone_pl.data.faults import Faults
from scone_pl.data.index import INDEX, IndexEntry, duplicates
from scone_pl.data.jobs import Tick, check_workers, run_jobs
from scone_pl.data.manifest import MANIFEST
from scone_pl.data.sample import BrokenSampleError
from scone_pl.data.selection import check_images
from scone_pl.data.shards import ShardSet
from scone_pl.data.storage import sha256_of, stream_sha256
from scone_pl.progress import Progress

_SAMPLES_PER_JOB = 256


@dataclass
class VerifyResult:
    """Result of a verification."""

    samples: int = 0
    faults: Faults = field(default_factory=Faults)
    by_shard: dict[str, int] = field(default_factory=dict)
    """File -> number of errors, for files with errors."""

    def add(self, shard: str, faults: Faults) -> None:
        """Adds the errors of one file."""
        if faults.total:
            self.faults.merge(faults)
            self.by_shard[shard] = self.by_shard.get(shard, 0) + faults.total


def verify_shards(path: str | Path, *, workers: int = 1, progress: bool = True) -> VerifyResult:
    """Checks every checksum, decodes every image and compares every sample with its index entry.

    Args:
        path: folder or URL of the data set.
        workers: number of processes.
        progress: whether to show a progress bar.

    Raises:
        UserError: no manifest, or an unreadable index.
    """
    check_workers(workers)
    shards = ShardSet(path, check_files=False)
    result, keys = VerifyResult(len(shards)), Faults()
    workers = min(workers, -(-len(shards) // _SAMPLES_PER_JOB))  # starting a process takes seconds
    if sha256_of(shards.index.file) != shards.manifest.index_sha256:
        keys.add(INDEX, BrokenSampleError("wrong checksum", "differs from the manifest"))
    _find_duplicates(shards, keys)
    _check_totals(shards, keys)
    result.add(INDEX, keys)
    with Progress(shards.storage.name, len(shards), unit="samples", show=progress) as bar:
        for number, faults in run_jobs(_verify, shards, _jobs(shards), workers=workers, bar=bar):
            result.add(shards.manifest.shards[number].file, faults)
    return result


@dataclass(frozen=True)
class _Job:
    shard: int
    samples: range
    check_tar: bool
    """Whether to check the tar's checksum and gaps instead of samples."""


def _jobs(shards: ShardSet) -> Iterator[_Job]:
    start = 0
    for number, info in enumerate(shards.manifest.shards):
        yield _Job(number, range(0), check_tar=True)
        for first in range(start, start + info.samples, _SAMPLES_PER_JOB):
            yield _Job(number, range(first, min(first + _SAMPLES_PER_JOB, start + info.samples)), check_tar=False)
        start += info.samples


def _verify(shards: ShardSet, job: _Job, tick: Tick) -> tuple[int, Faults]:
    faults, file = Faults(), shards.manifest.shards[job.shard].file
    if job.check_tar:
        try:
            with shards.open(job.shard) as stream:
                if stream_sha256(stream) != shards.manifest.shards[job.shard].sha256:
                    faults.add(file, BrokenSampleError("wrong checksum", "differs from the manifest"))
                _check_gaps(shards, job.shard, stream, faults)
        except FileNotFoundError:
            faults.add(file, BrokenSampleError("missing shard", "no such file"))
        except OSError as error:
            faults.add(file, BrokenSampleError("unreadable shard", error.strerror or str(error)))
    for i in job.samples:
        entry = shards.index[i]
        try:
            if entry.shard != job.shard or entry.offset + entry.length > shards.manifest.shards[job.shard].bytes:
                raise BrokenSampleError("index differs", f"listed outside this file, in shard number {entry.shard}")
            _check_sample(shards, i, entry)
        except BrokenSampleError as error:
            faults.add(f"{file}: {entry.key}", error)
        tick()
    return job.shard, faults


def _find_duplicates(shards: ShardSet, faults: Faults) -> None:
    """Adds duplicate keys to `faults`."""
    for i in duplicates((entry.key for entry in shards.index), len(shards)):
        entry = shards.index[i]
        where = f"{shards.manifest.shards[shards.shard_of(i)].file}: {entry.key}"
        faults.add(where, BrokenSampleError("duplicate key", "an earlier sample has this key"))


def _check_totals(shards: ShardSet, faults: Faults) -> None:
    kinds = dict(Counter(entry.kind for entry in shards.index))
    if kinds != {kind: count for kind, count in shards.manifest.kinds.items() if count}:
        faults.add(INDEX, BrokenSampleError("index differs", f"{kinds}, but {MANIFEST} says {shards.manifest.kinds}"))


def _check_gaps(shards: ShardSet, number: int, stream: FileIO, faults: Faults) -> None:
    """Finds data in a tar that the index does not list."""
    info = shards.manifest.shards[number]
    first = shards.first_of(number)
    pieces = [(entry.offset, entry.length) for entry in (shards.index[i] for i in range(first, first + info.samples))]
    position = 0
    for begin, length in [*sorted(pieces), (info.bytes, 0)]:
        stream.seek(position)
        while position < begin and (piece := stream.read(min(begin - position, 1 << 20))):
            if piece.strip(b"\0"):
                message = f"bytes from {position} belong to no sample"
                faults.add(info.file, BrokenSampleError("index differs", message))
                return
            position += len(piece)
        position = max(position, min(begin + length, info.bytes))


def _check_sample(shards: ShardSet, i: int, entry: IndexEntry) -> None:
    sample = shards.read(i)
    check_images(sample)
    if not sample.instruction.strip():
        raise BrokenSampleError("missing instruction", f"{entry.key} has an empty instruction")
