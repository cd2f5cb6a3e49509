"""Classifier-free guidance: which contexts a base model's images are guided by, and how their velocities combine.

Shapes: B images, T target tokens of an image, P values of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from scone_pl.sampling.settings import SamplingConfig


class GuidanceRule:
    """Two conditions, text and references (docs/specification.md 7): BAGEL's and Scone's; the base of the others."""

    third_has_text: ClassVar[bool] = True
    """Whether the context without references has the instruction."""

    def guided_at(self, config: SamplingConfig, t: Tensor) -> bool:
        """Whether the guided branches are needed at time `t`, a 0-d float32 tensor.

        Torch converts the interval's ends to float32 for the comparison, as the release does: a time that equals an
        end of the interval would otherwise fall on either side of it.
        """
        low, high = config.guidance_interval
        return config.guidance_scale > 1 and bool(low < t) and bool(t <= high)

    def acts(self, config: SamplingConfig) -> bool:
        """Whether any step may be guided."""
        return config.guidance_scale > 1

    def needs(self, config: SamplingConfig, *, negative: bool) -> tuple[bool, bool]:
        """Whether guided steps need the context without the instruction, and that without references.

        Args:
            config: scales.
            negative: whether a prompt has a negative prompt, which stands in the former.
        """
        return True, config.needs_image_branch

    def guide(self, config: SamplingConfig, full: Tensor, no_text: Tensor | None, no_image: Tensor | None) -> Tensor:
        """Combines the branches' velocities, each (B, T, P) or (T, P).

        Args:
            config: scales and rescaling.
            full: given references and instruction.
            no_text: given the references only.
            no_image: given the instruction only; None without image guidance.
        """
        assert no_text is not None
        text = no_text + config.guidance_scale * (full - no_text)
        if config.guidance_rescale == "text_channel":
            text = text * _factor(full, text, (-1,), config.guidance_rescale_min)
        guided = text if no_image is None else no_image + config.image_guidance_scale * (text - no_image)
        return _rescaled(config, full, guided)


class ThreeContexts(GuidanceRule):
    """Full, references alone, nothing: v = nothing + a (full - references) + b (references - nothing).

    If one of the scales is 1 or both are equal, two contexts do. `text_channel` rescales references + a (full -
    references), as far as that is part of it; the published code has the other ways of rescaling.
    """

    third_has_text = False

    def guided_at(self, config: SamplingConfig, t: Tensor) -> bool:
        """The published interval is open at both ends, in a time that runs from 0 (noise) to 1.

        And one that reaches down to the noise covers all steps, whatever its other end is, as in the published code.
        """
        low, high = config.guidance_interval
        published = 1 - t
        inside = high == 1 or (bool(published > 1 - high) and bool(published < 1 - low))
        return self.acts(config) and inside

    def needs(self, config: SamplingConfig, *, negative: bool) -> tuple[bool, bool]:
        a, b = config.guidance_scale, config.image_guidance_scale
        return a != b or negative, b != 1

    def guide(self, config: SamplingConfig, full: Tensor, no_text: Tensor | None, no_image: Tensor | None) -> Tensor:
        a, b = config.guidance_scale, config.image_guidance_scale
        if no_text is None:
            assert no_image is not None
            text = guided = no_image + a * (full - no_image)
        else:
            text = no_text + a * (full - no_text)
            guided = text if no_image is None else no_image + a * (full - no_text) + b * (no_text - no_image)
        if config.guidance_rescale == "text_channel":
            return guided + text * (_factor(full, text, (-1,), config.guidance_rescale_min) - 1)
        return _rescaled(config, full, guided)


RULES: dict[str, GuidanceRule] = {"two_conditions": GuidanceRule(), "three_contexts": ThreeContexts()}
"""By `NetworkConfig.guidance`."""


def _rescaled(config: SamplingConfig, full: Tensor, guided: Tensor) -> Tensor:
    if config.guidance_rescale == "global":
        return guided * _factor(full, guided, (-2, -1), config.guidance_rescale_min)
    if config.guidance_rescale == "channel":
        return guided * _factor(full, guided, (-1,), config.guidance_rescale_min)
    return guided


def _factor(reference: Tensor, guided: Tensor, dims: Sequence[int], minimum: float) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(reference, dim=dims, keepdim=True)
    guided_length: Tensor = torch.linalg.vector_norm(guided, dim=dims, keepdim=True)
    return (length / (guided_length + 1e-8)).clamp(min=minimum, max=1.0)
