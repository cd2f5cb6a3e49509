"""Classifier-free guidance with two conditions, text and references (docs/specification.md 7).

Shapes: B images, T target tokens of an image, P values of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scone_pl.sampling.settings import SamplingConfig


def guided_at(config: SamplingConfig, t: Tensor) -> bool:
    """Whether the guided branches are needed at time `t`, a 0-d float32 tensor.

    Torch converts the interval's ends to float32 for the comparison, as the release does: a time that equals an end of
    the interval would otherwise fall on either side of it.
    """
    low, high = config.guidance_interval
    return config.guidance_scale > 1 and bool(low < t) and bool(t <= high)


def guide(config: SamplingConfig, full: Tensor, no_text: Tensor, no_image: Tensor | None) -> Tensor:
    """Combines the branches' velocities, each (B, T, P).

    Args:
        config: scales and rescaling.
        full: given references and instruction.
        no_text: given the references only.
        no_image: given the instruction only; None without image guidance.
    """
    text = no_text + config.guidance_scale * (full - no_text)
    if config.guidance_rescale == "text_channel":
        text = text * _factor(full, text, (-1,), config.guidance_rescale_min)
    guided = text if no_image is None else no_image + config.image_guidance_scale * (text - no_image)
    if config.guidance_rescale == "global":
        guided = guided * _factor(full, guided, (-2, -1), config.guidance_rescale_min)
    elif config.guidance_rescale == "channel":
        guided = guided * _factor(full, guided, (-1,), config.guidance_rescale_min)
    return guided


def _factor(reference: Tensor, guided: Tensor, dims: tuple[int, ...], minimum: float) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(reference, dim=dims, keepdim=True)
    guided_length: Tensor = torch.linalg.vector_norm(guided, dim=dims, keepdim=True)
    return (length / (guided_length + 1e-8)).clamp(min=minimum, max=1.0)
