"""Classifier-free guidance with two conditions, text and references (docs/specification.md 7).

Shapes: B images, T target tokens of an image, P values of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Rescale = Literal["global", "channel", "text_channel"]


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Scales and rescaling; the defaults are Scone's published settings."""

    text_scale: float = 4.0
    """Weight of the instruction; 1 = no guidance."""
    image_scale: float = 2.0
    """Weight of the references on top of it; 1 = none."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Guidance acts while `low < t <= high`."""
    rescale: Rescale = "text_channel"
    """What keeps the guided velocity no longer than the unguided: over the whole image, per token, or per token
    after the text guidance only."""
    rescale_min: float = 0.0
    """Smallest factor that rescaling may apply."""

    def active(self, t: Tensor) -> bool:
        """Whether the guided branches are needed at time `t`, a 0-d float32 tensor.

        Torch brings the interval's ends to float32 for the comparison, as the release does: a time that is an end of
        the interval would otherwise fall on either side of it.
        """
        return self.text_scale > 1 and bool(self.interval[0] < t) and bool(t <= self.interval[1])

    @property
    def needs_image_branch(self) -> bool:
        return self.image_scale > 1


def guide(config: GuidanceConfig, full: Tensor, no_text: Tensor, no_image: Tensor | None) -> Tensor:
    """Combines the branches' velocities, each (B, T, P).

    Args:
        config: scales and rescaling.
        full: given references and instruction.
        no_text: given the references only.
        no_image: given the instruction only; None without image guidance.
    """
    text = no_text + config.text_scale * (full - no_text)
    if config.rescale == "text_channel":
        text = text * _factor(full, text, (-1,), config.rescale_min)
    guided = text if no_image is None else no_image + config.image_scale * (text - no_image)
    if config.rescale == "global":
        guided = guided * _factor(full, guided, (-2, -1), config.rescale_min)
    elif config.rescale == "channel":
        guided = guided * _factor(full, guided, (-1,), config.rescale_min)
    return guided


def _factor(reference: Tensor, guided: Tensor, dims: tuple[int, ...], smallest: float) -> Tensor:
    lengths = (torch.linalg.vector_norm(x, dim=dims, keepdim=True) for x in (reference, guided))
    reference_length, guided_length = lengths
    return (reference_length / (guided_length + 1e-8)).clamp(min=smallest, max=1.0)
