"""Decodes user-supplied images to RGB; used by training, sampling and evaluation (docs/specification.md 3)."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image, UnidentifiedImageError, features

from scone_pl.data.rgb import to_rgb
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError
from scone_pl.files import read_bytes

if TYPE_CHECKING:
    from scone_pl.data.transforms import ImageResize

ExifOrientation = Literal["apply", "ignore"]
"""`apply`: images are rotated according to their EXIF orientation, as viewers show them. `ignore`: pixels stay as
stored, as in the release. (Pillow itself rotates TIFF images, so they are rotated under both settings, as in the
release.)"""

MAX_DECODED_PIXELS = 89_478_485
"""Larger images are refused before they are decoded (Pillow's own warning limit, 256 MB of RGB)."""
MAX_ENCODED_BYTES = 1 << 30
"""Larger files are refused before they are read; `MAX_DECODED_PIXELS` of uncompressed 16-bit RGBA are fewer."""

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"),
    *(("AVIF",) if "avif" in features.modules and features.check("avif") else ()),
)
"""Formats that are read; MPO, the multi-image JPEG of phones, counts as JPEG. Of several images or frames the first is
used. Pillow's other decoders are little tested or run external programs."""

# What Pillow's decoders raise on damaged files, as observed by fuzzing.
_DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_ORIENTATION = 0x0112
_METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
"""Keys of `Image.info` under which Pillow keeps data that may hold an orientation."""
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that brings the stored image upright."""

_SIGNATURES = (
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"8BPS", "Photoshop (PSD)"),
    (b"\0\0\1\0", "ICO"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"v/1\1", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"<svg", "SVG"),
    (b"<?xml", "SVG or other XML"),
    (b"<!DOCTYPE", "HTML"),
    (b"<html", "HTML"),
    (b"PK\3\4", "ZIP"),
    (b"\x1f\x8b", "gzip"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppresses Pillow's warnings, which are about images that are refused here or do not matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_encoded(file: Path) -> bytes:
    """Encoded content of a user-supplied image file.

    Raises:
        UserError: it cannot be read, is not a regular file, or has more than `MAX_ENCODED_BYTES`.
    """
    try:
        size = file.stat().st_size
    except (OSError, ValueError):
        size = 0  # `read_bytes` reports the error
    if size > MAX_ENCODED_BYTES:
        raise UserError(f"{file}: {size} bytes are too many for an image (at most {MAX_ENCODED_BYTES})")
    return read_bytes(file)


@_without_warnings()
def open_image(data: bytes) -> Image.Image:
    """Reads the header of an encoded image; `.size` is (width, height) as stored, `.format` its type.

    Raises:
        BrokenSampleError: empty, not an image, a format that is not in `FORMATS`, or more than `MAX_DECODED_PIXELS`.
    """
    return _open(data)


def _open(data: bytes) -> Image.Image:
    if not data:
        raise BrokenSampleError("empty image", "the image has no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BrokenSampleError("image too large", str(error)) from None
    except _DECODER_ERRORS as error:
        if name := _unsupported_format(data):
            advice = "; convert it to one of them first (HEIC: with pillow-heif, for one)" if name == "HEIC" else ""
            raise BrokenSampleError(
                "unsupported format", f"a {name} file; images can be {', '.join(FORMATS)}{advice}"
            ) from None
        reason = "of no known kind" if isinstance(error, UnidentifiedImageError) else _one_line(error)
        raise BrokenSampleError("unreadable image", f"{len(data)} bytes that are no image ({reason})") from None
    if image.width * image.height > MAX_DECODED_PIXELS:
        message = f"an image of {image.width} x {image.height} pixels exceeds {MAX_DECODED_PIXELS} pixels"
        raise BrokenSampleError("image too large", message)
    if min(image.size) < 1:
        raise BrokenSampleError("unreadable image", f"an image of {image.width} x {image.height} pixels")
    return image


@_without_warnings()
def decode_rgb(
    data: bytes, *, exif_orientation: ExifOrientation = "apply", draft_for: Sequence[ImageResize] = ()
) -> Image.Image:
    """Decodes to RGB, see `rgb.to_rgb`.

    Args:
        data: an encoded image.
        exif_orientation: see `ExifOrientation`. Damaged orientation data count as none.
        draft_for: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (much faster, slightly different pixels) if
            these resizes then still shrink it, and to the same sizes.

    Raises:
        BrokenSampleError: see `open_image` and `rgb.to_rgb`; also truncated or damaged data.
    """
    image = _open(data)
    with _decoding_errors(image, data):
        if draft_for and image.format == "JPEG":
            image = _draft(image, data, draft_for)
        return _upright_rgb(image, exif_orientation)


def load_file(path: Path, exif_orientation: ExifOrientation = "apply") -> Image.Image:
    """An image file in RGB.

    Raises:
        UserError: it cannot be read or decoded.
    """
    try:
        return decode_rgb(read_encoded(path), exif_orientation=exif_orientation)
    except BrokenSampleError as error:
        raise UserError(f"{path}: {error.reason} ({error})") from None


@_without_warnings()
def upright_rgb(image: Image.Image, exif_orientation: ExifOrientation) -> Image.Image:
    """An opened image in RGB, with its EXIF orientation applied or ignored.

    Raises:
        BrokenSampleError: see `rgb.to_rgb`.
        OSError, ValueError, ...: its data are damaged.
    """
    return _upright_rgb(image, exif_orientation)


def _upright_rgb(image: Image.Image, exif_orientation: ExifOrientation) -> Image.Image:
    image.load()
    transpose = _TRANSPOSES.get(_orientation(image))
    image = to_rgb(image)
    if transpose is not None:
        image = image.transpose(transpose) if exif_orientation == "apply" else image.copy()
        image.info = {}  # else a later reader would apply the orientation again
    return image


@_without_warnings()
def image_size(data: bytes, exif_orientation: ExifOrientation = "apply") -> tuple[int, int]:
    """(width, height) in pixels of `decode_rgb(data)`, without decoding where the header is enough.

    Raises:
        BrokenSampleError: see `open_image`.
    """
    image = _open(data)
    if exif_orientation == "ignore":
        return image.size
    if image.format == "PNG":
        # Pillow would decode every PNG to learn whether orientation data follow the pixels.
        if not any(name in data for name in (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")):
            return image.size
        with _decoding_errors(image, data):
            image.load()
    swapped = _orientation(image) in (5, 6, 7, 8)
    return (image.height, image.width) if swapped else image.size


@_without_warnings()
def orientation_of(data: bytes) -> int:
    """EXIF orientation of an encoded image, 1 to 8; 1 if it has none, or is damaged."""
    try:
        image = _open(data)
        with _decoding_errors(image, data):
            image.load()
            return _orientation(image)
    except BrokenSampleError:
        return 1


def orientation_exif(orientation: int) -> bytes:
    """EXIF data with an orientation only, in the format of Pillow's `save`."""
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return exif.tobytes()


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 if there is none or it is damaged."""
    if image.format == "TIFF":  # already applied by Pillow
        return 1
    if image.format is not None and not any(key in image.info for key in _METADATA):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION)
    except _DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and value in _TRANSPOSES else 1


def _draft(image: Image.Image, data: bytes, resizes: Sequence[ImageResize]) -> Image.Image:
    stored = image.size
    sizes = [resize.size(*stored) for resize in resizes]
    image.draft("RGB", (max(width for width, _ in sizes), max(height for _, height in sizes)))
    unchanged = all(resize.size(*image.size) == size for resize, size in zip(resizes, sizes, strict=True))
    return image if unchanged else _open(data)


@contextmanager
def _decoding_errors(image: Image.Image, data: bytes) -> Iterator[None]:
    try:
        yield
    except BrokenSampleError:
        raise
    except Image.DecompressionBombError as error:
        raise BrokenSampleError("image too large", str(error)) from None
    except _DECODER_ERRORS as error:
        reason = "truncated image" if "truncated" in str(error).lower() else "damaged image"
        raise BrokenSampleError(reason, f"{image.format} of {len(data)} bytes: {_one_line(error)}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _unsupported_format(data: bytes) -> str | None:
    """The name of a well-known format that is not supported."""
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    if data[4:8] == b"ftyp":
        if data[8:12] in _HEIF_BRANDS:
            return "HEIC"
        if data[8:12] in (b"avif", b"avis"):
            return None if "AVIF" in FORMATS else "AVIF"
        return "video (MP4 or the like)"
    return next((name for signature, name in _SIGNATURES if start.startswith(signature)), None)
