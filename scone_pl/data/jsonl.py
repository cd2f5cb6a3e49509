"""Prompts to generate from as JSON Lines, in the form of SconeEval and OmniContext (EVAL_SPEC 1.2).

One object a line: `key` (names the picture), `instruction`, `input_images` (paths relative to the file, in reference
order; may be empty), or in their place `input_image` (a path or a list); optionally `task_type` (names a folder).
Other fields are left alone. Images are prepared as the release does in inference, except that they are turned as their
EXIF orientation says unless `data.packing.exif_orientation` is `ignore`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from scone_pl.data.decoding import ExifOrientation, read_encoded
from scone_pl.data.packing import PackingConfig, prepare_sample
from scone_pl.data.sample import BrokenSampleError, Sample
from scone_pl.data.seeding import generator, seed_of
from scone_pl.data.stream import Batch, Place
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.sequence import SequenceFormat

SUFFIX = ".jsonl"
LONGEST_NAME = 200
"""Bytes of a key or task type in UTF-8: file systems take 255, and the name gets a suffix."""
_FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f\ud800-\udfff]')


@dataclass(frozen=True)
class Request:
    """One line."""

    key: str
    task_type: str
    """Empty if the record has none."""
    instruction: str
    images: tuple[Path, ...]
    where: str
    """File and line, for messages."""

    def read(self) -> Sample:
        """The images' bytes and the rest as a sample without target.

        Raises:
            UserError: an image can not be read.
        """
        try:
            references = tuple(map(read_encoded, self.images))
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from None
        metadata = {"task_type": self.task_type}
        return Sample(key=self.key, references=references, instruction=self.instruction, target=b"", metadata=metadata)


def read_requests(files: Sequence[str | Path]) -> list[Request]:
    """All lines of some files, checked.

    Raises:
        UserError: naming file and line: not JSON, a field that is missing or wrong, an image that is not there, a key
            that can not name a file or comes twice in its task type.
    """
    requests: list[Request] = []
    seen: dict[tuple[str, str], str] = {}
    for file in map(Path, files):
        try:
            lines = file.read_text(encoding="utf-8").split("\n")  # JSON may hold what `splitlines` takes for an end
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: not readable as a JSONL file ({error})") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                request = _request(line, f"{file}:{number}", file.parent)
                place = (request.task_type, request.key)
                if place in seen:
                    raise UserError(f"{request.where}: the key {request.key!r} was used at {seen[place]} already")
                seen[place] = request.where
                requests.append(request)
    if not requests:
        raise UserError(f"{' '.join(map(str, files))}: holds no line to generate from")
    return requests


def _request(line: str, where: str, folder: Path) -> Request:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: must be a JSON object with key, instruction and input_images")
    instruction = record.get("instruction")
    if not isinstance(instruction, str):
        raise UserError(f"{where}: `instruction` must be a text that says what to draw")
    images = [folder / image for image in _image_names(record, where)]
    for image in images:
        if not image.is_file():
            raise UserError(f"{where}: no such image file {image}; paths are relative to the JSONL file")
    task_type = record.get("task_type") or ""
    name = _plain_name(task_type, "task_type", where) if task_type else ""
    return Request(_plain_name(record.get("key"), "key", where), name, instruction, tuple(images), where)


def _image_names(record: dict[str, Any], where: str) -> list[str]:
    images = record.get("input_images") or record.get("input_image") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise UserError(f"{where}: `input_images` must be a list of paths")
    return images


def _plain_name(value: Any, field: str, where: str) -> str:
    """A text that names one file on any system and nothing above it."""
    name = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not name.strip() or name.startswith(".") or _FORBIDDEN.search(name) or len(name.encode()) > LONGEST_NAME:
        raise UserError(
            f"{where}: `{field}` {value!r} can not name a picture; use up to {LONGEST_NAME} bytes of UTF-8 without "
            "path separators, not starting with a dot"
        )
    return name


class JsonlPrompts(IterableDataset):
    """The requests as batches of one prompt, every `world_size`-th to a rank."""

    def __init__(
        self,
        requests: Sequence[Request],
        form: SequenceFormat,
        tokenizer: Tokenizer,
        rank: int = 0,
        world_size: int = 1,
        exif_orientation: ExifOrientation = "apply",
    ) -> None:
        """`rank` of `world_size` consumers; where the requests do not divide evenly some are seen twice, so that all
        ranks make equally many passes (a sharded model needs that).
        """
        self.requests = requests
        self.form, self.tokenizer = form, tokenizer
        self.rank, self.world_size = rank, world_size
        self.packing = PackingConfig.for_inference(form, exif_orientation)

    def __len__(self) -> int:
        return -(-len(self.requests) // self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for step in range(worker, len(self), workers):
            yield self._batch((self.world_size * step + self.rank) % len(self.requests))

    def _batch(self, number: int) -> Batch:
        request = self.requests[number]
        place, builder = Place(0, number, number), SequenceBuilder(self.form)
        seed = seed_of("predict", request.task_type, request.key)
        try:
            sample = request.read()
            prepared = prepare_sample(sample, self.form, self.tokenizer, self.packing, generator("predict", seed))
        except BrokenSampleError as error:
            images = " ".join(map(str, request.images))
            return Batch(
                builder.build(), place, seed, failure=f"{request.where}: {error.reason} among {images}: {error}"
            )
        except UserError as error:  # would be buried in a traceback by a worker process
            return Batch(builder.build(), place, seed, failure=str(error))
        prepared.append_to(builder)
        return Batch(builder.build(), place, seed, samples=(sample,))
