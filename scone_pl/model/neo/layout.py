"""U1's prompt layout: a chat template in which references are tokens of the understanding expert.

A context is a text with images in it (specification: docs/second_base.md). The user's turn holds the references and the
instruction, the opened assistant's turn ends with the start token of the image to be generated. Image start and end are
ordinary text tokens: they do not belong to the image's block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from scone_pl.errors import UserError
from scone_pl.model.layout import PromptLayout, ReferenceImages
from scone_pl.model.sequence import SpecialTokens

if TYPE_CHECKING:
    from scone_pl.model.builder import SequenceBuilder

IMAGE = -1
"""In an encoded instruction: the next reference goes here."""
Ids = tuple[int, ...]


@dataclass(frozen=True)
class ChatTemplate(SpecialTokens):
    """Ids of the template's pieces. Images are framed by `<img>` and `</img>`."""

    system: Ids
    """The whole system turn; empty without a system message."""
    user: Ids
    """Start of the user's turn without its newline, with which the first piece behind it begins."""
    newline: Ids
    labels: tuple[Ids, ...]
    """Newline and label of each reference, where there are several and the instruction does not place them."""
    full_tail: Ids
    """From the end of the user's turn to the image's start, with an empty thinking block."""
    bare_tail: Ids
    """The same without that block."""
    turn_end: Ids
    """`<|im_end|>` and newline."""
    answer: Ids
    """Start of the assistant's turn, in front of a text."""

    @classmethod
    def of_typical_length(cls) -> ChatTemplate:
        """Without contents, about as long as the published one: for estimates."""
        label = (4,) * 5
        return cls(0, 1, 2, 3, (4,) * 250, (4,) * 2, (4,), (label,) * 64, (4,) * 10, (4,) * 6, (4,) * 2, (4,) * 3)


@dataclass
class _Text:
    """Text up to the next image."""

    ids: list[int] = field(default_factory=list)
    words: list[tuple[int, int]] = field(default_factory=list)
    """The instruction's own words in it, as (first, stop)."""
    image: int | None = None
    """Number of the reference behind it; None = it is the last."""

    def add_words(self, ids: Sequence[int]) -> None:
        if ids:
            self.words.append((len(self.ids), len(self.ids) + len(ids)))
            self.ids += ids


@dataclass(frozen=True)
class ChatLayout(PromptLayout):
    """References and instruction in a chat template."""

    template: ChatTemplate
    noise: tuple[float, float] = (0.8, 0.8)
    """See `PromptLayout.noise_logits`."""

    single_stream: ClassVar[bool] = True
    text_at_end: ClassVar[bool] = False
    frame: ClassVar[int] = 0
    size_rule: ClassVar[Literal["sides", "pixels"]] = "pixels"
    shared_pixels: ClassVar[int] = 4096**2
    image_weight: ClassVar[Literal["tokens", "root"]] = "root"

    @property
    def noise_logits(self) -> tuple[float, float]:  # type: ignore[override] # a class variable of the base
        return self.noise

    def add_context(
        self, builder: SequenceBuilder, references: Sequence[ReferenceImages], text: list[int] | None
    ) -> None:
        tail = self.template.bare_tail if text is None else self.template.full_tail
        self._add(builder, references, text, tail)

    def add_answer(
        self,
        builder: SequenceBuilder,
        references: Sequence[ReferenceImages],
        text: list[int] | None,
        answer: list[int],
        *,
        with_target: bool,
    ) -> None:
        template = self.template
        self._add(builder, references, text, template.turn_end)
        builder.add_words([*template.answer, *answer, template.end_text], (), first_label=len(template.answer))
        if with_target:
            builder.add_words(list(template.bare_tail[1:]), ())

    def _add(
        self, builder: SequenceBuilder, references: Sequence[ReferenceImages], text: list[int] | None, tail: Ids
    ) -> None:
        shown = [number for number, reference in enumerate(references) if reference.vit is not None]
        for part in self._texts(len(references), text, tail, shown):
            builder.add_words(part.ids, tuple(part.words))
            if part.image is not None:
                image = references[part.image]
                assert image.vit is not None
                builder.add_vit(image.vit, reference=part.image, targets=image.targets)
        if text is not None:
            builder.note_instruction(text)

    def _texts(self, count: int, text: Sequence[int] | None, tail: Ids, shown: Sequence[int]) -> list[_Text]:
        """The context's texts, of which each but the last is followed by an image.

        Args:
            count: number of references.
            text: the encoded instruction; None = without, and without system turn and labels.
            tail: what follows it.
            shown: numbers of the references that are not dropped.
        """
        template, texts = self.template, [_Text()]

        def show(number: int, before: Ids = ()) -> None:
            if number in shown:
                texts[-1].ids += [*before, template.start_image]
                texts[-1].image = number
                texts.append(_Text([template.end_image]))

        if text is None:
            texts[-1].ids += [*template.user, *template.newline]
            for number in range(count):
                show(number)
        else:
            texts[-1].ids += [*template.system, *template.user]
            placed = sum(token == IMAGE for token in text)
            if placed > count:
                raise UserError(f"the instruction has {placed} <image> placeholders for {count} reference images")
            labelled = placed == 0 and count > 1
            if labelled and count > len(template.labels):
                raise UserError(f"{count} reference images are more than the {len(template.labels)} that have labels")
            for number in range(count - placed):
                show(number, template.labels[number] if labelled else template.newline)
            number, length = count - placed, len(template.newline)
            texts[-1].ids += text[:length]
            words: list[int] = []
            for token in text[length:]:
                if token != IMAGE:
                    words.append(token)
                    continue
                texts[-1].add_words(words)
                words = []
                show(number)
                number += 1
            texts[-1].add_words(words)
        texts[-1].ids += tail
        return texts

    def split_lengths(
        self,
        references: Sequence[tuple[int, int]],
        text: Sequence[int],
        answer: Sequence[int] | None,
        targets: Sequence[int],
    ) -> tuple[int, ...]:
        template = self.template
        tail = template.full_tail if answer is None else template.turn_end
        lengths = []
        for part in self._texts(len(references), text, tail, range(len(references))):
            lengths.append(len(part.ids))
            if part.image is not None:
                lengths.append(references[part.image][1])
        if answer is not None:
            lengths.append(len(template.answer) + len(answer) + 1)
            lengths += [len(template.bare_tail) - 1] * bool(targets)
        return (*lengths, *targets)

    def context_words(self, references: int, text: Sequence[int] | None) -> tuple[int, int]:
        tail = self.template.bare_tail if text is None else self.template.full_tail
        return sum(len(part.ids) for part in self._texts(references, text, tail, range(references))), 0
