"""Words: instructions in several phrasings, questions, and the vocabulary of both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from scone_pl.worlds.icons.hues import HUES
from scone_pl.worlds.icons.scenes import PHRASES

PHRASINGS: tuple[str, ...] = (
    "draw {names} {scene}",
    "put {names} {scene}",
    "show {names} {scene}",
    "{scene} there is {names}",
    "a picture of {names} {scene}",
)
NUMBERS: tuple[str, ...] = ("no", "one", "two", "three", "four")
ORDINALS: tuple[str, ...] = ("first", "second", "third", "fourth")
SIZES: tuple[str, str] = ("small", "large")
PLACES: dict[int, tuple[str, ...]] = {
    1: ("",),
    2: ("left", "right"),
    3: ("left", "middle", "right"),
    4: ("upper left", "upper right", "lower left", "lower right"),
}
"""Places of so many subjects in one image, row by row."""
NAMINGS: tuple[str, ...] = ("category", "place", "order", "hue", "size", "combination")
"""What instructions name a target subject by. All but category tell it from others of its category."""
_QUESTION_WORDS = "what where how many colour is are there a an in at image picture of describe yes none and natural"


def name_by(naming: str, category: str, *, where: str, hue: str, size: str, position: int, long: bool) -> str:
    """A subject's name in an instruction; `long` says its place behind it, not before.

    Args:
        naming: one of `NAMINGS`.
        category: its name in the atlas.
        where: its place, one of `PLACES`.
        hue: `natural` or one of `hues.HUES`.
        size: one of `SIZES`.
        position: counted from the left, from 0.
        long: another way to say the same.
    """
    if naming == "place" or (naming == "combination" and hue == "natural"):
        if long:
            return f"the {category} at the {where}"
        return f"the {where} {category}"
    if naming == "order":
        return f"the {ORDINALS[position]} {category} from the left"
    if naming == "hue":
        return f"the {hue} {category}"
    if naming == "size":
        return f"the {size} {category}"
    if naming == "combination":
        return f"the {hue} {category} at the {where}"
    return f"the {category}"


def instruction(names: Sequence[str], scene: str, rng: np.random.Generator) -> str:
    """One of `PHRASINGS`."""
    phrasing = PHRASINGS[int(rng.integers(len(PHRASINGS)))]
    return phrasing.format(names=" and ".join(names), scene=PHRASES[scene])


def vocabulary(names: Iterable[str]) -> list[str]:
    """Every word of instructions, questions and answers about subjects of these names."""
    texts = [*PHRASINGS, *PHRASES.values(), *NUMBERS, *ORDINALS, *SIZES, *HUES, *NAMINGS, _QUESTION_WORDS]
    texts += [place for places in PLACES.values() for place in places]
    words = [word for text in (*texts, "the from left", *names) for word in text.split() if "{" not in word]
    return list(dict.fromkeys(words))
