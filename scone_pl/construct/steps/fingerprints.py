"""What makes near-duplicates recognisable: perceptual hashes and colours of images, MinHash of texts."""

from __future__ import annotations

import re
from array import array
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import datasketch
import imagehash
import numpy as np
from PIL import Image, ImageOps

from scone_pl.data.decoding import decode_rgb

PERMUTATIONS = 64
GRID = 4
_BITS = 64
_COLOURS = 3 * GRID**2
_WORDS = re.compile(r"\w+")


def image_print(data: bytes) -> list[Any]:
    """[perceptual hash as a number, colours of a coarse grid as hexadecimal digits].

    The hash (64 bits of a discrete cosine transform) survives other sizes, formats and slight changes of an image, but
    sees no colours; the grid does.

    Raises:
        BrokenSampleError: the image cannot be decoded.
    """
    return print_of(decode_rgb(data))


def print_of(image: Image.Image) -> list[Any]:
    """See `image_print`."""
    code = int(str(imagehash.phash(image)), 16)
    small = image.resize((GRID, GRID), Image.Resampling.BOX)
    return [code, small.tobytes().hex()]


def mirrored_print(image: Image.Image) -> list[Any]:
    """The same of the mirrored image."""
    return print_of(ImageOps.mirror(image))


def text_print(text: str) -> list[int]:
    """Values of the MinHash of a text."""
    return [int(value) for value in minhash_of(text).hashvalues]


def minhash_of(text: str) -> datasketch.MinHash:
    """MinHash of a text's word triples."""
    words = _WORDS.findall(text.lower())
    minhash = datasketch.MinHash(num_perm=PERMUTATIONS, seed=1)
    for start in range(max(1, len(words) - 2)):
        minhash.update(" ".join(words[start : start + 3]).encode())
    return minhash


def similarity(first: list[int] | np.ndarray, second: list[int] | np.ndarray) -> float:
    """Estimate of the Jaccard similarity of two texts."""
    return float(np.mean(np.asarray(first, np.uint64) == np.asarray(second, np.uint64)))


class HashIndex:
    """Finds near perceptual hashes; about 150 bytes each.

    64 bits are cut into one more band than bits may differ, so near hashes agree in at least one band.
    """

    def __init__(self, max_distance: int, max_colour: float) -> None:
        self.max_distance, self.max_colour = max_distance, max_colour
        edges = np.linspace(0, _BITS, max_distance + 2).astype(int)
        self._bands = [(int(a), (1 << int(b - a)) - 1) for a, b in pairwise(edges)]
        self._tables: list[dict[int, array[int]]] = [defaultdict(lambda: array("L")) for _ in self._bands]
        self._codes = array("Q")
        self._colours = bytearray()
        self._owners = array("Q")

    def add(self, image: list[Any], owner: int) -> None:
        """Adds an image's print under the number of its owner."""
        code, number = int(image[0]), len(self._codes)
        self._codes.append(code)
        self._colours += bytes.fromhex(image[1])
        self._owners.append(owner)
        for (shift, mask), table in zip(self._bands, self._tables, strict=True):
            table[code >> shift & mask].append(number)

    def near(self, image: list[Any]) -> Iterator[int]:
        """Owners of near images, each once, the earliest first."""
        code, colours = int(image[0]), np.frombuffer(bytes.fromhex(image[1]), np.uint8).astype(int)
        candidates: set[int] = set()
        for (shift, mask), table in zip(self._bands, self._tables, strict=True):
            candidates.update(table.get(code >> shift & mask, ()))
        seen = set()
        for number in sorted(candidates):
            if (self._codes[number] ^ code).bit_count() > self.max_distance or self._owners[number] in seen:
                continue
            other = np.frombuffer(bytes(self._colours[number * _COLOURS : (number + 1) * _COLOURS]), np.uint8)
            if np.abs(colours - other).mean() <= self.max_colour:
                seen.add(self._owners[number])
                yield self._owners[number]
