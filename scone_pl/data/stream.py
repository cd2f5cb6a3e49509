"""The stream of packed sequences: endless for training, fixed for validation, with a place that can be resumed.

Data flow:
    1. `Mixture.plan(seed, epoch)`: the packs of an epoch, from the index alone, the same in every process.
    2. All packs of all epochs have one running number g. Rank r of R takes g = start + R * k + r at its step k;
       worker w of W makes the steps k = w, w + W, ..., which is the order in which a DataLoader asks its workers.
       So neither the number of ranks nor of workers changes which pack comes when, and a place is a number.
    3. `PackMaker`: reads, decodes and packs the samples of one pack; broken ones are left out and counted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.utils.data import IterableDataset, get_worker_info

from scone_pl.data.packing import PackingConfig, prepare_sample
from scone_pl.data.prefetch import Prefetcher, ahead
from scone_pl.data.sample import BrokenSampleError, Sample
from scone_pl.data.seeding import generator, seed_of
from scone_pl.data.sources import Draw, Mixture
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.sequence import PackedSequence, SequenceFormat

_MOST_EMPTY_PACKS = 16


@dataclass(frozen=True)
class StreamPosition:
    """Where in the stream a batch comes from."""

    epoch: int
    pack: int
    """Number within the epoch."""
    number: int
    """Running number over all epochs and ranks."""


@dataclass(frozen=True)
class Batch:
    """What a step gets: one packed sequence and where it comes from."""

    sequence: PackedSequence
    position: StreamPosition
    seed: int
    """For everything random that the step does with it (noise): depends on seed and place only."""
    seen: int = 0
    """Samples met for it, skipped ones included; over all ranks once the data module has passed it on."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Samples left out of it, per reason; over all ranks once the data module has passed it on."""
    skip_messages: tuple[str, ...] = ()
    """Key and details of some of those."""
    samples: tuple[Sample, ...] = ()
    """The samples as read, in the order of the sequence (validation, test and prediction only)."""
    step_targets: int = 0
    """Target tokens of all batches in the same optimizer step (training only); over all ranks once the data module has
    passed it on."""
    step_labels: int = 0
    """Labels of text, likewise."""
    failure: str | None = None
    """A message for the user if there is no way on; the data module raises it in the main process."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """A copy with its tensors on `device`."""
        return dataclasses.replace(self, sequence=self.sequence.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """A copy with its tensors in pinned host memory."""
        return dataclasses.replace(self, sequence=self.sequence.pin_memory())


@dataclass(frozen=True)
class PackMaker:
    """Makes batches out of planned packs."""

    mixture: Mixture
    sequence_format: SequenceFormat
    tokenizer: Tokenizer
    packing: PackingConfig
    seed: int
    purpose: str = "train"
    """Goes into every random draw, so that training and validation differ."""
    keep_samples: bool = False
    """Whether to put the samples as read into the batch."""

    def make(self, packs: tuple[tuple[Draw, ...], ...], position: StreamPosition) -> Batch:
        """The batch of pack `position.pack`; if none of its samples is readable, of the next one that has any.

        Args:
            packs: all packs of the epoch.
            position: which to make.

        Raises:
            UserError: too many packs in a row without a readable sample.
        """
        skipped: Counter[str] = Counter()
        skip_messages: list[str] = []
        tries = min(len(packs), _MOST_EMPTY_PACKS)
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
        raise UserError(f"{tries} packs in a row hold no readable sample ({reasons}); run `shards verify` on {paths}")

    def _make_one(self, draws: tuple[Draw, ...], position: StreamPosition, repeated: int) -> Batch:
        prepared, skipped, skip_messages = [], Counter[str](), []
        for draw in draws:
            try:
                sample = self.mixture.read(draw)
                # `repeated` > 0: a stand-in for an unreadable pack, seen twice in the epoch with other noise.
                rng = generator(self.purpose, self.seed, position.epoch, draw.source, sample.key, draw.copy, repeated)
                ready = prepare_sample(sample, self.sequence_format, self.tokenizer, self.packing, rng)
                if ready.target is None and ready.answer is None and self.purpose != "predict":
                    raise BrokenSampleError("missing target", f"{sample.key} has no target image and no answer")
                if not sample.instruction.strip() and self.purpose != "predict":
                    raise BrokenSampleError("missing instruction", f"{sample.key} has an empty instruction")
            except BrokenSampleError as error:
                skipped[error.reason] += 1
                skip_messages.append(f"{self.mixture.name_of(draw)}: {error.reason}: {error}")
                continue
            prepared.append((ready, sample))
        # Equal layouts side by side: attention takes such neighbours in one call.
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
        """Like `make`, but errors for the user travel in the batch: a DataLoader would bury them in a traceback."""
        try:
            return self.make(packs, position)
        except UserError as error:
            return Batch(SequenceBuilder(self.sequence_format).build(), position, seed=0, failure=str(error))


@dataclass
class Cursor:
    """How far training has come: what a checkpoint holds, changed as batches are consumed."""

    consumed: int = 0
    """Packs consumed by all ranks together."""
    epoch: int = 0
    """An epoch that began at or before `consumed`..."""
    epoch_start: int = 0
    """... and the running number of its first pack."""


class PackStream(IterableDataset):
    """The endless training stream of one rank; starts where `cursor` stands when iteration begins."""

    def __init__(self, maker: PackMaker, cursor: Cursor, rank: int = 0, world_size: int = 1, repeated: int = 0) -> None:
        """How one rank reads.

        Args:
            maker: makes the batches.
            cursor: shared with the data module.
            rank: of `world_size` consumers in different processes.
            world_size: number of consumers.
            repeated: packs of each rank, the first of epoch 0, to repeat over and over; 0 = all of all epochs.
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
        for (position, packs), new in ahead(positions, self.maker.mixture.storage.prefetch_packs):
            for coming, its_packs in new:
                prefetcher.want(its_packs[coming.pack])
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


class FixedPacks(IterableDataset):
    """The same packs at every pass, equally many on every rank (those of the epoch 0, repeated if too few)."""

    def __init__(self, maker: PackMaker, packs_per_rank: int | None = None, rank: int = 0, world_size: int = 1) -> None:
        """`packs_per_rank`: at most so many; None = all."""
        self.maker = maker
        self.rank = rank
        self.world_size = world_size
        self.packs = self._plan()
        most = -(-len(self.packs) // world_size)
        self.packs_per_rank = most if packs_per_rank is None else min(packs_per_rank, most)

    def _plan(self) -> tuple[tuple[Draw, ...], ...]:
        return self.maker.mixture.plan(self.maker.seed, 0)

    def __iter__(self) -> Iterator[Batch]:
        worker, workers = _worker()
        for step in range(worker, self.packs_per_rank, workers):
            pack = (self.world_size * step + self.rank) % len(self.packs)
            yield self.maker.make_or_fail(self.packs, StreamPosition(0, pack, pack))


class SingleSamples(FixedPacks):
    """Every sample by itself, in the order of the sources (prediction)."""

    def _plan(self) -> tuple[tuple[Draw, ...], ...]:
        usable = self.maker.mixture.usable
        return tuple((Draw(source, int(i), 0),) for source, indices in enumerate(usable) for i in indices)


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)
