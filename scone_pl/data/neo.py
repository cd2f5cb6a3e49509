"""U1's tokenizer: Qwen3's byte-level BPE with a chat template, and `<image>` in an instruction for the next reference.

The published system message is part of every prompt, but not ours to ship. It is read from `system_message.txt` in the
checkpoint folder and checked by its SHA-256; the folder's `config.json` may state another one (`system_message_sha256`,
an extension), such as that of the empty message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import tokenizers

from scone_pl.data.tokenizer import Tokenizer as BaseTokenizer
from scone_pl.data.tokenizer import read_backend, word_backend
from scone_pl.errors import UserError
from scone_pl.files import read_json, read_text
from scone_pl.model.neo.layout import IMAGE, ChatTemplate

SYSTEM_FILE = "system_message.txt"
SYSTEM_SHA256 = "97bc0d73e6f61b20689dd81ad2bcf9eb795a65de5d07dd2e2c01d16503f44492"
"""Of the published message, 1,175 characters."""
PLACEHOLDER = "<image>"
MAX_LABELS = 64
"""References that may be labelled."""
TEMPLATE_WORDS = ("system", "user", "assistant", *(f"Image-{i}:" for i in range(1, 9)))
"""What a tokenizer of whole words needs beside its own, for up to 8 references."""


class Tokenizer(BaseTokenizer):
    """Text to ids, with `IMAGE` for each placeholder, and the template around it."""

    special_tokens: ClassVar[tuple[str, ...]] = (
        *("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<think>", "</think>", "<IMG_CONTEXT>"),
    )

    def __init__(self, backend: tokenizers.Tokenizer, origin: str = "the tokenizer", system_message: str = "") -> None:
        """Wraps a `tokenizers` tokenizer.

        Args:
            backend: must have all `special_tokens`.
            origin: its folder, for messages.
            system_message: of every prompt with an instruction; empty = no system turn.
        """
        self.system_message = system_message
        super().__init__(backend, origin)

    def _template(self, special: dict[str, int]) -> ChatTemplate:
        plain = super().encode
        start, end, start_image, end_image, think, thought, _ = special.values()
        newline = tuple(plain("\n"))
        system = [start, *plain(f"system\n{self.system_message}"), end, *newline] if self.system_message else []
        turn_end, assistant = (end, *newline), (start, *plain("assistant\n"))
        thinking = (think, *plain("\n\n"), thought, *plain("\n\n"))
        return ChatTemplate(
            start,
            end,
            start_image,
            end_image,
            system=tuple(system),
            user=(start, *plain("user")),
            newline=newline,
            labels=tuple(self._labels()),
            full_tail=(*turn_end, *assistant, *thinking, start_image),
            bare_tail=(*turn_end, *assistant, start_image),
            turn_end=turn_end,
            answer=assistant,
        )

    def _labels(self) -> Iterator[tuple[int, ...]]:
        """As many as the vocabulary has: a tokenizer of whole words knows few."""
        try:
            for number in range(1, MAX_LABELS + 1):
                yield tuple(super().encode(f"\nImage-{number}:"))
        except UserError:
            return

    def encode(self, text: str) -> list[int]:
        """Ids of a newline and `text`, which always follows one, and `IMAGE` for each placeholder in it."""
        first, *others = text.split(PLACEHOLDER)
        ids = super().encode(f"\n{first}")
        for part in others:
            ids += [IMAGE, *super().encode(part)]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode([i for i in ids if i != IMAGE])

    @classmethod
    def read(cls, folder: Path) -> Tokenizer:
        tokenizer = cls(read_backend(folder), str(folder), system_message(folder))
        stated = read_json(folder / "config.json", dict).get("eos_token_id")
        if stated is not None and stated != tokenizer.special.end_text:
            raise UserError(
                f"{folder}: the tokenizer gives <|im_end|> the id {tokenizer.special.end_text}, config.json has "
                f"eos_token_id {stated!r:.40}; use the tokenizer files that belong to these weights"
            )
        return tokenizer

    def _further_arguments(self) -> tuple[str, ...]:
        return self.origin, self.system_message


def word_tokenizer(words: Iterable[str]) -> Tokenizer:
    """One id per word of `words` and of the template; without a system message."""
    return Tokenizer(word_backend((*words, *TEMPLATE_WORDS), Tokenizer.special_tokens), "word tokenizer")


def system_message(folder: Path) -> str:
    """The system message of a checkpoint folder, checked.

    Raises:
        UserError: it is missing, or is another message.
    """
    expected = read_json(folder / "config.json", dict).get("system_message_sha256", SYSTEM_SHA256)
    if expected == hashlib.sha256(b"").hexdigest():
        return ""
    file = folder / SYSTEM_FILE
    if not file.is_file():
        raise UserError(
            f"{file}: missing; U1's prompts begin with the system message of its public code (for editing images): "
            f"write it there, without a newline at its end (SHA-256 {expected!s:.12}...)"
        )
    text = read_text(file)
    for message in (text, text.removesuffix("\n")):
        if hashlib.sha256(message.encode()).hexdigest() == expected:
            return message
    raise UserError(f"{file}: is not the message that belongs to these weights (SHA-256 {expected!s:.12}...)")
