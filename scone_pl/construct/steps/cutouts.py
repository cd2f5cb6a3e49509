"""Subjects cut out of photographs with a transparent or a plain background."""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from PIL import Image, ImageFilter, ImageOps

from scone_pl.data.decoding import decode_rgb, open_image
from scone_pl.data.sample import BrokenSampleError

_MAX_SIDE = 1024
_TOLERANCE = 26.0
"""Greatest difference of a background's colours (0 to 255)."""
_MIN_PLAIN = 0.97
"""Least fraction of an image's edge that is background."""
_OTHER_TOLERANCES = (0.75, 1.3)
"""Factors of the tolerance with which the subject must stay nearly the same: else it has the background's colour."""
_MIN_STABLE = 0.95
"""Least intersection over union of the subject then."""
_MIN_PART = 0.05
"""Least area of a part, as a fraction of the greatest; smaller ones are dust or noise."""
_MAX_PARTS = 3
"""A subject in more parts is one whose colours between them are the background's."""
_EDGE = 1
"""Width in pixels of the subject's edge, whose colours are mixed with the background's."""
_MIN_AREA, _MAX_AREA = 0.01, 0.9
"""Of the subject, as fractions of the image."""


def cut_out(data: bytes) -> Image.Image:
    """The subject, RGBA, as small as it is.

    Raises:
        BrokenSampleError: the image cannot be decoded, or its background is neither transparent nor plain.
    """
    rgb = decode_rgb(data)
    alpha = _alpha(data)
    if alpha is None or alpha.size != rgb.size:
        rgb.thumbnail((_MAX_SIDE, _MAX_SIDE))
        rgb, alpha = _plain(rgb)
    result = rgb.convert("RGBA")
    result.putalpha(alpha)
    box = alpha.point(lambda value: 255 if value > 127 else 0).getbbox()
    area = float((np.asarray(alpha) > 127).mean())
    if box is None or not _MIN_AREA <= area <= _MAX_AREA:
        raise BrokenSampleError("no cut-out", f"the subject covers {area:.0%} of the image")
    result = result.crop(box)
    result.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return result


def _alpha(data: bytes) -> Image.Image | None:
    image = open_image(data)
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return None
    alpha = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
    return alpha if np.asarray(alpha).min() < 128 else None


def _plain(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The image, with the subject's colours up to its edge, and its alpha."""
    pixels = np.asarray(image, dtype=np.float32)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(edge, axis=0)
    if (np.abs(edge - colour).max(axis=1) <= _TOLERANCE).mean() < _MIN_PLAIN:
        raise BrokenSampleError("no cut-out", "the background is neither transparent nor of one colour")
    difference = np.abs(pixels - colour).max(axis=2)
    subject = _subject(difference > _TOLERANCE)
    if scipy.ndimage.label(subject)[1] > _MAX_PARTS:
        raise BrokenSampleError("no cut-out", "the subject is in pieces: it has the colour of the background, too")
    for factor in _OTHER_TOLERANCES:
        other = _subject(difference > factor * _TOLERANCE)
        if (subject & other).sum() < _MIN_STABLE * (subject | other).sum():
            raise BrokenSampleError("no cut-out", "parts of the subject have nearly the colour of the background")
    inner = scipy.ndimage.binary_erosion(subject, iterations=_EDGE)
    distance, (rows, columns) = scipy.ndimage.distance_transform_edt(~inner, return_indices=True)
    near = (distance <= 2 * _EDGE)[..., None] & inner.any()
    colours = Image.fromarray(np.where(near, pixels[rows, columns], pixels).astype(np.uint8))
    mask = Image.fromarray(np.where(subject, 255, 0).astype(np.uint8))
    return colours, mask.filter(ImageFilter.MinFilter(3)).filter(ImageFilter.GaussianBlur(0.8))


def _subject(unlike: np.ndarray) -> np.ndarray:
    """(height, width) booleans: what the background, which reaches the edge, encloses; without small parts."""
    labels, _ = scipy.ndimage.label(~unlike)
    outside = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    parts, _ = scipy.ndimage.label(~np.isin(labels, outside[outside > 0]))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.isin(parts, np.flatnonzero(sizes >= max(1, _MIN_PART * sizes.max())))
