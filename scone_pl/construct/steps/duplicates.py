"""Near-duplicates within and across pools."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scone_pl.construct.items import Item, Rejected
from scone_pl.construct.pools import Images
from scone_pl.construct.steps.base import Facts, Outcome, Rows, SelectStep
from scone_pl.construct.steps.fingerprints import PERMUTATIONS, HashIndex, image_print, similarity, text_print
from scone_pl.ranges import check_number, check_whole


@dataclass(frozen=True, kw_only=True)
class Duplicates(SelectStep):
    """Keeps the first of samples whose targets are near-duplicates, or whose references and instructions are."""

    max_distance: int = 4
    """Bits of 64 in which perceptual hashes of near-duplicates may differ."""
    max_colour: float = 10.0
    """Mean difference of colours (0 to 255) that they may have."""
    min_text: float = 0.8
    """Least similarity (Jaccard, of word triples) of the instructions of samples with the same references."""

    expected: ClassVar[float] = 0.9

    def __post_init__(self) -> None:
        check_whole("max_distance", self.max_distance, maximum=16)
        check_number("max_colour", self.max_colour, minimum=0, maximum=255)
        check_number("min_text", self.min_text, minimum=0, maximum=1)

    @property
    def facts_name(self) -> str:
        return "fingerprints"

    def measure(self, item: Item, images: Images) -> Facts:
        """See `Step.measure`."""
        return fingerprints(item, images)

    def select(self, rows: Rows) -> Iterator[tuple[Item, Outcome]]:
        """See `SelectStep.select`."""
        targets = HashIndex(self.max_distance, self.max_colour)
        references = HashIndex(self.max_distance, self.max_colour)
        texts, kept = array("L"), 0
        for item, facts in rows():
            if "broken" in facts:
                yield item, Rejected(*facts["broken"])
                continue
            prints, text = facts["images"], facts["text"]
            target = prints[-1] if item.target else None
            if target is not None and next(targets.near(target), None) is not None:
                yield item, Rejected("near-duplicate target", "an earlier sample has nearly the same target")
                continue
            first = prints[0] if item.references else None
            if first is not None and any(
                similarity(text, np.frombuffer(texts, np.uint64)[other * PERMUTATIONS :][:PERMUTATIONS])
                >= self.min_text
                for other in references.near(first)
            ):
                yield item, Rejected("near-duplicate question", "an earlier one has nearly its reference and text")
                continue
            if target is not None:
                targets.add(target, kept)
            if first is not None:
                references.add(first, kept)
            texts.extend(text)
            kept += 1
            yield item, [item]


def fingerprints(item: Item, images: Images) -> Facts:
    """Prints of all images and of the instruction.

    Raises:
        BrokenSampleError: an image cannot be decoded.
    """
    return {"images": [image_print(images.read(ref)) for ref in item.images], "text": text_print(item.instruction)}
