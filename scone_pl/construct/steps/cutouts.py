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
        alpha = _plain(rgb)
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


def _plain(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(edge, axis=0)
    if (np.abs(edge - colour).max(axis=1) <= _TOLERANCE).mean() < _MIN_PLAIN:
        raise BrokenSampleError("no cut-out", "the background is neither transparent nor of one colour")
    like = np.abs(pixels - colour).max(axis=2) <= _TOLERANCE
    labels, _ = scipy.ndimage.label(like)
    outside = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    background = np.isin(labels, outside[outside > 0])
    mask = Image.fromarray(np.where(background, 0, 255).astype(np.uint8))
    return mask.filter(ImageFilter.MinFilter(3)).filter(ImageFilter.GaussianBlur(0.8))
