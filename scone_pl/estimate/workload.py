"""A pack as training meets it, from the recipe alone: full to the token budget."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scone_pl.data.packing import PackingConfig
from scone_pl.errors import UserError
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import SconeConfig
from scone_pl.model.sequence import PackedSequence, SpecialTokens

INSTRUCTION = 62
"""Words of an instruction (+ 2 frame tokens)."""


def typical_pack(config: SconeConfig, packing: PackingConfig, references: int = 2, labels: int = 0) -> PackedSequence:
    """Equal samples of square images, the largest that fill the budget; what rounding leaves are words.

    Args:
        config: of the model.
        packing: decides budget, largest images and targets a sample.
        references: images a sample.
        labels: tokens of the pack whose next token is predicted, in one answer.

    Raises:
        UserError: a budget that holds no sample.
    """
    sequence_format = config.sequence_format(SpecialTokens(0, 1, 2, 3))
    vae, vit = (resize.max_size / resize.stride for resize in packing.resizes(sequence_format))
    images = references + packing.targets_per_sample
    frames = 2 * (images + references + 1)
    answer = labels + 1 if labels else 0  # its first token is no label
    budget = packing.token_budget - answer
    words = min(INSTRUCTION, max(1, budget // 8))
    full = images * vae**2 + references * vit**2 + frames + words
    samples = max(1, math.ceil(budget / full - 0.05))  # a little more is words; larger images there are not
    space = budget // samples - frames - words
    scale = min(1.0, space / (images * vae**2 + references * vit**2)) if space > 0 else 0.0
    sides = [math.floor(side * math.sqrt(scale)) for side in (vae, vit)]
    if min(sides) < 1:
        raise UserError(f"data.packing.token_budget is {packing.token_budget}, too small for one sample")
    vae_image, vit_image = (_empty(side * stride) for side, stride in zip(sides, _strides(config), strict=True))
    left = budget - samples * (
        images * sides[0] ** 2 + references * sides[1] ** 2 + frames + words
    )  # rounding: goes to the words of the first samples
    builder = SequenceBuilder(sequence_format)
    for sample in range(samples):
        builder.begin_sample()
        for number in range(references):
            builder.add_vae(vae_image, reference=number)
            builder.add_vit(vit_image, reference=number)
        more = min(left, INSTRUCTION) if sample < samples - 1 else left
        builder.add_text([4] * (words + max(0, more)))
        left -= more
        if labels and sample == 0:
            builder.add_text([4] * (labels - 1), loss=True)
        builder.add_targets(vae_image, [0.0] * packing.targets_per_sample)
    return builder.build()


def _strides(config: SconeConfig) -> tuple[int, int]:
    return config.latent_stride, config.vit.patch_size


def _empty(side: int) -> Tensor:
    """An image without contents that takes no memory."""
    return torch.zeros(1).expand(3, side, side)
