"""A contact sheet of episodes: references, instruction and target side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from scone_pl.worlds.episode import Episode

_MARGIN = 6
_CAPTION = 14


def contact_sheet(rows: Sequence[Sequence[Episode]], scale: int = 6) -> Image.Image:
    """One row of episodes a task; each shows its references, then its target, enlarged `scale` times.

    Pixels are repeated, never smoothed. The instruction stands above, the task at the head of each row.
    """
    episodes = [episode for row in rows for episode in row]
    # The widest instruction in Pillow's built-in font takes 6 pixels a letter.
    width = max(max(_panel(e, scale).shape[1], 6 * len(e.instruction)) for e in episodes) + 2 * _MARGIN
    height = max(e.canvas for e in episodes) * scale + 2 * _CAPTION + 2 * _MARGIN
    sheet = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)), (250, 250, 250))
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, episode in enumerate(row):
            left, top = x * width + _MARGIN, y * height + _MARGIN
            if x == 0:
                draw.text((left, top), episode.task, fill=(120, 120, 120))
            draw.text((left, top + _CAPTION), episode.instruction, fill=(0, 0, 0))
            sheet.paste(Image.fromarray(_panel(episode, scale)), (left, top + 2 * _CAPTION))
    return sheet


def _panel(episode: Episode, scale: int) -> np.ndarray:
    """References, a gap, the target: (H, W, 3) uint8."""
    gap = np.full((episode.canvas * scale, scale, 3), 250, dtype=np.uint8)
    wide_gap = np.full((episode.canvas * scale, 3 * scale, 3), 250, dtype=np.uint8)
    parts: list[np.ndarray] = []
    for reference in episode.references:
        parts += [_enlarge(reference, scale), gap]
    return np.concatenate([*parts[:-1], wide_gap, _enlarge(episode.target, scale)], axis=1)


def _enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    return image.repeat(scale, axis=0).repeat(scale, axis=1)
