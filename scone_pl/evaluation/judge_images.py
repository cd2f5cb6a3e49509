"""Pictures as the judge gets them: JPEG data URLs (docs/benchmarks.md 3.2).

They are decoded as the generator's references are (transparency onto white, turned as their EXIF orientation says
unless told otherwise), so that model and judge see the same image; in the published code only the judge turns them, and
it sees the hidden colours of transparent pixels (docs/benchmarks.md 5).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from scone_pl.data.decoding import ExifOrientation

MOST_PIXELS = 1024**2
STEP = 16
QUALITY = 75
PREPARATION = {"reference": "rgb-1024-16-jpeg75", "picture": "rgb-jpeg75"}
"""How the bytes of a file become what is sent; part of a question's hash."""


@dataclass(frozen=True)
class Shown:
    """An image file in a question."""

    file: Path
    reference: bool
    """References are resized, the generated picture is not."""
    turned: bool = False
    """Turned as its EXIF orientation says."""

    @property
    def preparation(self) -> str:
        """See `PREPARATION`; only what is turned has another name, so that answers about all else stay valid."""
        return PREPARATION["reference" if self.reference else "picture"] + ("-turned" if self.turned else "")


def reference_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) in pixels at which the judge sees a reference of this size.

    At most 1024^2 pixels, each side a multiple of 16, and at least 16 (the published code stops at a thinner one).
    """
    if width * height > MOST_PIXELS:
        scale = math.sqrt(MOST_PIXELS / (width * height))
        width, height = int(width * scale), int(height * scale)
    return max(STEP, width // STEP * STEP), max(STEP, height // STEP * STEP)


def open_rgb(file: Path, exif_orientation: ExifOrientation = "apply") -> Image.Image:
    """An image file as RGB.

    Raises:
        UserError: it can not be read or decoded.
    """
    from scone_pl.data.decoding import load_file

    return load_file(file, exif_orientation)


@functools.lru_cache(maxsize=64)  # the calls for one item come together and share its pictures
def data_url(shown: Shown) -> str:
    """The JPEG that is sent.

    Raises:
        UserError: see `open_rgb`.
    """
    image = open_rgb(shown.file, "apply" if shown.turned else "ignore")
    if shown.reference:
        image = image.resize(reference_size(*image.size), Image.Resampling.BICUBIC)
    return jpeg_url(image, QUALITY)


def jpeg_url(image: Image.Image, quality: int) -> str:
    """An RGB image as a data URL."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


class Fingerprints:
    """SHA-256 of image files, and whether their EXIF orientation turns them; each is read once."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[str, bool]] = {}

    def __getitem__(self, file: Path) -> str:
        """Of a file's bytes.

        Raises:
            UserError: it can not be read.
        """
        return self._facts(file)[0]

    def is_turned(self, file: Path) -> bool:
        """Whether its EXIF orientation turns it.

        Raises:
            UserError: it can not be read.
        """
        return self._facts(file)[1]

    def _facts(self, file: Path) -> tuple[str, bool]:
        from scone_pl.data.decoding import orientation_of, read_encoded

        if file not in self._known:
            content = read_encoded(file)
            self._known[file] = hashlib.sha256(content).hexdigest(), orientation_of(content) != 1
        return self._known[file]
