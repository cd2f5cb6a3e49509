"""Placeholders of images in instructions, as X2I has them, in words: `<img><|image_1|></img>` is "image 1"."""

from __future__ import annotations

import re

from scone_pl.data.sample import BrokenSampleError

_PLACEHOLDER = re.compile(r"\s*(?:<img>\s*)?<\|image_(\d{1,4})\|>(?:\s*</img>)?", re.IGNORECASE)
_ANY = re.compile(r"<\|?/?(?:img|image)[^>]{0,20}>", re.IGNORECASE)
_BEFORE = re.compile(r"(?:^|[.,:;(\"]|\b(?:of|in|from|on|at|with|to|by|into|onto|and|or|as|use|using|both))$", re.I)
"""Behind these words "image 1" reads well, behind others "in image 1"."""


def in_words(instruction: str, references: int) -> str:
    """An instruction without placeholders.

    Args:
        instruction: may have placeholders.
        references: number of reference images.

    Raises:
        BrokenSampleError: placeholders are mutilated, or are not those of all references.
    """
    numbers = {int(number) for number in _PLACEHOLDER.findall(instruction)}
    if numbers and numbers != set(range(1, references + 1)):
        text = f"the instruction has placeholders {sorted(numbers)[:10]} for {references} reference images"
        raise BrokenSampleError("placeholders differ", text)

    def words(match: re.Match[str]) -> str:
        before = instruction[: match.start()].rstrip()
        return (" " if before else "") + ("" if _BEFORE.search(before) else "in ") + f"image {int(match[1])}"

    text = _PLACEHOLDER.sub(words, instruction)
    if _ANY.search(text):
        raise BrokenSampleError("placeholders differ", f"the instruction has a mutilated placeholder: {text!r:.120}")
    return text if not numbers else " ".join(text.split())
