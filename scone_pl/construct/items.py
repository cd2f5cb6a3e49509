"""A sample on its way through the steps: text and names of images, no image itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from scone_pl.data.sample import Candidate, Kind, Sample, parse_candidates

Candidates = tuple[tuple[Candidate, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """An encoded image: a file, an image within a row of a pool, or one that a step has made."""

    sha256: str
    file: str = ""
    row: tuple[str, int, int] | None = None
    """Pool, number of the row, and index of the reference (-1 = target), for images without a file of their own."""

    def to_json(self) -> dict[str, Any]:
        content: dict[str, Any] = {"sha256": self.sha256}
        return content | ({"file": self.file} if self.file else {"row": list(self.row)} if self.row else {})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ImageRef:
        row = content.get("row")
        return cls(sha256=content["sha256"], file=content.get("file", ""), row=row and (row[0], row[1], row[2]))


@dataclass(frozen=True, kw_only=True)
class Item:
    """See `data.sample.Sample`, whose fields these are."""

    key: str
    references: tuple[ImageRef, ...]
    instruction: str
    target: ImageRef | None
    kind: Kind = "single"
    candidates: Candidates | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    answer: str = ""

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """References, then the target."""
        return self.references + ((self.target,) if self.target else ())

    @property
    def content(self) -> bytes:
        """Hash of what a step can see of it; of its metadata that is only the plan for what to make of it."""
        seen = [self.key, self.instruction, self.answer, [image.sha256 for image in self.images], len(self.references)]
        boxes = None if self.candidates is None else [[c.to_json() for c in group] for group in self.candidates]
        plan = self.metadata.get("plan")
        return hashlib.sha256(json.dumps([*seen, boxes, plan]).encode()).digest()[:16]

    def with_metadata(self, **more: Any) -> Item:
        """With more metadata."""
        return replace(self, metadata={**self.metadata, **more})

    def noting(self, step: str, facts: Mapping[str, Any]) -> Item:
        """With what a step found out about it, under `construct` in its metadata."""
        return self.with_metadata(construct={**self.metadata.get("construct", {}), step: dict(facts)})

    def to_line(self) -> bytes:
        """JSON with a newline."""
        content = {
            "key": self.key,
            "references": [image.to_json() for image in self.references],
            "instruction": self.instruction,
            "target": self.target and self.target.to_json(),
            "kind": self.kind,
            "candidates": self.candidates and [[c.to_json() for c in group] for group in self.candidates],
            "metadata": self.metadata,
            "answer": self.answer,
        }
        return json.dumps(content, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Item:
        """Inverse of `to_line`, from parsed JSON."""
        return cls(
            key=content["key"],
            references=tuple(map(ImageRef.from_json, content["references"])),
            instruction=content["instruction"],
            target=ImageRef.from_json(content["target"]) if content["target"] else None,
            kind=content["kind"],
            candidates=parse_candidates(content["candidates"]),
            metadata=content["metadata"],
            answer=content["answer"],
        )

    def sample(self, images: list[bytes]) -> Sample:
        """The sample, with the content of `images`."""
        return Sample(
            key=self.key,
            references=tuple(images[: len(self.references)]),
            instruction=self.instruction,
            target=images[-1] if self.target else b"",
            kind=self.kind,
            candidates=self.candidates,
            metadata=self.metadata,
            answer=self.answer,
        )


@dataclass(frozen=True)
class Rejected:
    """A sample that a step does not let through."""

    reason: str
    """A fixed phrase; it is counted under it."""
    detail: str = ""
