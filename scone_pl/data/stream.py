"""The stream of packed sequences: infinite for training, fixed for validation, resumable at any position.

Data flow:
    1. `Mixture.plan(seed, epoch)`: the packs of an epoch, computed from the index, the same in every process.
    2. Packs are numbered consecutively over all epochs. Rank r of R takes pack g = start + R * k + r at its step k;
       worker w of W prepares the steps k = w, w + W, ..., the order in which a DataLoader polls its workers. So the
       sequence of packs depends neither on the number of ranks nor of workers, and a stream position is one number.
    3. `PackMaker` reads, decodes and packs the samples of one pack; broken samples are skipped and counted.
    4. In the training process `windows.WindowedLoader` adds to each batch the token counts of its optimizer step, and
       `PackedDataModule.on_before_batch_transfer` sums them over ranks. `training.objective` makes losses of it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.utils.data import IterableDataset, get_worker_info

from scone_pl.data.packing import PackingConfig, prepare_sample
from scone_pl.data.prefetch import Prefetcher, with_lookahead
from scone_pl.data.sample import BrokenSampleError, Sample
from scone_pl.data.seeding import generator, seed_of
from scone_pl.data.sources import Draw, Mixture
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.sequence import PackedSequence, SequenceFormat

_MAX_EMPTY_PACKS = 16


@dataclass(frozen=True)
class StreamPosition:
    """Position of a batch in the stream."""

    epoch: int
    pack: int
    """Index within the epoch."""
    number: int
    """Index over all epochs and ranks."""


@dataclass(frozen=True)
class Batch:
    """Input of a step: one packed sequence and its stream position."""

    sequence: PackedSequence
    position: StreamPosition
    seed: int
    """Seed of the step's random draws (noise); a function of the stream's seed and position."""
    seen: int = 0
    """Samples read for it, skipped ones included; after the data module's transfer hook, over all ranks."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> number of skipped samples; after the data module's transfer hook, over all ranks."""
    skip_messages: tuple[str, ...] = ()
    """Key and details of the first skipped samples."""
    samples: tuple[Sample, ...] = ()
    """The samples as read, in the order of the sequence (validation, test and prediction only)."""
    step_targets: float = 0
    """Target tokens of all batches in the same optimizer step, weighted as in the loss (training only); after the data
    module's transfer hook, over all ranks."""
    step_labels: int = 0
    """Text labels of all batches in the same optimizer step; otherwise like `step_targets`."""
    failure: str | None = None
    """Message of a fatal error; the data module raises it in the main process."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """A copy with its tensors on `device`."""
        return dataclasses.replace(self, sequence=self.sequence.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """A copy with its tensors in pinned host memory."""
        return dataclasses.replace(self, sequence=self.sequence.pin_memory())


@dataclass(frozen=True)
class PackMaker:
    """Builds batches from planned packs."""

    mixture: Mixture
    sequence_format: SequenceFormat
    tokenizer: Tokenizer
    packing: PackingConfig
    seed: int
    purpose: str = "train"
    """Part of the seed of every random draw, so that training and validation differ."""
    keep_samples: bool = False
    """Whether the batch keeps the samples as read."""

    def make(self, packs: tuple[tuple[Draw, ...], ...], position: StreamPosition) -> Batch:
        """The batch of pack `position.pack`, or of the next one that has a readable sample.

        Args:
            packs: all packs of the epoch.
            position: the batch's position.

        Raises:
            UserError: too many consecutive packs without a readable sample.
        """
        skipped: Counter[str] = Counter()
        skip_messages: list[str] = []
        tries = min(len(packs), _MAX_EMPTY_PACKS)
        for step in range(tries):
            batch = self._make_one(packs[(position.pack + step) % len(packs)], position, repeated=step)
            skipped.update(batch.skipped)
            skip_messages += batch.skip_messages
            if len(batch.sequence):
                seen = batch.sequence.num_samples + skipped.total()
                return dataclasses.replace(
                    batch, seen=seen, skipped=dict(skipped), skip_messages=tuple(skip_messages[:4])
                )
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
        paths = " ".join(sorted({source.path for source in self.mixture.sources}))
        raise UserError(
            f"{tries} consecutive packs have no readable sample ({reasons}); run `shards verify` on {paths}"
        )

    def _make_one(self, draws: tuple[Draw, ...], position: StreamPosition, repeated: int) -> Batch:
        prepared, skipped, skip_messages = [], Counter[str](), []
        for draw in draws:
            try:
                sample = self.mixture.read(draw)
                # `repeated` > 0: a substitute for an unreadable pack, seen twice in the epoch with different draws.
                rng = generator(self.purpose, self.seed, position.epoch, draw.source, sample.key, draw.copy, repeated)
                encoded = self.mixture.encoded(draw)
                ready = prepare_sample(sample, self.sequence_format, self.tokenizer, self.packing, rng, encoded)
                if ready.target is None and ready.answer is None and self.purpose != "predict":
                    raise BrokenSampleError("missing target", f"{sample.key} has no target image and no answer")
                if not sample.instruction.strip() and self.purpose != "predict":
                    raise BrokenSampleError("missing instruction", f"{sample.key} has an empty instruction")
            except BrokenSampleError as error:
                skipped[error.reason] += 1
                skip_messages.append(f"{self.mixture.name_of(draw)}: {error.reason}: {error}")
                continue
            prepared.append((ready, sample))
        # Samples of equal layout are adjacent: attention batches such neighbours.
        prepared.sort(key=lambda pair: pair[0].layout)
        builder = SequenceBuilder(self.sequence_format)
        for ready, _ in prepared:
            ready.append_to(builder)
        return Batch(
            sequence=builder.build(),
            position=position,
            seed=seed_of("step", self.purpose, self.seed, position.epoch, position.pack),
            skipped=dict(skipped),
            skip_messages=tuple(skip_messages),
            samples=tuple(sample for _, sample in prepared) if self.keep_samples else (),
        )

    def make_or_fail(self, packs: tuple[tuple[Draw, ...], ...], position: StreamPosition) -> Batch:
        """Like `make`, but returns a `UserError` as `Batch.failure`; a DataLoader would wrap it in a traceback."""
        try:
            return self.make(packs, position)
        except UserError as error:
            return Batch(SequenceBuilder(self.sequence_format).build(), position, seed=0, failure=str(error))


@dataclass
class Cursor:
    """The stream position in a checkpoint, updated as batches are consumed."""

    consumed: int = 0
    """Number of packs consumed by all ranks together."""
    epoch: int = 0
    """An epoch that began at or before `consumed`."""
    epoch_start: int = 0
    """`StreamPosition.number` of that epoch's first pack."""


