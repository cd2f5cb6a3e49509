"""Prompts of a JSON file as a dataset of batches of one; see `data/prompts.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.utils.data import IterableDataset, get_worker_info

from scone_pl.data.decoding import ExifOrientation
from scone_pl.data.packing import PackingConfig, prepare_sample
from scone_pl.data.prompts import Request
from scone_pl.data.sample import BrokenSampleError
from scone_pl.data.seeding import generator, seed_of
from scone_pl.data.stream import Batch, StreamPosition
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.sequence import SequenceFormat


class JsonlPrompts(IterableDataset[Batch]):
    """Batches of one request; each rank gets every `world_size`-th."""

    def __init__(
        self,
        requests: Sequence[Request],
        sequence_format: SequenceFormat,
        tokenizer: Tokenizer,
        rank: int = 0,
        world_size: int = 1,
        exif_orientation: ExifOrientation = "apply",
    ) -> None:
        """`rank` of `world_size` consumers. Requests are repeated if they do not divide evenly, since all ranks of a
        sharded model must run the same number of forward passes.
        """
        self.requests = requests
        self.sequence_format, self.tokenizer = sequence_format, tokenizer
        self.rank, self.world_size = rank, world_size
        self.packing = PackingConfig.for_inference(sequence_format, exif_orientation)

    def __len__(self) -> int:
        return -(-len(self.requests) // self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for step in range(worker, len(self), workers):
            yield self._batch((self.world_size * step + self.rank) % len(self.requests))

    def _batch(self, number: int) -> Batch:
        """The batch of request `number`, or of the next usable one, with the reason.

        A rank must not skip a forward pass of a sharded model. Images that exist are not generated again, so the
        substitute costs little.
        """
        messages: list[str] = []
        count = len(self.requests)
        for substitute in range(number, number + count):
            request = self.requests[substitute % count]
            try:
                return self._prepare(request, number, messages)
            except BrokenSampleError as error:
                images = " ".join(map(str, request.images))
                messages.append(f"{request.where}: {error.reason} among {images}: {error}")
            except UserError as error:  # a DataLoader worker would wrap it in a traceback
                messages.append(str(error))
        failure = f"none of {count} prompts can be used; the first: {messages[0]}"
        return Batch(
            SequenceBuilder(self.sequence_format).build(), StreamPosition(0, number, number), 0, failure=failure
        )

    def _prepare(self, request: Request, number: int, messages: Sequence[str]) -> Batch:
        position, builder = StreamPosition(0, number, number), SequenceBuilder(self.sequence_format)
        seed = seed_of("predict", request.task_type, request.key)
        sample = request.read()
        prepared = prepare_sample(
            sample, self.sequence_format, self.tokenizer, self.packing, generator("predict", seed)
        )
        prepared.append_to(builder)
        reported = messages[:1]  # the others are reported with their own batch
        skipped = {"unusable prompt": 1} if reported else {}
        return Batch(builder.build(), position, seed, samples=(sample,), skipped=skipped, skip_messages=tuple(reported))
