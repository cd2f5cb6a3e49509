"""Pools: where samples come from. Their images stay where they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from scone_pl.construct.items import ImageRef, Item
from scone_pl.construct.layouts import (
    Entry,
    FolderReader,
    JsonReader,
    ParquetReader,
    Reader,
    ShardReader,
    SubjectReader,
    UnoReader,
    looks_like_uno,
)
from scone_pl.construct.where import Condition
from scone_pl.data.decoding import open_image, read_encoded
from scone_pl.data.fields import FieldNames
from scone_pl.data.inputs import format_of
from scone_pl.data.members import is_key
from scone_pl.data.rows import Image, RowRules
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError

Layout = Literal["auto", "json", "uno", "parquet", "shards", "folders", "subjects"]
MAX_NAME = 40


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """A source of samples."""

    name: str
    """Beginning of its samples' keys: letters, digits, _ or -."""
    path: str
    """File or folder."""
    layout: Layout = "auto"
    """auto: by what is there. json: JSON or JSON Lines (X2I, Echo-4o-Image). uno: UNO-1M's label files. parquet.
    shards: a data set of ours. folders: a folder a sample, with ref_1.png, target.png, instruction.txt. subjects: a
    folder a subject, with photographs."""
    image_root: str | None = None
    """json, uno, parquet: base of relative image paths; by default the file's folder."""
    fields: FieldNames = field(default_factory=FieldNames)
    """json, parquet: names of fields."""
    subset: str | None = None
    """parquet: folder of one subset."""
    where: tuple[str, ...] = ()
    """json, uno, parquet, shards (metadata): conditions on numbers, such as 'vlm_filter_cot.score_final >= 3.5'."""
    license: str = ""
    """Written into every sample's metadata."""
    origin: str = ""
    """Written into every sample's metadata: name or address of the pool."""

    def __post_init__(self) -> None:
        if not is_key(self.name) or len(self.name) > MAX_NAME:
            raise UserError(f"name {self.name!r:.60} must be 1 to {MAX_NAME} letters, digits, _ or -")
        for text in self.where:
            Condition.parse(text)

    def open(self) -> Pool:
        """Opens the pool.

        Raises:
            UserError: it does not exist or has another layout, or a setting does not apply to it.
        """
        layout = self._layout() if self.layout == "auto" else self.layout
        named = self.fields.requested()
        allowed = {
            "image_root": ("json", "uno", "parquet"),
            "fields": ("json", "parquet"),
            "subset": ("parquet",),
            "where": ("json", "uno", "parquet", "shards"),
        }
        given = {"image_root": self.image_root, "fields": named, "subset": self.subset, "where": self.where}
        for name, value in given.items():
            if value and layout not in allowed[name]:
                raise UserError(
                    f"pool {self.name}: {name} is for {', '.join(allowed[name])}, but {self.path} is read as {layout}"
                )
        return Pool(self, self._reader(layout))

    def _layout(self) -> Layout:
        path = Path(self.path)
        if path.is_dir() and not any(f.suffix in (".json", ".jsonl", ".ndjson") for f in path.iterdir()):
            inner = [f for f in path.iterdir() if f.is_dir() and not f.name.startswith(".")]
            if any((one / "instruction.txt").exists() for one in inner[:20]):
                return "folders"
        elif not self.fields.requested() and looks_like_uno(self.path):
            return "uno"
        found = format_of(self.path)
        return "json" if found == "jsonl" else "shards" if found == "shards" else "parquet"

    def _reader(self, layout: Layout) -> Reader:
        conditions = [Condition.parse(text) for text in self.where]
        rules = RowRules(names=self.fields, has_field_options=True)
        if layout == "json":
            return JsonReader(self.path, rules, self.image_root, conditions)
        if layout == "uno":
            return UnoReader(self.path, RowRules(), self.image_root, conditions)
        if layout == "parquet":
            return ParquetReader(self.path, rules, self.image_root, self.subset, conditions)
        if layout == "shards":
            return ShardReader(self.path, conditions)
        return FolderReader(self.path) if layout == "folders" else SubjectReader(self.path)


