"""A pack as training meets it, from the recipe alone: full to the token budget."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scone_pl.data.packing import PackingConfig
from scone_pl.errors import UserError
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import NetworkConfig
from scone_pl.model.layout import ReferenceImages
from scone_pl.model.sequence import PackedSequence, SpecialTokens

INSTRUCTION = 62
"""Words of an instruction (+ 2 frame tokens)."""


def typical_pack(config: NetworkConfig, packing: PackingConfig, references: int = 2, labels: int = 0) -> PackedSequence:
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
    resizes = packing.resizes(sequence_format)
    vae, vit = (resize.max_size / resize.stride for resize in resizes)
    strides = [resize.stride for resize in resizes]
    layout = sequence_format.layout
    vae_references = 0 if layout.single_stream else references
    frames = sum(layout.context_words(references, ())) + 2 * layout.frame * packing.targets_per_sample
    vae_images = vae_references + packing.targets_per_sample
    answer = labels + 1 if labels else 0  # its first token is no label
    budget = packing.token_budget - answer
    words = min(INSTRUCTION, max(1, budget // 8))
    full = vae_images * vae**2 + references * vit**2 + frames + words
    samples = max(1, math.ceil(budget / full - 0.05))  # a little more is words; larger images there are not
    space = budget // samples - frames - words
    scale = min(1.0, space / (vae_images * vae**2 + references * vit**2)) if space > 0 else 0.0
    sides = [math.floor(side * math.sqrt(scale)) for side in (vae, vit)]
    if min(sides) < 1:
        raise UserError(f"data.packing.token_budget is {packing.token_budget}, too small for one sample")
    vae_image, vit_image = (_empty(side * stride) for side, stride in zip(sides, strides, strict=True))
    left = budget - samples * (
        vae_images * sides[0] ** 2 + references * sides[1] ** 2 + frames + words
    )  # rounding: goes to the words of the first samples
    builder = SequenceBuilder(sequence_format)
    for sample in range(samples):
        builder.begin_sample()
        more = min(left, INSTRUCTION) if sample < samples - 1 else left
        text = [4] * (words + max(0, more))
        left -= more
        images_of_sample = [ReferenceImages(None if layout.single_stream else vae_image, vit_image)] * references
        if labels and sample == 0:
            layout.add_answer(builder, images_of_sample, text, [4] * (labels - 1), with_target=True)
        else:
            layout.add_context(builder, images_of_sample, text)
        builder.add_targets(vae_image, [0.0] * packing.targets_per_sample)
    return builder.build()


def _empty(side: int) -> Tensor:
    """An image without contents that takes no memory."""
    return torch.zeros(1).expand(3, side, side)
