"""Previews and figures: image grids, overlays of what the bridge blocked, image files written atomically."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from scone_pl.image_files import write_image

Pixels = np.ndarray
"""(H, W, 3) uint8."""
BACKGROUND = (250, 250, 248)


def save_image(pixels: Pixels, file: str | os.PathLike[str]) -> None:
    """Writes an image file, see `write_image`."""
    write_image(Image.fromarray(pixels), file)


def scale_to(pixels: Pixels, height: int) -> Pixels:
    """Resizes to `height` pixels: nearest neighbour upwards, Lanczos downwards."""
    width = max(1, round(pixels.shape[1] * height / pixels.shape[0]))
    method = Image.Resampling.NEAREST if height >= pixels.shape[0] else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((width, height), method))


def dim_blocked(pixels: Pixels, blocked: np.ndarray) -> Pixels:
    """Pales the blocked regions; `blocked`: grid (rows, columns) over the image, of bool or of degrees in [0, 1]."""
    mask = Image.fromarray((blocked * 255.0).astype(np.uint8)).resize(
        (pixels.shape[1], pixels.shape[0]), Image.Resampling.NEAREST
    )
    weight = 0.8 * (np.asarray(mask)[..., None] / 255)
    return (pixels * (1 - weight) + 255 * weight).astype(np.uint8)


def heat_map(values: np.ndarray, height: int) -> Pixels:
    """A similarity grid (rows, columns) in [-1, 1] as blue (low) to red (high)."""
    unit = np.clip((values + 1) / 2, 0, 1)[..., None]
    low, high = np.array([40, 60, 150]), np.array([220, 60, 40])
    return scale_to((low * (1 - unit) + high * unit).astype(np.uint8), height)


def image_grid(rows: Sequence[tuple[Sequence[Pixels], str]], *, cell: int = 112, titles: Sequence[str] = ()) -> Pixels:
    """Images in columns, a caption under each row.

    Args:
        rows: per row its images and its caption.
        cell: height of an image in pixels.
        titles: column titles.
    """
    scaled = [[scale_to(image, cell) for image in images] for images, _ in rows]
    columns = max(len(images) for images in scaled)
    widths = [max((r[c].shape[1] for r in scaled if c < len(r)), default=cell) for c in range(columns)]
    widths = [max(w, 8 * len(titles[c]) if c < len(titles) else 0) for c, w in enumerate(widths)]
    text, gap = 18, 8
    head = text if titles else 0
    size = (sum(widths) + gap * (columns + 1), head + len(rows) * (cell + text + gap) + gap)
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    lefts = [gap + sum(widths[:c]) + gap * c for c in range(columns)]
    for left, title in zip(lefts, titles, strict=False):
        draw.text((left, 3), title, fill=(60, 60, 60))
    for i, (images, (_, caption)) in enumerate(zip(scaled, rows, strict=True)):
        top = head + gap + i * (cell + text + gap)
        for left, image in zip(lefts, images, strict=False):
            canvas.paste(Image.fromarray(image), (left, top))
        draw.text((gap, top + cell + 2), caption, fill=(20, 20, 20))
    return np.asarray(canvas)


def bridge_image(rows: Sequence[tuple[Pixels, np.ndarray, np.ndarray]], *, cell: int = 256) -> Pixels:
    """A row per reference: the reference, its blocked regions paled, its similarity as a heat map.

    Args:
        rows: per reference its pixels, its similarity (rows, columns) and its blocked tokens, a bool grid alike.
        cell: height of an image in pixels.
    """
    shown = []
    for number, (pixels, similarity, blocked) in enumerate(rows, 1):
        # Similarities lie close together: the colours span the range of this reference, which the caption states.
        spread = max(float(np.ptp(similarity)), 1e-6)
        heat = heat_map(2 * (similarity - similarity.min()) / spread - 1, cell)
        caption = (
            f"reference {number}: {blocked.mean():.0%} blocked, "
            f"similarity {similarity.min():.2f} to {similarity.max():.2f}"
        )
        pale = dim_blocked(scale_to(pixels, cell), blocked)
        shown.append(([pixels, pale, heat], caption))
    return image_grid(shown, cell=cell, titles=("reference", "visible to the target", "similarity"))
