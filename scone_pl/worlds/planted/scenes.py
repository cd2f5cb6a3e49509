"""Images of icons, and what they show."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
from PIL import Image

from scone_pl.data.decoding import decode_rgb
from scone_pl.worlds.icons.atlas import DRAWINGS, SHIPPED, Atlas

_NAMES = (
    "airplane backpack banana bear bicycle bird broccoli butterfly cactus camera camel castle cat chair cow crab crown "
    "dog dolphin drum duck elephant fish fox giraffe hammer horse key lion mushroom owl panda penguin pizza rabbit "
    "rocket sailboat snail teapot tiger"
)
FLAT, SOLID, NOTO = 0, 1, 2
"""Indices of `DRAWINGS`; the first two show one identity, the third another."""
SIDE = 160
_THUMBNAIL = 14
_UNKNOWN = 14.0
"""Mean difference to the nearest known image beyond which an image is unknown."""
_POSITIONS = ("on the left", "in the middle", "on the right")


@cache
def names() -> tuple[str, ...]:
    """Names of the icons: single words of the atlas of world 2."""
    known = set(_atlas().names)
    return tuple(name for name in _NAMES.split() if name in known)


@cache
def _atlas() -> Atlas:
    return Atlas.read(SHIPPED)


@lru_cache(maxsize=512)
def icon(name: str, drawing: int, hue: int = 0) -> Image.Image:
    """An icon, RGBA; `hue` (0 to 255) recolours it."""
    cells = _atlas().cells[DRAWINGS[drawing]]
    image = Image.fromarray(cells[_atlas().names.index(name)])
    image = image.crop(image.getchannel("A").point(lambda value: 255 if value > 127 else 0).getbbox())
    if not hue:
        return image
    pixels = np.asarray(image.convert("RGB").convert("HSV")).copy()
    pixels[..., 0] += np.uint8(hue)
    coloured = Image.fromarray(pixels, "HSV").convert("RGBA")
    coloured.putalpha(image.getchannel("A"))
    return coloured


@dataclass(frozen=True)
class Subject:
    """An icon in an image."""

    name: str
    drawing: int
    hue: int = 0
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    @property
    def identity(self) -> tuple[str, bool, int]:
        """The same for two drawings of one identity."""
        return self.name, self.drawing == NOTO, self.hue


@dataclass(frozen=True)
class Scene:
    """What an image shows, from left to right."""

    subjects: tuple[Subject, ...]


def render(subjects: Sequence[Subject], seed: int, *, plain: bool = False) -> tuple[Image.Image, Scene]:
    """Subjects side by side; a single one leaves room beside it, unless the background is plain.

    Args:
        subjects: up to four; their boxes do not matter.
        seed: of background and positions.
        plain: a white background.
    """
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(90, 256, (5, 5, 3), dtype=np.uint8))
    image = Image.new("RGB", (SIDE, SIDE), "white") if plain else coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    slots = max(len(subjects), 1 if plain else 2)
    first = int(generator.integers(0, slots - len(subjects) + 1))
    shown = []
    for number, subject in enumerate(subjects, first):
        image, box = pasted(image, subject, number, slots, generator)
        shown.append(replace(subject, box=box))
    return image, Scene(tuple(shown))


def pasted(
    image: Image.Image, subject: Subject, slot: int, slots: int, generator: np.random.Generator
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """The image with a subject in one of its slots, and the box of the subject."""
    drawn = icon(subject.name, subject.drawing, subject.hue)
    width = SIDE / slots
    scale = min(0.86 * width / drawn.width, 0.6 * SIDE / drawn.height) * generator.uniform(0.85, 1.0)
    drawn = drawn.resize(
        (max(8, int(drawn.width * scale)), max(8, int(drawn.height * scale))), Image.Resampling.BICUBIC
    )
    left = int(slot * width + (width - drawn.width) / 2)
    top = int((SIDE - drawn.height) * generator.uniform(0.3, 0.7))
    result = image.copy()
    result.paste(drawn, (left, top), drawn)
    box = (left / SIDE, top / SIDE, (left + drawn.width) / SIDE, (top + drawn.height) / SIDE)
    return result, (round(box[0], 4), round(box[1], 4), round(box[2], 4), round(box[3], 4))


def phrase(scene: Scene, number: int) -> str:
    """Words that only one subject of a scene fits."""
    name = scene.subjects[number].name
    same = [i for i, subject in enumerate(scene.subjects) if subject.name == name]
    if len(same) == 1:
        return f"the {name}"
    position = 0 if number == same[0] else 2 if number == same[-1] else 1
    return f"the {name} {_POSITIONS[position]}"


def meant(text: str, scene: Scene) -> list[int]:
    """Subjects of a scene that a text refers to."""
    found: list[int] = []
    for name in dict.fromkeys(subject.name for subject in scene.subjects):
        same = [i for i, subject in enumerate(scene.subjects) if subject.name == name]
        match = re.search(rf"\b{name}\b( on the left| in the middle| on the right)?", text, re.IGNORECASE)
        if match is None:
            continue
        where = (match[1] or "").strip()
        if where and len(same) > 1:
            same = [same[0] if where == _POSITIONS[0] else same[-1] if where == _POSITIONS[2] else same[len(same) // 2]]
        found += same
    return found


class Known:
    """All images of a world; finds what an image shows even if it was encoded again."""

    def __init__(self) -> None:
        self.by_hash: dict[str, Scene] = {}
        self._scenes: list[Scene] = []
        self._thumbnails: list[np.ndarray] = []

    def add(self, image: Image.Image, scene: Scene, data: bytes) -> None:
        """Adds an image and its file."""
        self.by_hash[hashlib.sha256(data).hexdigest()] = scene
        self._scenes.append(scene)
        self._thumbnails.append(_thumbnail(image))

    def scene(self, data: bytes) -> Scene | None:
        """What an image shows; None if it is unknown."""
        if (scene := self.by_hash.get(hashlib.sha256(data).hexdigest())) is not None:
            return scene
        # A list, since images are added while others are looked for.
        differences = np.abs(np.stack(self._thumbnails) - _thumbnail(decode_rgb(data))).mean(axis=1)
        nearest = int(differences.argmin())
        return self._scenes[nearest] if differences[nearest] < _UNKNOWN else None


def _thumbnail(image: Image.Image) -> np.ndarray:
    small = image.convert("RGB").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).ravel()


def encode(image: Image.Image, form: str = "PNG") -> bytes:
    """An image as a file."""
    encoded = io.BytesIO()
    image.save(encoded, form, **({"quality": 90} if form == "JPEG" else {}))
    return encoded.getvalue()
