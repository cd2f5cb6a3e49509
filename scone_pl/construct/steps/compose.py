"""References with several candidates, composed of cut-outs: no model, exact boxes and names.

A sample with one subject per reference gets distractors from other samples. Of another category (`cross`), the
subject's name stays unique and so does the instruction; of the same (`intra`), its position is added to its name.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image

from scone_pl.construct.items import Candidates, ImageRef, Item, Rejected
from scone_pl.construct.pools import Images
from scone_pl.construct.steps.base import Facts, Outcome, Rows, SelectStep, Step
from scone_pl.construct.steps.cutouts import cut_out
from scone_pl.data.sample import BrokenSampleError, Candidate
from scone_pl.errors import UserError
from scone_pl.files import write_bytes
from scone_pl.ranges import check_number, check_whole

_POSITIONS = {2: ("on the left", "on the right"), 3: ("on the left", "in the middle", "on the right")}
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


_DRAWN = 50
"""Subjects of a name that distractors are chosen from, at random for each sample."""


class _Other(NamedTuple):
    """A cut-out that can stand beside others."""

    name: str
    identity: str
    ref: ImageRef
    key: str
    license: str


@dataclass(frozen=True, kw_only=True)
class Compose(SelectStep):
    """Chooses each sample's distractors. The samples need names: `subjects` in their metadata, one a reference."""

    min_candidates: int = 2
    """Least number of candidates in a reference."""
    max_candidates: int = 3
    """Greatest number."""
    intra: float = 0.5
    """Fraction of samples with distractors of the subject's own category, where there are any."""
    side: int = 512
    """Side of a composed reference in pixels."""
    seed: int = 0
    """Of all choices; by default the pipeline's."""

    version: ClassVar[int] = 2
    expected: ClassVar[float] = 0.6

    def __post_init__(self) -> None:
        check_whole("min_candidates", self.min_candidates, minimum=2, maximum=len(_ORDINALS))
        check_whole("max_candidates", self.max_candidates, minimum=2, maximum=len(_ORDINALS))
        check_number("intra", self.intra, minimum=0, maximum=1)
        check_whole("side", self.side, minimum=64, maximum=4096)
        check_whole("seed", self.seed)
        if self.min_candidates > self.max_candidates:
            raise UserError(f"min_candidates {self.min_candidates} is more than max_candidates {self.max_candidates}")

    def measure(self, item: Item, images: Images) -> Facts:
        """Which references have a cut-out."""
        return {"cut": [_has_cut_out(images.read(ref)) for ref in item.references]}

    def select(self, rows: Rows) -> Iterator[tuple[Item, Outcome]]:
        by_name: dict[str, list[_Other]] = defaultdict(list)
        seen: set[str] = set()
        for item, facts in rows():
            for name, ref, cut in zip(subjects_of(item), item.references, facts.get("cut", ()), strict=False):
                if cut and name and ref.sha256 not in seen:
                    seen.add(ref.sha256)
                    by_name[name].append(
                        _Other(name, _identity(item), ref, item.key, str(item.metadata.get("license")))
                    )
        names = sorted(by_name)
        for item, facts in rows():
            yield item, self._choose(item, facts, by_name, names)

    def _choose(self, item: Item, facts: Facts, by_name: Mapping[str, list[_Other]], names: list[str]) -> Outcome:
        if "broken" in facts:
            return Rejected(*facts["broken"])
        subjects = subjects_of(item)
        if len(subjects) != len(item.references) or not all(subjects):
            return Rejected("no subject names", "metadata has no `subjects`, one name for each reference")
        if not any(facts["cut"]):
            return Rejected("no cut-out", "no reference has a transparent or plain background")
        generator = random.Random(f"compose {self.seed} {item.key}")
        text = item.instruction
        plan: list[dict[str, Any] | None] = []
        for number, (name, cut) in enumerate(zip(subjects, facts["cut"], strict=True)):
            if not cut:
                plan.append(None)
                continue
            if not (match := _mention(text, name)):
                return Rejected("subject not in the instruction", f"{name!r} is not in the instruction")
            count = generator.randint(self.min_candidates, self.max_candidates)
            own_images = {ref.sha256 for ref in item.images}
            known = by_name[name]
            same = [
                other
                for other in generator.sample(known, min(len(known), _DRAWN))
                if other.identity != _identity(item) and other.ref.sha256 not in own_images
            ]
            intra = bool(same) and generator.random() < self.intra
            # One of each subject's photographs.
            others = list({other.identity: other for other in same}.values())[: count - 1] if intra else []
            if not intra:
                pool = [one for one in names if not _overlap(one, name)]
                chosen = generator.sample(pool, min(count - 1, len(pool)))
                others = [generator.choice(by_name[one]) for one in chosen]
            if not others:
                return Rejected("no distractors", f"no other subject to stand beside {name!r}")
            own = generator.randint(0, len(others))
            if intra:
                phrase = f"the {name} {_place(own, len(others) + 1)}"
                rest = text[match.end() :]
                several = len(subjects) > 1 and not re.match(r"\s+(of|in|from) image", rest)
                head = text[: match.start()]
                phrase = phrase if head.strip() else f"T{phrase[1:]}"
                text = head + phrase + (f" in image {number + 1}" if several else "") + rest
            plan.append(
                {
                    "own": own,
                    "name": name,
                    "others": [[one.name, one.ref.to_json(), one.key, one.license] for one in others],
                    "seed": generator.getrandbits(32),
                    "side": self.side,
                    "intra": intra,
                }
            )
        case = "intra" if any(one and one["intra"] for one in plan) else "cross"
        made = replace(item, key=f"{item.key}-c", instruction=text, kind="multi")
        return [made.with_metadata(plan=plan, case=case)]


