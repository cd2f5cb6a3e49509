"""Hues that tell identities apart: a drawing as it is, or tinted."""

from __future__ import annotations

import colorsys

import numpy as np

HUES: tuple[str, ...] = ("red", "yellow", "green", "cyan", "blue", "pink")
"""Names of hues 0, 60, ... 300 degrees."""
NATURAL = "natural"
_STRENGTH = 0.8
"""How much of a tinted drawing is the tint."""
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def tinted(cell: np.ndarray, hue: str) -> np.ndarray:
    """(side, side, 4) uint8 RGBA: `cell`, its colours drawn towards `hue`; dark stays dark and light stays light."""
    if hue == NATURAL:
        return cell
    colour = 255 * np.array(colorsys.hsv_to_rgb(HUES.index(hue) / len(HUES), 0.95, 0.9), dtype=np.float32)
    rgb, alpha = cell[..., :3].astype(np.float32), cell[..., 3:]
    luma = (rgb @ _LUMA)[..., None]
    middle = float(np.median(luma[alpha[..., 0] > 40])) if (alpha > 40).any() else 128.0
    middle = min(max(middle, 40.0), 215.0)
    dark = colour * (luma / middle)
    light = colour + (255 - colour) * (luma - middle) / (255 - middle)
    mixed = _STRENGTH * np.where(luma < middle, dark, light) + (1 - _STRENGTH) * rgb
    return np.concatenate([mixed.round().clip(0, 255).astype(np.uint8), alpha], axis=-1)
