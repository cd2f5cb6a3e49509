"""Whether a snapshot is what was written, and harmless: its bytes are checked before they are used.

Every tensor in `*.distcp`, and `run.pt`, is an archive of torch's that holds a CRC-32 of each of its parts, which torch
writes but does not read. `checksums.json` holds SHA-256 of what is small: the index, `.metadata`, which is a pickle,
and `run.pt`. So nothing has to be read a second time while a snapshot is written.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import io
import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from scone_pl.files import read_bytes, read_json, write_json

INDEX_FILE = ".metadata"
CHECKSUMS = "checksums.json"
_DATA_FILE = re.compile(r"[\w-]+\.distcp")
_PATHS = ("pathlib", "pathlib._local")
_CLASSES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "ChunkStorageMetadata"),
        *("TensorStorageMetadata", "BytesStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "collections": {"OrderedDict"},
    **{module: {"PosixPath", "PurePosixPath"} for module in _PATHS},
}
"""All that an index consists of, beside dtypes."""


class DamagedError(ValueError):
    """Bytes are not those that were written."""


class _IndexUnpickler(pickle.Unpickler):
    """Makes the classes of an index and nothing else, so opening somebody's snapshot runs none of their code."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if name in _CLASSES.get(module, ()):
            return getattr(importlib.import_module("pathlib" if module in _PATHS else module), name)
        raise pickle.UnpicklingError(f"{INDEX_FILE} names {module}.{name}, which has no business there")


def write_checksums(folder: Path, files: tuple[str, ...]) -> None:
    """Writes `checksums.json`: sums of the small `files` of a snapshot, and the sizes of the others."""
    sizes = {file.name: file.stat().st_size for file in sorted(folder.glob("*.distcp"))}
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    write_json({"sha256": sums, "bytes": sizes}, folder / CHECKSUMS)


def check_files(folder: Path) -> None:
    """Compares with `checksums.json`; a snapshot from before there was one is let through with a note.

    Raises:
        DamagedError: a file is missing, or is not what it was.
        UserError: `checksums.json` cannot be read.
    """
    if not (folder / CHECKSUMS).exists():
        rank_zero_info(f"{folder}: written by an older version, without {CHECKSUMS}; only its tensors can be checked")
        return
    content = read_json(folder / CHECKSUMS, dict)
    sums, sizes = content.get("sha256"), content.get("bytes")
    if not isinstance(sums, dict) or not isinstance(sizes, dict):
        raise DamagedError(f"{CHECKSUMS} is not in the format that it was written in")
    for name in (*sums, *sizes):
        if Path(name).name != name or not (folder / name).is_file():
            raise DamagedError(f"{name} is missing")
    for name, digest in sums.items():
        if hashlib.sha256(read_bytes(folder / name)).hexdigest() != digest:
            raise DamagedError(f"the checksum of {name} is wrong")
    for name, size in sizes.items():
        if (folder / name).stat().st_size != size:
            raise DamagedError(f"{name} has {(folder / name).stat().st_size} bytes, not {size}")


class Part(io.RawIOBase):
    """Bytes `offset` to `offset + length` of a file, as a file; torch's own view fails beyond its end."""

    def __init__(self, file: IO[bytes], offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if at < 0:
            raise OSError(errno.EINVAL, "a position before the beginning")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        size = min(len(view), max(0, self._length - self._at))
        self._file.seek(self._offset + self._at)
        read: int = self._file.readinto(view[:size])  # type: ignore[attr-defined]  # a raw file has readinto
        self._at += read
        return read


def check_archive(stream: IO[bytes], name: str) -> None:
    """Compares all parts of one of torch's archives with their CRC-32; leaves `stream` at its beginning.

    Raises:
        DamagedError: a part is not what was written, or it is no such archive.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise DamagedError(f"{name}: compressed, as torch writes nothing")
            wrong = archive.testzip()
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise error if isinstance(error, DamagedError) else DamagedError(f"{name}: {error}") from error
    if wrong is not None:
        raise DamagedError(f"{name}: the checksum of {wrong} is wrong")
    stream.seek(0)


def read_index(folder: Path) -> Metadata:
    """The index of a snapshot: names, shapes, dtypes, and the location of their bytes.

    Raises:
        DamagedError: it is not an index, or its content is impossible.
        pickle.UnpicklingError: it names a class that an index does not consist of.
        UserError: it cannot be read.
    """
    index = _IndexUnpickler(io.BytesIO(read_bytes(folder / INDEX_FILE))).load()
    if not isinstance(index, Metadata) or not isinstance(index.state_dict_metadata, dict):
        raise DamagedError(f"{INDEX_FILE} is no index")
    if not isinstance(index.storage_data, dict):
        raise DamagedError(f"{INDEX_FILE} does not contain the location of tensors")
    sizes: dict[str, int] = {}
    for info in index.storage_data.values():
        if not isinstance(info, _StorageInfo) or not _DATA_FILE.fullmatch(str(info.relative_path)):
            raise DamagedError(f"{INDEX_FILE} leads to no file of the snapshot")
        if info.transform_descriptors:
            raise DamagedError(f"{INDEX_FILE} asks for a transformation")
        if info.relative_path not in sizes:
            part = folder / info.relative_path
            if not part.is_file():
                raise DamagedError(f"{info.relative_path} is missing")
            sizes[info.relative_path] = part.stat().st_size
        if not 0 <= info.offset <= info.offset + info.length <= sizes[info.relative_path]:
            raise DamagedError(f"{info.relative_path} is shorter than {INDEX_FILE} says")
    for name, entry in index.state_dict_metadata.items():
        _check_entry(index, name, entry)
    return index


def _check_entry(index: Metadata, name: str, entry: Any) -> None:
    """Whether its chunks are there and make up the whole: what no chunk holds would stay whatever it was."""
    if isinstance(entry, BytesStorageMetadata):
        return
    if not isinstance(entry, TensorStorageMetadata) or not all(
        isinstance(c, ChunkStorageMetadata) for c in entry.chunks
    ):
        raise DamagedError(f"{INDEX_FILE}: {name} is no tensor")
    if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(entry.size):
        raise DamagedError(f"{INDEX_FILE}: the parts of {name} do not make up the whole")
    for chunk in entry.chunks:
        info = index.storage_data.get(MetadataIndex(name, chunk.offsets))
        if info is None or math.prod(chunk.sizes) * entry.properties.dtype.itemsize > info.length:
            raise DamagedError(f"{INDEX_FILE}: a part of {name} has no location")
        ends = [o + s for o, s in zip(chunk.offsets, chunk.sizes, strict=True)]
        if any(end > size for end, size in zip(ends, entry.size, strict=True)) or min(chunk.offsets, default=0) < 0:
            raise DamagedError(f"{INDEX_FILE}: a part of {name} is outside of it")


def check_snapshot(path: Path, run_file: str) -> None:
    """What is checked before anything of a snapshot is used; tensors follow as they are read.

    Args:
        path: its folder, or, of a run without `fully_sharded`, its file.
        run_file: name of the archive in the folder that is no tensor.

    Raises:
        DamagedError: see `check_files` and `check_archive`.
        UserError: a file cannot be read.
    """
    if path.is_dir():
        check_files(path)
    file = path if path.is_file() else path / run_file
    with file.open("rb") as stream:
        check_archive(stream, file.name)
