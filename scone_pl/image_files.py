"""Atomic writing of image files; the extension determines the format."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from scone_pl.errors import UserError
from scone_pl.files import write_bytes
from scone_pl.outputs import check_output_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_QUALITY = 95
_OPTIONS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": _QUALITY, "subsampling": "4:4:4"},
    ".jpeg": {"format": "JPEG", "quality": _QUALITY, "subsampling": "4:4:4"},
    ".webp": {"format": "WEBP", "quality": _QUALITY},
}
_SMALL, _INLINE_QUALITY = 128, 92
"""For images within a page: the longest side of a PNG in pixels, and the quality of JPEG."""
_MAX_SIDE = {"JPEG": 65535, "WEBP": 16383}


def check_image_output(file: str | os.PathLike[str], option: str) -> Path:
    """The path of an image file to write, checked in advance.

    Args:
        file: path given by the user.
        option: its option, such as `--output`, for messages.

    Raises:
        UserError: an unsupported extension, or the file cannot be written.
    """
    path = Path(file)
    if not _is_unicode(str(path)):
        raise UserError(f"{option} {str(path)!a}: is no name that a file can have")
    _options_of(path, option)
    check_output_file(path)
    return path


def write_image(image: Image.Image, file: str | os.PathLike[str]) -> None:
    """Atomically replaces `file`, in the format of its extension.

    Raises:
        UserError: an unsupported extension, or an image too large for the format.
    """
    path = Path(file)
    options = _options_of(path, "image")
    longest = _MAX_SIDE.get(options["format"])
    if longest is not None and max(image.size) > longest:
        raise UserError(f"{path}: {options['format']} holds sides of at most {longest} pixels; name it .png")
    content = io.BytesIO()
    image.save(content, **options)
    write_bytes(content.getvalue(), path)


def inline_url(image: Image.Image, side: int) -> str:
    """An RGB image as a data URL without any metadata, its longer side at most `side` pixels.

    Small ones, which a page enlarges, are PNG; others JPEG.
    """
    scale = side / max(image.size)
    if scale < 1:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    form = "PNG" if max(image.size) <= _SMALL else "JPEG"
    content = io.BytesIO()
    bare = Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())
    bare.save(content, form, **({"quality": _INLINE_QUALITY} if form == "JPEG" else {}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def write_figure(figure: Figure, file: Path, *, dpi: int) -> None:
    """Atomically replaces the PNG `file` with a figure."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    write_bytes(content.getvalue(), file)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _options_of(path: Path, option: str) -> dict[str, Any]:
    options = _OPTIONS.get(path.suffix.lower())
    if options is None:
        raise UserError(f"{option} {str(path)!r}: must end in {', '.join(_OPTIONS)}, which decides the format")
    return options
