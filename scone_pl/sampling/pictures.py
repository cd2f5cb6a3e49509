"""Images for people: files that appear whole or not at all, grids, overlays of what the bridge blocked.

Images are uint8 arrays (H, W, 3).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from scone_pl.image_files import write_image

Picture = np.ndarray
BACKGROUND = (250, 250, 248)


def save_picture(picture: Picture, file: str | os.PathLike[str]) -> None:
    """Writes an image file, see `write_image`."""
    write_image(Image.fromarray(picture), file)


def scale_to(picture: Picture, height: int) -> Picture:
    """Enlarges without smoothing, or reduces smoothly, to `height` pixels."""
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    method = Image.Resampling.NEAREST if height >= picture.shape[0] else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize((width, height), method))


def dim_blocked(picture: Picture, blocked: np.ndarray, strength: float = 0.8) -> Picture:
    """Pales the blocked regions; `blocked` is a bool grid (rows, columns) over the picture."""
    mask = Image.fromarray(blocked.astype(np.uint8) * 255).resize(
        (picture.shape[1], picture.shape[0]), Image.Resampling.NEAREST
    )
    weight = strength * (np.asarray(mask)[..., None] / 255)
    return (picture * (1 - weight) + 255 * weight).astype(np.uint8)


def heat_map(values: np.ndarray, height: int) -> Picture:
    """A similarity grid (rows, columns) in [-1, 1] as blue (low) to red (high)."""
    unit = np.clip((values + 1) / 2, 0, 1)[..., None]
    low, high = np.array([40, 60, 150]), np.array([220, 60, 40])
    return scale_to((low * (1 - unit) + high * unit).astype(np.uint8), height)


def grid_of(
    rows: Sequence[tuple[Sequence[Picture], str]], *, cell: int = 112, titles: Sequence[str] = (), gap: int = 8
) -> Picture:
    """Pictures in columns, a caption under each row.

    Args:
        rows: per row its pictures and its caption.
        cell: height of a picture in pixels.
        titles: column heads.
        gap: pixels between pictures.
    """
    scaled = [[scale_to(p, cell) for p in pictures] for pictures, _ in rows]
    columns = max(len(pictures) for pictures in scaled)
    widths = [max((r[c].shape[1] for r in scaled if c < len(r)), default=cell) for c in range(columns)]
    widths = [max(w, 8 * len(titles[c]) if c < len(titles) else 0) for c, w in enumerate(widths)]
    text = 18
    head = text if titles else 0
    size = (sum(widths) + gap * (columns + 1), head + len(rows) * (cell + text + gap) + gap)
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    lefts = [gap + sum(widths[:c]) + gap * c for c in range(columns)]
    for left, title in zip(lefts, titles, strict=False):
        draw.text((left, 3), title, fill=(60, 60, 60))
    for i, (pictures, (_, caption)) in enumerate(zip(scaled, rows, strict=True)):
        top = head + gap + i * (cell + text + gap)
        for left, picture in zip(lefts, pictures, strict=False):
            canvas.paste(Image.fromarray(picture), (left, top))
        draw.text((gap, top + cell + 2), caption, fill=(20, 20, 20))
    return np.asarray(canvas)


def bridge_picture(rows: Sequence[tuple[Picture, np.ndarray, np.ndarray]], *, cell: int = 256) -> Picture:
    """What the bridge did: a row per reference, as it is, blocked regions pale, similarity as heat.

    Args:
        rows: per reference its picture, its similarity (rows, columns) and what of it is blocked, a bool grid alike.
        cell: height of a picture in pixels.
    """
    shown = []
    for number, (picture, similarity, blocked) in enumerate(rows, 1):
        # Similarities lie close together: the colours span this reference's own range, which the caption tells.
        spread = max(float(np.ptp(similarity)), 1e-6)
        heat = heat_map(2 * (similarity - similarity.min()) / spread - 1, cell)
        caption = (
            f"reference {number}: {blocked.mean():.0%} blocked, "
            f"similarity {similarity.min():.2f} to {similarity.max():.2f}"
        )
        pale = dim_blocked(scale_to(picture, cell), blocked)
        shown.append(([picture, pale, heat], caption))
    return grid_of(shown, cell=cell, titles=("reference", "what the picture may see", "similarity"))
