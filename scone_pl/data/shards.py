"""Reading a data set: a folder of WebDataset tars, a manifest, and an index (documented in data_shards/README.md).

The index says where in which tar every sample lies and all that planning needs (image sizes, instruction), so packs
are planned without opening an image, and any sample is one read away. Writing is in `shard_writer`.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from scone_pl.data.sample import BrokenSampleError, Candidate, Kind, Sample
from scone_pl.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
INDEX = "index.jsonl"
_REFERENCE = re.compile(r"ref(\d+)\.\w+$")

Size = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True)
class IndexEntry:
    """What is known of a sample without opening it: a line of `index.jsonl`."""

    key: str
    shard: int
    """Number of its tar in the manifest."""
    offset: int
    """First byte of its tar members."""
    length: int
    """Bytes of its tar members."""
    kind: Kind
    instruction: str
    references: tuple[Size, ...]
    """Sizes of the reference images, as stored."""
    target: Size | None
    """Size of the target image; None = the sample has none (prediction only)."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> IndexEntry:
        fields = json.loads(line)
        fields["references"] = tuple(tuple(size) for size in fields["references"])
        fields["target"] = tuple(fields["target"]) if fields["target"] else None
        return cls(**fields)


@dataclass(frozen=True)
class ShardInfo:
    """One tar in the manifest."""

    file: str
    samples: int
    bytes: int
    sha256: str


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

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

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
                return cls(**fields)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not a readable manifest ({error!r}); convert the data set again") from None
        raise UserError(
            f"{file}: format {version}, but this version reads {FORMAT_VERSION}; convert the data set again"
        )


class Index(Sequence[IndexEntry]):
    """The lines of `index.jsonl`, parsed when asked for: memory does not grow with the number of samples."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with file.open("rb") as stream:
            empty = os.fstat(stream.fileno()).st_size == 0
            self._lines = b"" if empty else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        ends = np.flatnonzero(np.frombuffer(self._lines, dtype=np.uint8) == ord("\n")) + 1
        self._bounds = np.concatenate([[0], ends]).astype(np.int64)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, item: int) -> IndexEntry: ...
    @overload
    def __getitem__(self, item: slice) -> list[IndexEntry]: ...
    def __getitem__(self, item: int | slice) -> IndexEntry | list[IndexEntry]:
        if isinstance(item, slice):
            return [self[i] for i in range(*item.indices(len(self)))]
        number = range(len(self))[item]
        line = self._lines[self._bounds[number] : self._bounds[number + 1]]
        try:
            return IndexEntry.from_json(line)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.file}: line {number + 1} is damaged ({error!r}); convert the data set again"
            ) from None

    def __reduce__(self) -> tuple[type[Index], tuple[Path]]:
        return Index, (self.file,)


class ShardSet:
    """A data set on disk: random access to its samples. Cheap to pickle and safe to use after a fork."""

    def __init__(self, folder: str | Path) -> None:
        """Opens `folder`, checking that every shard is there with its full size.

        Raises:
            UserError: anything missing or of another size than the manifest says.
        """
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        for shard in self.manifest.shards:
            path = self.folder / shard.file
            if not path.is_file():
                raise UserError(f"{path} is missing; copy the data set again or convert it again")
            if path.stat().st_size != shard.bytes:
                raise UserError(
                    f"{path} has {path.stat().st_size} bytes where {MANIFEST} says {shard.bytes}; "
                    "copy the data set again or convert it again"
                )
        if not (self.folder / INDEX).is_file():
            raise UserError(f"{self.folder / INDEX} is missing; copy the data set again or convert it again")
        self.index = Index(self.folder / INDEX)
        if len(self.index) != self.manifest.samples:
            raise UserError(
                f"{self.folder / INDEX} has {len(self.index)} lines where {MANIFEST} says {self.manifest.samples} "
                "samples; copy the data set again or convert it again"
            )

    @classmethod
    def open(cls, folder: str | Path) -> ShardSet:
        """Opens the data set in `folder`."""
        return cls(folder)

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(i) for i in range(len(self)))

    def read(self, i: int) -> Sample:
        """The i-th sample, images still encoded.

        Raises:
            BrokenSampleError: its shard cannot be read, or its members are damaged.
        """
        entry = self.index[i]
        path = self.folder / self.manifest.shards[entry.shard].file
        try:
            with path.open("rb", buffering=0) as stream:
                data = os.pread(stream.fileno(), entry.length, entry.offset)
        except OSError as error:
            raise BrokenSampleError("unreadable shard", f"{path}: {error.strerror}") from None
        if len(data) != entry.length:
            raise BrokenSampleError("torn shard", f"{path}: ends within sample {entry.key}")
        return parse_members(data, entry.key, str(path))


def parse_members(data: bytes, key: str, origin: str) -> Sample:
    """The sample in a run of tar members.

    Args:
        data: the bytes of all members of one sample.
        key: the key that the members must have.
        origin: where the bytes came from, for messages.

    Raises:
        BrokenSampleError: damaged headers, another sample's members, missing members, wrong JSON.
    """
    references: dict[int, bytes] = {}
    target, info = b"", None
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                stem, _, part = member.name.partition(".")
                stream = tar.extractfile(member)
                if stem != key or stream is None:
                    raise BrokenSampleError("torn shard", f"{origin}: found {member.name} in the place of {key}")
                content = stream.read()
                if match := _REFERENCE.match(part):
                    references[int(match[1])] = content
                elif part.startswith("target."):
                    target = content
                elif part == "json":
                    info = json.loads(content)
    except (tarfile.TarError, EOFError) as error:
        raise BrokenSampleError("torn shard", f"{origin}: sample {key}: {error}") from None
    except ValueError as error:
        if isinstance(error, BrokenSampleError):
            raise
        raise BrokenSampleError("wrong JSON", f"{origin}: {key}.json: {error}") from None
    if info is None or sorted(references) != list(range(len(references))):
        raise BrokenSampleError("missing member", f"{origin}: sample {key} lacks its JSON or a reference image")
    try:
        return Sample(
            key=key,
            references=tuple(references[i] for i in range(len(references))),
            target=target,
            **_from_json(info),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenSampleError("wrong JSON", f"{origin}: {key}.json: {error!r}") from None


def sample_json(sample: Sample) -> bytes:
    """What the member `{key}.json` holds."""
    info = {
        "instruction": sample.instruction,
        "kind": sample.kind,
        "candidates": None
        if sample.candidates is None
        else [[asdict(candidate) for candidate in group] for group in sample.candidates],
        "metadata": sample.metadata,
    }
    return json.dumps(info, ensure_ascii=False).encode()


def _from_json(info: dict[str, Any]) -> dict[str, Any]:
    groups = info.get("candidates")
    return {
        "instruction": str(info["instruction"]),
        "kind": info.get("kind", "single"),
        "candidates": None
        if groups is None
        else tuple(tuple(Candidate(**{**c, "box": tuple(c["box"])}) for c in group) for group in groups),
        "metadata": info.get("metadata") or {},
    }


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
