"""Prompt layouts: the order in which a sample's references, words and targets enter the sequence.

A base model has one. Everything else asks it, or the pack that it has built, which kinds of splits there are and where.
Here are the interface and the layout of the published Scone: per reference a VAE split and a ViT split, then the
instruction, then the target (docs/specification.md 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from torch import Tensor

from scone_pl.model.boxes import Box

if TYPE_CHECKING:
    from scone_pl.model.builder import SequenceBuilder
    from scone_pl.model.sequence import EncodedImage


class ReferenceImages(NamedTuple):
    """A reference image as a sample shows it; None = dropped."""

    vae: Tensor | EncodedImage | None
    """(3, H, W) in [-1, 1] or uint8, or encoded already: enters as clean latents, where the layout has those."""
    vit: Tensor | None
    """(3, H, W) in [-1, 1] or uint8: enters the understanding expert."""
    targets: tuple[Box, ...] | None = None
    """See `Split.targets`."""


@dataclass(frozen=True)
class PromptLayout:
    """The layout of the published Scone, and the interface of all."""

    single_stream: ClassVar[bool] = False
    """References enter once, as tokens of the understanding expert: there are no VAE splits."""
    text_at_end: ClassVar[bool] = True
    """A context without its instruction is the beginning of the one with it: one cache holds both."""
    frame: ClassVar[int] = 1
    """Start and end tokens of an image that belong to its split: 1 = one each, 0 = they are ordinary text."""
    size_rule: ClassVar[Literal["sides", "pixels"]] = "sides"
    """What limits the size of an image: the lengths of its sides, or its number of pixels."""
    shared_pixels: ClassVar[int] = 0
    """Pixels that all references of a prompt have together; of the rule `pixels`."""
    image_weight: ClassVar[Literal["tokens", "root"]] = "tokens"
    """What a target counts for in the loss: its number of tokens, or the root of that."""
    noise_logits: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """Mean and standard deviation of the logit of t in training."""

    def add_context(
        self, builder: SequenceBuilder, references: Sequence[ReferenceImages], text: list[int] | None
    ) -> None:
        """Appends what a target sees to the sample that the builder has begun.

        Args:
            builder: of the sequence.
            references: in order.
            text: the instruction as the tokenizer encodes it; None = without.
        """
        self._add_references(builder, references, latents=True)
        if text is not None:
            builder.add_text(text)

    def add_answer(
        self,
        builder: SequenceBuilder,
        references: Sequence[ReferenceImages],
        text: list[int] | None,
        answer: list[int],
        *,
        with_target: bool,
    ) -> None:
        """`add_context`, then the answer, which the language head must predict.

        References of a sample without a target have no VAE split, as in BAGEL's understanding data.
        """
        self._add_references(builder, references, latents=with_target)
        if text is not None:
            builder.add_text(text)
        builder.add_text(answer, loss=True)

    def _add_references(
        self, builder: SequenceBuilder, references: Sequence[ReferenceImages], *, latents: bool
    ) -> None:
        for number, reference in enumerate(references):
            if not latents:
                pass
            elif reference.vae is None:
                builder.skip_image()
            else:
                builder.add_vae(reference.vae, reference=number, targets=reference.targets)
            if reference.vit is None:
                builder.skip_image()
            else:
                builder.add_vit(reference.vit, reference=number, targets=reference.targets)

    def split_lengths(
        self,
        references: Sequence[tuple[int, int]],
        text: Sequence[int],
        answer: Sequence[int] | None,
        targets: Sequence[int],
    ) -> tuple[int, ...]:
        """Lengths of the splits that a sample becomes.

        Args:
            references: tokens of each one's VAE and ViT images.
            text: the encoded instruction.
            answer: the encoded answer; None = none.
            targets: tokens of each target.
        """
        lengths = []
        for vae, vit in references:
            if answer is None or targets:
                lengths.append(vae + 2)
            lengths.append(vit + 2)
        lengths.append(len(text) + 2)
        if answer is not None:
            lengths.append(len(answer) + 2)
        return (*lengths, *(tokens + 2 for tokens in targets))

    def context_words(self, references: int, text: Sequence[int] | None) -> tuple[int, int]:
        """Tokens of a context's words, and of the frames of its images."""
        return (0 if text is None else len(text) + 2), 4 * references


SCONE_LAYOUT = PromptLayout()
"""BAGEL's and Scone's."""