class Pool:
    """An opened pool; pickled for worker processes."""

    def __init__(self, config: PoolConfig, reader: Reader) -> None:
        self.config, self.reader = config, reader

    def __len__(self) -> int:
        return len(self.reader)

    def identity(self) -> list[Any]:
        """JSON that changes whenever its items do."""
        return [self.config.name, self.config.license, self.config.origin, self.reader.identity()]

    def items(self, start: int, stop: int) -> Iterator[tuple[str, Item | BrokenSampleError]]:
        """Key of each entry in a range, with its item or the reason why it is none."""
        for number, entry in enumerate(self.reader.read(start, stop), start):
            key = f"{self.config.name}-{number:09d}"
            if isinstance(entry, BrokenSampleError):
                yield key, entry
                continue
            try:
                yield key, self._item(key, number, entry)
            except BrokenSampleError as error:
                yield key, error

    def image(self, number: int, slot: int) -> bytes:
        """An image that has no file of its own.

        Raises:
            BrokenSampleError: the row can not be read any more.
        """
        entry = next(iter(self.reader.read(number, number + 1)))
        if isinstance(entry, BrokenSampleError):
            raise entry
        image = entry.row.target if slot < 0 else entry.row.references[slot]
        if not isinstance(image, bytes):
            raise BrokenSampleError("image changed", f"row {number} of {self.config.name} has changed")
        return image

    def _item(self, key: str, number: int, entry: Entry) -> Item:
        row = entry.row
        references = tuple(self._ref(image, number, slot) for slot, image in enumerate(row.references))
        target = None if row.target is None else self._ref(row.target, number, -1)
        if target is not None and target.sha256 in {image.sha256 for image in references}:
            raise BrokenSampleError("target is a reference", "the target is the same file as a reference")
        metadata = {**entry.metadata, "pool": self.config.name}
        metadata.setdefault("license", self.config.license or "unknown")
        if self.config.origin:
            metadata["origin"] = self.config.origin
        return Item(
            key=key,
            references=references,
            instruction=row.instruction,
            target=target,
            kind=row.kind or "single",
            candidates=row.candidates,
            metadata=metadata,
            answer=row.answer,
        )

    def _ref(self, image: Image, number: int, slot: int) -> ImageRef:
        data = image if isinstance(image, bytes) else _content(image)
        open_image(data)
        digest = hashlib.sha256(data).hexdigest()
        if isinstance(image, Path):
            return ImageRef(sha256=digest, file=os.path.abspath(image))
        return ImageRef(sha256=digest, row=(self.config.name, number, slot))


def _content(file: Path) -> bytes:
    try:
        return read_encoded(file)
    except UserError as error:
        raise BrokenSampleError("missing image", f"{error!s:.400}") from None


class Images:
    """Content of images, wherever they are; pickled for worker processes."""

    def __init__(self, pools: dict[str, Pool], blobs: Path) -> None:
        self.pools, self.blobs = pools, blobs

    def blob(self, sha256: str) -> Path:
        """File of an image that a step has made."""
        return self.blobs / sha256[:2] / sha256

    def read(self, ref: ImageRef) -> bytes:
        """The encoded image.

        Raises:
            BrokenSampleError: it is gone or has changed.
        """
        if ref.row is not None:
            pool, number, slot = ref.row
            data = self.pools[pool].image(number, slot)
        else:
            data = _content(Path(ref.file) if ref.file else self.blob(ref.sha256))
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            raise BrokenSampleError("image changed", f"{ref.file or ref.row} has changed since it was read")
        return data


def merged(config: PoolConfig, where: tuple[str, ...], names: FieldNames) -> PoolConfig:
    """With conditions and field names of the whole pipeline, where the pool has none of its own."""
    own = config.fields.requested()
    both = {f.name: own.get(f.name, getattr(names, f.name)) for f in fields(FieldNames)}
    return replace(config, where=(*config.where, *where), fields=FieldNames(**both))
