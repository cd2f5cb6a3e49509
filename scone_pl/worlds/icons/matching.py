"""Where in an image a drawing fits best, and how well: a matched filter over place, scale, view and flip.

X = image - background is compared with D = drawing - background within a window, the drawing's silhouette widened by a
pixel: correlation = <X, D> / (|X| |D|), gain = <X, D> / |D|^2. A perfect drawing has 1 and 1, a faint one a gain below
1, what is not there a correlation near 0. A shift costs nothing, as every place is tried.

H, W: sides of the image. N templates of sides h, w, padded to K x K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from scone_pl.worlds.icons.atlas import IDENTITIES, Atlas
from scone_pl.worlds.icons.episode import BASE, Look

_SCALES = (0.56, 0.66, 0.78, 0.92, 1.08, 1.26)
"""First tried; then a pixel more and less."""
_ANGLES = (-12, 12)


Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels; may reach beyond the image."""


@dataclass(frozen=True)
class Pose:
    """A drawing at a place."""

    look: Look
    view: str
    side: int
    flip: bool
    angle: int = 0
    left: int = 0
    top: int = 0


@dataclass(frozen=True, eq=False)
class Fit:
    """How well a pose fits."""

    pose: Pose
    correlation: float
    gain: float
    box: Box

    def overlap(self, other: Fit) -> float:
        """Common area over the smaller one's."""
        width = min(self.box[2], other.box[2]) - max(self.box[0], other.box[0])
        height = min(self.box[3], other.box[3]) - max(self.box[1], other.box[1])
        return max(width, 0) * max(height, 0) / min(_area(self.box), _area(other.box))


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _best_of(groups: Sequence[Sequence[Pose]], fits: Sequence[Fit]) -> list[Fit]:
    """The best of each group's fits, which follow one another."""
    one = iter(fits)
    return [max((next(one) for _ in group), key=lambda fit: fit.correlation) for group in groups]


class Matcher:
    """One image and its background, against any number of looks."""

    def __init__(self, image: np.ndarray, background: np.ndarray, atlas: Atlas) -> None:
        """Both (H, W, 3) from 0 to 255."""
        self.atlas = atlas
        self.canvas = len(image)
        self.background = background.astype(np.float32)
        self.difference = image.astype(np.float32) - self.background

    def best(self, looks: Sequence[Look]) -> list[Fit]:
        """The best fit of each look, over its views, scales, flips, places and small angles."""
        sides = sorted({max(3, round(scale * BASE * self.canvas)) for scale in _SCALES})
        groups = [
            [
                Pose(look, view, side, flip)
                for view in IDENTITIES[look.identity]
                for side in sides
                for flip in (False, True)
            ]
            for look in looks
        ]
        coarse = _best_of(groups, self.fits([pose for group in groups for pose in group]))
        nearby = [
            [
                replace(fit.pose, side=side, angle=angle)
                for side in range(fit.pose.side - 1, fit.pose.side + 2)
                for angle in (0, *_ANGLES)
            ]
            for fit in coarse
        ]
        boxes = [fit.box for fit, group in zip(coarse, nearby, strict=True) for _ in group]
        refined = _best_of(nearby, self.fits([pose for group in nearby for pose in group], boxes))
        return [max(pair, key=lambda fit: fit.correlation) for pair in zip(coarse, refined, strict=True)]

    def fits(self, poses: Sequence[Pose], near: Sequence[Box] | None = None) -> list[Fit]:
        """The best place of each pose, or with `near` the best with its middle within a pixel of that of its box."""
        sprites = [self._sprite(pose) for pose in poses]
        size = max(max(s.shape[:2]) for s in sprites) + 2
        pad = size // 3
        stack = np.zeros((len(poses), size, size, 4), dtype=np.float32)
        for target, sprite in zip(stack, sprites, strict=True):
            target[1 : 1 + sprite.shape[0], 1 : 1 + sprite.shape[1]] = sprite
        templates = torch.from_numpy(stack).permute(0, 3, 1, 2)  # (N, 4, K, K)
        colour, alpha = templates[:, :3], templates[:, 3:]
        window = F.max_pool2d(alpha, 3, 1, 1).gt(0.05).float()
        room = size - 1 - min(min(s.shape[:2]) for s in sprites)
        x, b = (
            F.pad(torch.from_numpy(a).permute(2, 0, 1)[None], (pad, pad + room, pad, pad + room))
            for a in (self.difference, self.background)
        )

        def correlate(image: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
            return F.conv2d(image, kernels)[0]

        product = correlate(x, colour) - correlate((x * b).sum(1, keepdim=True), alpha)
        own = colour.square().sum((1, 2, 3))[:, None, None] - 2 * correlate(b, colour * alpha)
        own = own + correlate(b.square().sum(1, keepdim=True), alpha.square())
        seen = correlate(x.square().sum(1, keepdim=True), window)
        # A floor of 12 of 255 a value: in an empty place, noise must not look like anything.
        floor = 3 * 12.0**2 * window.sum((1, 2, 3))[:, None, None]
        correlation = product / (own.clamp(min=1).sqrt() * (seen + floor).sqrt())
        if near is not None:
            allowed = torch.full_like(correlation, -1.0)
            for n, (box, sprite) in enumerate(zip(near, sprites, strict=True)):
                row, column = (
                    max(round((first + last - length) / 2) + pad - 1, 1)
                    for first, last, length in zip(box[1::-1], box[:1:-1], sprite.shape[:2], strict=True)
                )
                area = (n, slice(row - 1, row + 2), slice(column - 1, column + 2))
                allowed[area] = correlation[area]
            correlation = allowed
        best = correlation.flatten(1).max(1)
        fits = []
        for n, pose in enumerate(poses):
            row, column = divmod(int(best.indices[n]), correlation.shape[2])
            place = replace(pose, left=column - pad + 1, top=row - pad + 1)
            height, width = sprites[n].shape[:2]
            gain = float(product[n, row, column] / own[n, row, column].clamp(min=1))
            box = (place.left, place.top, place.left + width, place.top + height)
            fits.append(Fit(place, float(best.values[n]), gain, box))
        return fits

    def parts(self, pose: Pose) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """D (H, W, 3), 0 outside the silhouette; the window (H, W) bool; X (H, W, 3)."""
        sprite = self._sprite(pose)
        side, pad = self.canvas, max(sprite.shape) + 2
        whole = np.zeros((side + 2 * pad, side + 2 * pad, 4), dtype=np.float32)
        top = min(max(pose.top + pad, 0), side + pad)
        left = min(max(pose.left + pad, 0), side + pad)
        whole[top : top + sprite.shape[0], left : left + sprite.shape[1]] = sprite
        inside = whole[pad : pad + side, pad : pad + side]
        shown = np.pad(inside[..., 3] > 0.05, 1)
        window = np.zeros((side, side), dtype=bool)
        for dy in range(3):
            for dx in range(3):
                window |= shown[dy : dy + side, dx : dx + side]
        return inside[..., :3] - inside[..., 3:] * self.background, window, self.difference

    def _sprite(self, pose: Pose) -> np.ndarray:
        look = pose.look
        return self.atlas.sprite(look.index, pose.view, look.hue, pose.side, flip=pose.flip, angle=pose.angle)
