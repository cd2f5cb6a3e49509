"""Atomic writing of image files; the extension determines the format."""

from __future__ import annotations

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
