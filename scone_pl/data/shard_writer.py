"""Writes data sets in the shard format (documented in docs/shards.md)."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import webdataset

from scone_pl.data.decoding import ExifOrientation, image_size, open_image
from scone_pl.data.index import INDEX, IndexEntry, Size
from scone_pl.data.manifest import MANIFEST, Manifest, ShardInfo
from scone_pl.data.members import checksum, is_key, sample_json
from scone_pl.data.sample import Sample
from scone_pl.data.storage import sha256_of
from scone_pl.errors import UserError
from scone_pl.files import writing
from scone_pl.outputs import check_output_folder
from scone_pl.progress import track

_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg"}


def write_shards(
    samples: Iterable[Sample],
    folder: str | Path,
    *,
    samples_per_shard: int = 1000,
    total: int | None = None,
    progress: bool = True,
) -> Manifest:
    """Writes `samples` as a data set; the same samples give the same bytes.

    Files are renamed into place when they are complete, the manifest last.

    Args:
        samples: consumed one by one.
        folder: created if it does not exist.
        samples_per_shard: samples per tar; the last may have fewer.
        total: their number if known, for the progress bar.
        progress: whether to show a progress bar.

    Raises:
        UserError: the folder already holds a data set, a key is invalid or not unique, or there is no sample.
        BrokenSampleError: the header of an image cannot be read.
    """
    folder = Path(folder)
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard is {samples_per_shard}; it must be at least 1")
    if (folder / MANIFEST).exists():
        raise UserError(f"{folder} already holds a data set; choose another folder")
    check_output_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[ShardInfo] = []
    kinds: Counter[str] = Counter()
    keys: set[str] = set()
    stream = track(samples, folder.name, total, unit="samples", show=progress)
    with writing(folder / INDEX) as index:
        for first in stream:
            number = len(shards)
            entries = write_tar(
                (_checked_unique(sample, keys) for sample in _take(first, stream, samples_per_shard)),
                folder / f"{number:05d}.tar",
                number,
            )
            for entry in entries:
                index.write(entry.to_json().encode() + b"\n")
                kinds[entry.kind] += 1
            shards.append(shard_info(folder / f"{number:05d}.tar", len(entries)))
        if not shards:
            raise UserError(f"{folder}: there are no samples to write; check the source")
    return write_manifest(folder, kinds, shards)


def write_tar(
    samples: Iterable[Sample], path: Path, shard: int, exif_orientation: ExifOrientation = "apply"
) -> list[IndexEntry]:
    """Writes one shard and returns its index entries; without samples no file is written.

    Args:
        samples: consumed one by one.
        path: path of the tar, renamed into place when complete.
        shard: its number for the index.
        exif_orientation: whether the EXIF orientation is applied to sizes in the index.

    Raises:
        UserError: an invalid key.
        BrokenSampleError: the header of an image cannot be read.
    """
    stream = iter(samples)
    first = next(stream, None)
    if first is None:
        return []
    with (
        writing(path) as file,
        # Fixed time and owner make the bytes reproducible.
        webdataset.TarWriter(file, user="", group="", mtime=0, encoder=False) as writer,
    ):
        return [_write_sample(writer, sample, shard, exif_orientation) for sample in itertools.chain([first], stream)]


def shard_info(path: Path, samples: int) -> ShardInfo:
    """The manifest's entry for a tar."""
    return ShardInfo(path.name, samples, path.stat().st_size, sha256_of(path))


def write_manifest(
    folder: Path,
    kinds: Mapping[str, int],
    shards: Sequence[ShardInfo],
    exif_orientation: ExifOrientation = "apply",
) -> Manifest:
    """Writes the manifest, which marks the data set as complete."""
    manifest = Manifest(
        samples=sum(shard.samples for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        kinds=dict(sorted(kinds.items())),
        index_sha256=sha256_of(folder / INDEX),
        shards=tuple(shards),
        exif_orientation=exif_orientation,
    )
    with writing(folder / MANIFEST) as file:
        file.write(manifest.to_json().encode())
    return manifest


def _take(first: Sample, rest: Iterator[Sample], count: int) -> Iterator[Sample]:
    yield first
    for _ in range(count - 1):
        sample = next(rest, None)
        if sample is None:
            return
        yield sample


def _checked_unique(sample: Sample, keys: set[str]) -> Sample:
    if sample.key in keys:
        raise UserError(f"two samples have the key {sample.key!r}; keys must be unique within a data set")
    keys.add(sample.key)
    return sample


def _write_sample(
    writer: webdataset.TarWriter, sample: Sample, shard: int, exif_orientation: ExifOrientation
) -> IndexEntry:
    if not is_key(sample.key):
        raise UserError(f"the sample key {sample.key!r} must be 1 to 80 letters, digits, _ or -; rename it")
    members = {"json": sample_json(sample)}
    sizes: list[Size] = []
    for i, data in enumerate(sample.references):
        extension, size = _extension_and_size(data, exif_orientation)
        members[f"ref{i}.{extension}"] = data
        sizes.append(size)
    target = None
    if sample.target:
        extension, target = _extension_and_size(sample.target, exif_orientation)
        members[f"target.{extension}"] = sample.target
    offset = writer.tarstream.offset
    writer.write({"__key__": sample.key, **members})
    return IndexEntry(
        key=sample.key,
        shard=shard,
        offset=offset,
        length=writer.tarstream.offset - offset,
        kind=sample.kind,
        instruction=sample.instruction,
        references=tuple(sizes),
        target=target,
        answer=sample.answer,
        crc32=checksum((f"{sample.key}.{part}", content) for part, content in members.items()),
    )


def _extension_and_size(data: bytes, exif_orientation: ExifOrientation) -> tuple[str, Size]:
    format_ = open_image(data).format or "img"
    return _EXTENSIONS.get(format_, format_.lower()), image_size(data, exif_orientation)