def subjects_of(item: Item) -> list[str]:
    """Names of the subjects of a sample's references."""
    names = item.metadata.get("subjects")
    return [str(name).strip() for name in names] if isinstance(names, list) else []


def _identity(item: Item) -> str:
    return str(item.metadata.get("identity", item.key))


def _has_cut_out(data: bytes) -> bool:
    try:
        cut_out(data)
    except BrokenSampleError as error:
        if error.reason != "no cut-out":
            raise
        return False
    return True


def _mention(text: str, name: str) -> re.Match[str] | None:
    return re.search(rf"(?:\b(?:the|a|an|this|that)\s+)?\b{re.escape(name)}\b", text, re.IGNORECASE)


def _overlap(first: str, second: str) -> bool:
    """Whether two names could mean the same: `dog` and `small dog`."""
    return bool(set(first.lower().split()) & set(second.lower().split()))


def _place(position: int, count: int) -> str:
    """The position of a candidate, from left to right."""
    return _POSITIONS[count][position] if count in _POSITIONS else f"that is {_ORDINALS[position]} from the left"


@dataclass(frozen=True, kw_only=True)
class Render(Step):
    """Draws the references that `Compose` has chosen."""

    version: ClassVar[int] = 3

    def measure(self, item: Item, images: Images) -> Facts:
        """Draws the references and stores them."""
        made: list[Any] = []
        for ref, plan in zip(item.references, item.metadata["plan"], strict=True):
            if plan is None:
                made.append(None)
                continue
            parts = [(name, cut_out(images.read(ImageRef.from_json(other)))) for name, other, _, _ in plan["others"]]
            parts.insert(plan["own"], (plan["name"], cut_out(images.read(ref))))
            image, boxes = _drawn([part for _, part in parts], plan["side"], plan["seed"])
            encoded = io.BytesIO()
            image.save(encoded, "PNG")
            digest = hashlib.sha256(encoded.getvalue()).hexdigest()
            write_bytes(encoded.getvalue(), images.blob(digest))
            found = [[name, box] for (name, _), box in zip(parts, boxes, strict=True)]
            made.append({"sha256": digest, "candidates": found})
        return {"references": made}

    def decide(self, item: Item, facts: Mapping[str, Any]) -> Outcome:
        references: list[ImageRef] = []
        groups: list[tuple[Candidate, ...]] = []
        for ref, plan, made in zip(item.references, item.metadata["plan"], facts["references"], strict=True):
            references.append(ref if made is None else ImageRef(sha256=made["sha256"]))
            if made is None:
                name = subjects_of(item)[len(groups)]
                groups.append((Candidate(box=(0.0, 0.0, 1.0, 1.0), is_target=True, name=name),))
                continue
            groups.append(
                tuple(
                    Candidate(box=tuple(box), is_target=number == plan["own"], name=name)
                    for number, (name, box) in enumerate(made["candidates"])
                )
            )
        metadata = {name: value for name, value in item.metadata.items() if name != "plan"}
        candidates: Candidates = tuple(groups)
        made_item = replace(item, references=tuple(references), candidates=candidates, metadata=metadata)
        beside = [
            {"key": key, "license": license}
            for plan in item.metadata["plan"]
            for _, _, key, license in (plan["others"] if plan else ())
        ]
        return [made_item.noting(self.name, {"beside": beside})]


def _drawn(parts: list[Image.Image], side: int, seed: int) -> tuple[Image.Image, list[list[float]]]:
    """Cut-outs side by side on a soft background, and the box of each as fractions."""
    generator = np.random.default_rng(seed)
    corners = generator.uniform(150, 245, (2, 2, 3)).astype(np.float32)
    small = Image.fromarray(corners.astype(np.uint8))
    canvas = small.resize((side, side), Image.Resampling.BICUBIC)
    width = side / len(parts)
    boxes = []
    for number, part in enumerate(parts):
        room = width * generator.uniform(0.78, 0.94)
        scale = min(room / part.width, 0.8 * side / part.height)
        size = (max(1, int(part.width * scale)), max(1, int(part.height * scale)))
        scaled = part.resize(size, Image.Resampling.LANCZOS)
        left = int(number * width + (width - size[0]) * generator.uniform(0.2, 0.8))
        top = int((side - size[1]) * generator.uniform(0.3, 0.7))
        canvas.paste(scaled, (left, top), scaled)
        box = scaled.getchannel("A").point(lambda value: 255 if value > 127 else 0).getbbox() or (0, 0, *size)
        pixels = (left + box[0], top + box[1], left + box[2], top + box[3])
        boxes.append([round(value / side, 4) for value in pixels])
    return canvas, boxes