class PackStream(IterableDataset[Batch]):
    """The infinite training stream of one rank; iteration starts at `cursor`."""

    def __init__(self, maker: PackMaker, cursor: Cursor, rank: int = 0, world_size: int = 1, repeated: int = 0) -> None:
        """Creates the stream of one rank.

        Args:
            maker: builds the batches.
            cursor: shared with the data module.
            rank: index among the consumers.
            world_size: number of consumers.
            repeated: number of packs per rank, from the start of epoch 0, to repeat forever; 0 = disabled.
        """
        self.maker = maker
        self.cursor = cursor
        self.rank = rank
        self.world_size = world_size
        self.repeated = repeated

    def __iter__(self) -> Iterator[Batch]:
        worker, workers = _worker()
        number = self.cursor.consumed + self.world_size * worker + self.rank
        positions, prefetcher = self._positions(number, self.world_size * workers), Prefetcher(self.maker.mixture)
        for (position, packs), new in with_lookahead(positions, self.maker.mixture.storage.prefetch_packs):
            for upcoming, epoch_packs in new:
                prefetcher.request(epoch_packs[upcoming.pack])
            yield self.maker.make_or_fail(packs, position)

    def _positions(self, number: int, step: int) -> Iterator[tuple[StreamPosition, tuple[tuple[Draw, ...], ...]]]:
        epoch, start = self.cursor.epoch, self.cursor.epoch_start
        if self.repeated:
            packs = self.maker.mixture.plan(self.maker.seed, 0)
            length = min(self.repeated * self.world_size, len(packs))
            while True:
                yield StreamPosition(0, number % length, number), packs
                number += step
        while True:
            packs = self.maker.mixture.plan(self.maker.seed, epoch)
            while number < start + len(packs):
                yield StreamPosition(epoch, number - start, number), packs
                number += step
            epoch, start = epoch + 1, start + len(packs)


class FixedPacks(IterableDataset[Batch]):
    """The packs of epoch 0 in every pass, the same number on every rank (repeated if they do not divide evenly)."""

    def __init__(self, maker: PackMaker, packs_per_rank: int | None = None, rank: int = 0, world_size: int = 1) -> None:
        """`packs_per_rank`: maximum number; None = all."""
        self.maker = maker
        self.rank = rank
        self.world_size = world_size
        self.packs = self._plan()
        limit = -(-len(self.packs) // world_size)
        self.packs_per_rank = limit if packs_per_rank is None else min(packs_per_rank, limit)

    def _plan(self) -> tuple[tuple[Draw, ...], ...]:
        return self.maker.mixture.plan(self.maker.seed, 0)

    def __iter__(self) -> Iterator[Batch]:
        worker, workers = _worker()
        for step in range(worker, self.packs_per_rank, workers):
            pack = (self.world_size * step + self.rank) % len(self.packs)
            yield self.maker.make_or_fail(self.packs, StreamPosition(0, pack, pack))


class SingleSamples(FixedPacks):
    """One sample per batch, in the order of the sources (prediction)."""

    def _plan(self) -> tuple[tuple[Draw, ...], ...]:
        usable = self.maker.mixture.usable
        return tuple((Draw(source, int(i), 0),) for source, indices in enumerate(usable) for i in indices)


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)
