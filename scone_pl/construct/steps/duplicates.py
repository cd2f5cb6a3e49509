"""Near-duplicates within and across pools."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from scone_pl.construct.items import Item, Rejected
from scone_pl.construct.pools import Images
from scone_pl.construct.steps.base import Facts, Outcome, Rows, SelectStep
from scone_pl.construct.steps.fingerprints import PERMUTATIONS, HashIndex, image_print, similarity, text_print
from scone_pl.ranges import check_number, check_whole

_COPY_DISTANCE, _COPY_COLOUR = 2, 6.0


@dataclass(frozen=True, kw_only=True)
class Duplicates(SelectStep):
    """Keeps the first of samples that share nearly two of target, reference and instruction.

    A target that is nearly one of its own references is rejected, too: there is nothing to learn but copying.
    """

    max_distance: int = 4
    """Bits of 64 in which perceptual hashes of near-duplicates may differ."""
    max_colour: float = 10.0
    """Mean difference of colours (0 to 255) that they may have."""
    min_text: float = 0.8
    """Least similarity (Jaccard, of word triples) of instructions that count as the same."""
    target_alone: bool = False
    """Whether nearly the same target is enough."""

    expected: ClassVar[float] = 0.9

    def __post_init__(self) -> None:
        check_whole("max_distance", self.max_distance, maximum=16)
        check_number("max_colour", self.max_colour, minimum=0, maximum=255)
        check_number("min_text", self.min_text, minimum=0, maximum=1)

    @property
    def facts_name(self) -> str:
        return "fingerprints"

    def measure(self, item: Item, images: Images) -> Facts:
        return fingerprints(item, images)

    def select(self, rows: Rows) -> Iterator[tuple[Item, Outcome]]:
        targets = HashIndex(self.max_distance, self.max_colour)
        references = HashIndex(self.max_distance, self.max_colour)
        texts, keys, kept = array("I"), list[str](), 0
        for item, facts in rows():
            if "broken" in facts:
                yield item, Rejected(*facts["broken"])
                continue
            text, prints = facts["text"], facts["images"][: len(item.references)]
            target = facts["images"][-1] if item.target else None
            if target is not None and any(_is_copy(target, one) for one in prints):
                yield item, Rejected("target nearly a reference", "the target is nearly one of its references")
                continue
            same_target = set(targets.near(target)) if target is not None else set()
            same_reference = {other for one in prints for other in references.near(one)}
            both = same_target & same_reference or (same_target if self.target_alone else set())
            if both:
                yield item, Rejected("near-duplicate", f"nearly the images of {keys[min(both)]}")
                continue
            for other in sorted(same_target | same_reference):
                known = texts[other * PERMUTATIONS : (other + 1) * PERMUTATIONS]
                if similarity(text, list(known)) >= self.min_text:
                    yield item, Rejected("near-duplicate", f"nearly an image and the instruction of {keys[other]}")
                    break
            else:
                if target is not None:
                    targets.add(target, kept)
                for one in prints:
                    references.add(one, kept)
                texts.extend(text)
                keys.append(item.key)
                kept += 1
                yield item, [item]


def _is_copy(target: list[Any], reference: list[Any]) -> bool:
    index = HashIndex(_COPY_DISTANCE, _COPY_COLOUR)
    index.add(reference, 0)
    return next(index.near(target), None) is not None


def fingerprints(item: Item, images: Images) -> Facts:
    """Prints of all images and of the instruction.

    Raises:
        BrokenSampleError: an image cannot be decoded.
    """
    return {"images": [image_print(images.read(ref)) for ref in item.images], "text": text_print(item.instruction)}
