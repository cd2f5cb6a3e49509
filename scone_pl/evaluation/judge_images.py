"""Images in the judge's format: data URLs, JPEG (docs/benchmarks.md 3.2) or the file as it is.

They are decoded like the generator's references (transparency onto white, EXIF orientation applied by default), so that
model and judge see the same image; in the published code only the judge applies the orientation, and it sees the
colours under transparent pixels (docs/benchmarks.md 5).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from scone_pl.vlm.images import QUALITY, jpeg_url, reference_size

if TYPE_CHECKING:
    from scone_pl.data.decoding import ExifOrientation

PREPARATION = {"reference": "rgb-1024-16-jpeg75", "picture": "rgb-jpeg75", "file": "file"}
"""Names of the preprocessing, part of a question's hash; stored answers depend on them."""


@dataclass(frozen=True)
class QuestionImage:
    """An image file in a question."""

    file: Path
    reference: bool
    """References are resized, the generated image is not."""
    rotated: bool = False
    """Whether its EXIF orientation is applied."""
    as_file: bool = False
    """Whether the judge gets the file's own bytes."""
    reencoded: bool = False
    """With `as_file`: as PNG instead, since services treat the EXIF orientation that it has differently."""

    @property
    def preparation(self) -> str:
        """See `PREPARATION`; rotated images have a suffix, so that stored answers about all others stay valid."""
        if self.as_file:
            form = "png" if self.reencoded else PREPARATION["file"]
        else:
            form = PREPARATION["reference" if self.reference else "picture"]
        return form + ("-turned" if self.rotated else "")


def open_rgb(file: Path, exif_orientation: ExifOrientation = "apply") -> Image.Image:
    """An image file as RGB.

    Raises:
        UserError: it can not be read or decoded.
    """
    from scone_pl.data.decoding import load_file

    return load_file(file, exif_orientation)


@functools.lru_cache(maxsize=64)  # the calls about one item are consecutive and share its images
def data_url(question_image: QuestionImage) -> str:
    """An image as a data URL: JPEG, or the file as it is.

    Raises:
        UserError: see `open_rgb`.
    """
    image = open_rgb(question_image.file, "apply" if question_image.rotated else "ignore")
    if question_image.as_file:
        return _png_url(image) if question_image.reencoded else _file_url(question_image.file)
    if question_image.reference:
        image = image.resize(reference_size(*image.size), Image.Resampling.BICUBIC)
    return jpeg_url(image, QUALITY)


def _png_url(image: Image.Image) -> str:
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _file_url(file: Path) -> str:
    from scone_pl.data.decoding import open_image, read_encoded

    content = read_encoded(file)
    kind = Image.MIME.get(open_image(content).format or "", "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


class Fingerprints:
    """SHA-256 of image files, and whether they have an EXIF orientation; each file is read once."""

    def __init__(self) -> None:
        self._cache: dict[Path, tuple[str, bool]] = {}

    def __getitem__(self, file: Path) -> str:
        """Hash of a file's content.

        Raises:
            UserError: it can not be read.
        """
        return self._read(file)[0]

    def is_rotated(self, file: Path) -> bool:
        """Whether a file has an EXIF orientation other than upright.

        Raises:
            UserError: it can not be read.
        """
        return self._read(file)[1]

    def _read(self, file: Path) -> tuple[str, bool]:
        from scone_pl.data.decoding import orientation_of, read_encoded

        if file not in self._cache:
            content = read_encoded(file)
            self._cache[file] = hashlib.sha256(content).hexdigest(), orientation_of(content) != 1
        return self._cache[file]
