"""Images in requests to vision-language models: their size, and data URLs."""

from __future__ import annotations

import base64
import io
import math

from PIL import Image

MAX_PIXELS = 1024**2
STEP = 16
QUALITY = 75


def reference_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) in pixels of a reference after the judge's resize.

    At most 1024^2 pixels, each side a multiple of 16, and at least 16 (the published code fails on narrower ones).
    """
    if width * height > MAX_PIXELS:
        scale = math.sqrt(MAX_PIXELS / (width * height))
        width, height = int(width * scale), int(height * scale)
    return max(STEP, width // STEP * STEP), max(STEP, height // STEP * STEP)


def jpeg_url(image: Image.Image, quality: int) -> str:
    """An RGB image as a data URL."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
