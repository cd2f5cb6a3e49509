"""`manifest.json`: contents of a data set (documented in docs/shards.md)."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from scone_pl.data.decoding import ExifOrientation
from scone_pl.data.sample import Kind
from scone_pl.errors import UserError
from scone_pl.files import parse_json, read_text

FORMAT_VERSION = 2
"""The version that is written. 2: every line of the index has a checksum."""
READABLE_FORMATS = (1, FORMAT_VERSION)
MANIFEST = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")


@dataclass(frozen=True)
class ShardInfo:
    """One tar in the manifest."""

    file: str
    """File name, without a folder."""
    samples: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        # Cache file names are derived from these, and a remote manifest is untrusted.
        if not isinstance(self.file, str) or not _FILE.fullmatch(self.file):
            raise ValueError(f"a shard named {self.file!r}")
        if not _is_sha256(self.sha256):
            raise ValueError(f"{self.file}: the checksum {self.sha256!r}")
        if not (_is_count(self.samples) and _is_count(self.bytes)):
            raise ValueError(f"{self.file}: {self.samples!r} samples, {self.bytes!r} bytes")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`manifest.json`. Written last, so a folder with a manifest is complete."""

    format: int = FORMAT_VERSION
    samples: int
    bytes: int
    kinds: dict[str, int]
    """Samples of each kind."""
    index_sha256: str
    shards: tuple[ShardInfo, ...]
    exif_orientation: ExifOrientation = "ignore"
    """Whether image sizes in the index have the EXIF orientation applied. Older sets lack the key and have the sizes as
    stored; packs are the same either way."""

    def __post_init__(self) -> None:
        if not _is_sha256(self.index_sha256):
            raise ValueError(f"index_sha256 {self.index_sha256!r}")
        if self.exif_orientation not in get_args(ExifOrientation):
            raise ValueError(f"exif_orientation {self.exif_orientation!r}")
        kinds = self.kinds
        if not isinstance(kinds, dict) or not all(k in get_args(Kind) and _is_count(n) for k, n in kinds.items()):
            raise ValueError(f"kinds {kinds!r}")
        names = [shard.file for shard in self.shards]
        if len(set(names)) < len(names):
            raise ValueError("two shards of one name")
        for name, total in (
            ("samples", sum(shard.samples for shard in self.shards)),
            ("bytes", sum(shard.bytes for shard in self.shards)),
        ):
            if not _is_count(getattr(self, name)) or getattr(self, name) != total:
                raise ValueError(f"the shards have {total} {name} in total, but {name} is {getattr(self, name)!r}")
        if sum(kinds.values()) != self.samples:
            raise ValueError(f"kinds has {sum(kinds.values())} samples in total, but samples is {self.samples}")

    def to_json(self) -> str:
        fields = asdict(self)
        if self.exif_orientation == "ignore":
            del fields["exif_orientation"]
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads the manifest of `folder`.

        Raises:
            UserError: no such folder, no manifest, or an invalid one.
        """
        file = folder / MANIFEST
        try:
            if not folder.is_dir():
                raise UserError(f"{folder}: no such folder; give the folder of a shard set (see shards convert)")
            if not file.exists():
                message = "not a shard set, or its conversion did not finish; convert it again"
                raise UserError(f"{file} is missing: {message}")
        except OSError as error:
            raise UserError(f"{folder}: cannot be opened ({error.strerror or error})") from None
        return cls.parse(read_text(file), str(file))

    @classmethod
    def parse(cls, text: str, source: str) -> Manifest:
        """Parses a manifest; `source` names it in messages.

        Raises:
            UserError: it is invalid.
        """
        content = parse_json(text, source, dict)
        version = content.get("format")
        if version not in READABLE_FORMATS or type(version) is not int:
            readable = " and ".join(map(str, READABLE_FORMATS))
            raise UserError(
                f"{source}: format {version!r:.40}, but this version reads {readable}; convert the data set again"
            )
        try:
            content["shards"] = tuple(
                ShardInfo(**_with_keys_of(shard, ShardInfo)) for shard in _list_of(content, "shards")
            )
            content.pop("tokens", None)  # counts in older sets that nothing reads
            return cls(**_with_keys_of(content, cls))
        except ValueError as error:
            raise UserError(
                f"{source}: not a readable manifest ({str(error)[:200]}); copy or convert the data set again"
            ) from None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _list_of(content: dict[str, Any], name: str) -> list[Any]:
    value = content.get(name)
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    return value


def _with_keys_of(content: Any, owner: type) -> dict[str, Any]:
    """`content`, checked to have the fields of a dataclass and no others."""
    if not isinstance(content, dict):
        raise ValueError(f"{content!r:.60} is not an object")
    known = {field.name for field in fields(owner)}
    if unknown := content.keys() - known:
        raise ValueError(f"the key {min(unknown)!r} is unknown")
    required = {field.name for field in fields(owner) if field.default is MISSING}
    if missing := required - content.keys():
        raise ValueError(f"no {', '.join(sorted(missing))}")
    return content
