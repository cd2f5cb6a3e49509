"""DreamBench lists in UNO's form: a JSON list of prompts with one or several reference images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scone_pl.errors import UserError
from scone_pl.files import read_json, write_text

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Entry:
    """One prompt of the list."""

    index: int
    """From 0; generated images are `INDEX_NUMBER.png`."""
    prompt: str
    references: tuple[Path, ...]
    """The given view of each subject."""
    views: tuple[tuple[Path, ...], ...]
    """Per subject the images it is compared with."""

    @property
    def group(self) -> tuple[str, ...]:
        """Names of the subjects: folders of the references."""
        return tuple(reference.parent.name for reference in self.references)


def read_list(file: Path, views: Literal["all", "given"] = "all") -> list[Entry]:
    """Reads a list; image paths are relative to its folder.

    Args:
        file: the JSON list.
        views: whether a subject is compared with all images in the folder of its reference, or with the reference.

    Raises:
        UserError: names the entry and what is wrong with it.
    """
    entries = []
    for index, content in enumerate(read_json(file, list)):
        where = f"{file}: entry {index}"
        if not isinstance(content, dict):
            raise UserError(f"{where}: must be an object with `prompt` and `image_paths`")
        prompt, paths = content.get("prompt"), content.get("image_paths")
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{where}: `prompt` must be a text")
        if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
            raise UserError(f"{where}: `image_paths` must be a list of files")
        references = tuple(_existing(file.parent, path, where) for path in paths)
        shown = tuple(_views(reference) if views == "all" else (reference,) for reference in references)
        entries.append(Entry(index, prompt.strip(), references, shown))
    if not entries:
        raise UserError(f"{file}: has no entries")
    if len({len(entry.references) for entry in entries}) > 1:
        raise UserError(f"{file}: entries have different numbers of references; use a list for each number")
    return entries


def _existing(folder: Path, path: str, where: str) -> Path:
    image = folder / path
    try:
        exists = image.is_file()
    except (OSError, ValueError):
        exists = False
    if not exists:
        raise UserError(f"{where}: no such image file {path!r:.200}; paths are relative to {folder}")
    return image


def _views(reference: Path) -> tuple[Path, ...]:
    return tuple(sorted(file for file in reference.parent.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES))


def write_prompts(entries: Sequence[Entry], num_images_per_prompt: int, file: Path) -> None:
    """Writes the prompts for `predict`: `num_images_per_prompt` images an entry, each with noise of its own."""
    lines = [
        json.dumps(
            {
                "key": f"{entry.index}_{number}",
                "instruction": entry.prompt,
                "input_images": [str(reference.resolve()) for reference in entry.references],
            }
        )
        for entry in entries
        for number in range(num_images_per_prompt)
    ]
    write_text("".join(f"{line}\n" for line in lines), file)
