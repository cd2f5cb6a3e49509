"""`manifest.json`: what a data set holds (documented in docs/shards.md)."""

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
"""2: every line of the index has a checksum. What this version writes."""
READABLE = (1, FORMAT_VERSION)
MANIFEST = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")


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
        if not isinstance(self.file, str) or not _FILE.fullmatch(self.file):
            raise ValueError(f"a shard named {self.file!r}")
        if not _is_sha256(self.sha256):
            raise ValueError(f"{self.file}: the checksum {self.sha256!r}")
        if not (_is_count(self.samples) and _is_count(self.bytes)):
            raise ValueError(f"{self.file}: {self.samples!r} samples, {self.bytes!r} bytes")


@dataclass(frozen=True)
class TokenCounts:
    """What the samples' `tokens` in the index are."""

    total: int
    settings: dict[str, Any]
    """What they hold for, see `TokenCounter.settings`."""

    def __post_init__(self) -> None:
        if not _is_count(self.total) or not isinstance(self.settings, dict):
            raise ValueError(f"tokens: {self.total!r} in all, or their settings")


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
    exif_orientation: ExifOrientation = "ignore"
    """Whether sizes in the index are those of images turned as their EXIF orientation says. Older sets do not say, and
    have the sizes as stored; packs are the same either way."""

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
                raise ValueError(f"shards of {total} {name} in all, but {name} is {getattr(self, name)!r}")
        if sum(kinds.values()) != self.samples:
            raise ValueError(f"kinds of {sum(kinds.values())} samples in all, but samples is {self.samples}")

    def to_json(self) -> str:
        fields = asdict(self)
        if self.tokens is None:
            del fields["tokens"]
        if self.exif_orientation == "ignore":
            del fields["exif_orientation"]
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads the manifest of `folder`.

        Raises:
            UserError: no such folder, no manifest, or one that cannot be read.
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
        """The manifest in a text; `source` is what a message calls it.

        Raises:
            UserError: it is none.
        """
        content = parse_json(text, source, dict)
        version = content.get("format")
        if version not in READABLE or type(version) is not int:
            readable = " and ".join(map(str, READABLE))
            raise UserError(
                f"{source}: format {version!r:.40}, but this version reads {readable}; convert the data set again"
            )
        try:
            content["shards"] = tuple(ShardInfo(**_only(shard, ShardInfo)) for shard in _listed(content, "shards"))
            if content.get("tokens") is not None:
                content["tokens"] = TokenCounts(**_only(content["tokens"], TokenCounts))
            return cls(**_only(content, cls))
        except ValueError as error:
            raise UserError(
                f"{source}: not a readable manifest ({str(error)[:200]}); copy or convert the data set again"
            ) from None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _listed(content: dict[str, Any], name: str) -> list[Any]:
    value = content.get(name)
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    return value


def _only(content: Any, owner: type) -> dict[str, Any]:
    """`content` if it has the keys of a dataclass and no others."""
    if not isinstance(content, dict):
        raise ValueError(f"{content!r:.60} is no object")
    known = {field.name for field in fields(owner)}
    if unknown := content.keys() - known:
        raise ValueError(f"the key {min(unknown)!r} is unknown")
    required = {field.name for field in fields(owner) if field.default is MISSING}
    if missing := required - content.keys():
        raise ValueError(f"no {', '.join(sorted(missing))}")
    return content
