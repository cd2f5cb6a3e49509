"""Scenes: where subjects stand, and the rules of standing there.

Grass, table and water have a horizon. Subjects stand with their base (the lower edge of what is opaque) below it; the
nearer, that is the lower in the image, the larger, and the nearer hides the farther. In the sky and on cloth, which is
seen from above, they lie anywhere at any size.

H, W: sides of the canvas in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

PHRASES: dict[str, str] = {
    "grass": "on the grass",
    "table": "on the table",
    "water": "on the water",
    "sky": "in the sky",
    "cloth": "on the cloth",
}
"""Scene -> how instructions name it."""
STANDING = ("grass", "table", "water")
"""Scenes with a ground."""

_HORIZONS = (0.30, 0.42)
"""Bounds of the horizon as a fraction of H."""
_ABOVE = {"grass": (176, 214, 240), "table": (226, 212, 190), "water": (206, 222, 236)}
_BELOW = {"grass": (104, 158, 72), "table": (140, 94, 56), "water": (52, 108, 160)}
_SKY = ((104, 160, 226), (196, 222, 246))
_CLOTH = ((150, 132, 142), (132, 142, 150), (146, 142, 126), (120, 132, 120))


@dataclass(frozen=True)
class Scene:
    """One background."""

    name: str
    """Key of `PHRASES`."""
    canvas: int
    """H and W."""
    seed: int
    """Decides the horizon and the texture."""

    @cached_property
    def horizon(self) -> int:
        """Row above which nothing stands; 0 where there is no ground."""
        if self.name not in STANDING:
            return 0
        return round(self.canvas * self._generator().uniform(*_HORIZONS))

    @property
    def ground(self) -> tuple[int, int]:
        """(first, last) row on which bases stand."""
        return ground_below(self.horizon, self.canvas)

    def _generator(self) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.seed))

    def draw(self) -> np.ndarray:
        """(H, W, 3) float32 from 0 to 255, without subjects."""
        side, rng = self.canvas, self._generator()
        rng.random()  # the horizon's
        rows, columns = _rows(side), _rows(side).swapaxes(0, 1)
        noise = rng.standard_normal((side, side, 1)).astype(np.float32)
        variant = int(rng.integers(len(_CLOTH)))
        image = untextured(self.name, side, self.horizon, variant)
        if self.name == "sky":
            for x, y, radius in rng.random((3, 3)):
                far = ((columns - x) ** 2 + 3 * (rows - y) ** 2) / (0.02 + 0.03 * radius)
                image = image + 35 * np.exp(-far)
        elif self.name == "cloth":
            across, along, phase = rng.uniform((4, -5, 0), (7, 5, 1))
            image = image + 8 * np.sin(2 * np.pi * (across * rows + along * columns + phase)) + 1.5 * noise
        else:
            wave = 6 * rng.random()
            below = {
                "grass": 4 * noise,
                "table": 6 * np.sin(2 * np.pi * 9 * (rows + 0.03 * np.sin(9 * columns + wave))) + 1.5 * noise,
                "water": 8 * np.sin(2 * np.pi * (7 * rows + 0.4 * np.sin(7 * columns + wave))) + 1.5 * noise,
            }[self.name]
            image = image + np.where(rows * side >= self.horizon, below, noise)
        drawn: np.ndarray = image.clip(0, 255).astype(np.float32)
        return drawn


def ground_below(horizon: int, side: int) -> tuple[int, int]:
    """(first, last) row on which bases stand; anywhere without a horizon."""
    return (horizon + round(0.18 * side), side - 1) if horizon else (0, side)


def _rows(side: int) -> np.ndarray:
    """(side, 1, 1) float32 from 0 to 1."""
    return np.arange(side, dtype=np.float32)[:, None, None] / side


def untextured(name: str, side: int, horizon: int = 0, variant: int = 0) -> np.ndarray:
    """(side, side, 3) float32: a scene without its texture; `variant` is the cloth's colour."""
    rows = _rows(side)
    if name == "sky":
        top, bottom = (np.array(c, dtype=np.float32) for c in _SKY)
        image = top + (bottom - top) * rows
    elif name == "cloth":
        image = np.array(_CLOTH[variant], dtype=np.float32) + 0 * rows
    else:
        above, below = (np.array(c[name], dtype=np.float32) for c in (_ABOVE, _BELOW))
        lower = below * (0.8 + 0.5 * (rows - horizon / side).clip(0))
        image = np.where(rows * side >= horizon, lower, above - 20 * rows)
    return np.broadcast_to(image, (side, side, 3)).astype(np.float32)


@cache
def every_background(side: int) -> tuple[tuple[str, int, np.ndarray], ...]:
    """(scene, horizon, image) of every scene that can be drawn, without textures."""
    first, last = (round(side * h) for h in _HORIZONS)
    standing = [(name, h, untextured(name, side, h)) for name in STANDING for h in range(first, last + 1)]
    cloth = [("cloth", 0, untextured("cloth", side, 0, variant)) for variant in range(len(_CLOTH))]
    return (*standing, *cloth, ("sky", 0, untextured("sky", side)))
