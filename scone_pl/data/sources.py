"""A weighted mixture of data sets, and the order and packs of its epochs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from scone_pl.data.index import duplicates
from scone_pl.data.latents import LatentCache
from scone_pl.data.packing import PackingConfig, sample_length, sample_pairs
from scone_pl.data.planning import balanced_order, plan_packs
from scone_pl.data.sample import Sample
from scone_pl.data.seeding import generator
from scone_pl.data.shards import ShardSet
from scone_pl.data.storage import StorageConfig
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.model.sequence import EncodedImage, SequenceFormat
from scone_pl.ranges import check_number, check_whole

_MAX_DRAWS = 100_000_000
"""Maximum samples of a source per epoch; the order is planned in memory."""


@dataclass(frozen=True)
class Source:
    """A data set and its weight in an epoch."""

    path: str
    """Folder of a shard set, or its URL (http, https, s3, hf, ...; see `StorageConfig`)."""
    weight: float = 1.0
    """Number of times each sample is seen per epoch; 0.5 = a random half, drawn anew every epoch."""
    samples: int | None = None
    """Number of samples per epoch, instead of a weight; samples are repeated if it exceeds the size of the set."""
    name: str = ""
    """Name in the log; empty = the last component of the path."""

    @property
    def title(self) -> str:
        return self.name or self.path.rstrip("/").rpartition("/")[2]

    def draws(self, usable: int) -> tuple[int, int]:
        """(number of times all `usable` samples are seen per epoch, number of random samples seen once more)."""
        if self.samples is not None:
            return divmod(self.samples, usable)
        whole = int(self.weight)
        part = round((self.weight - whole) * usable)
        return whole, part if whole else max(part, 1)

    def check(self) -> None:
        """Raises `UserError` if the weight is invalid or ambiguous."""
        check_number(f"{self.path}: the weight", self.weight, above=0)
        if self.samples is not None and self.weight != 1:
            raise UserError(f"{self.path}: has both weight and samples; give one of them")
        if self.samples is not None:
            check_whole(f"{self.path}: samples", self.samples, minimum=1)

    def check_epoch(self, usable: int) -> None:
        """Raises `UserError` if an epoch would have more samples than can be planned in memory."""
        whole, part = self.draws(usable)
        if whole * usable + part > _MAX_DRAWS:
            raise UserError(
                f"{self.path}: an epoch would hold {whole * usable + part} of its samples; lower weight or samples to "
                f"at most {_MAX_DRAWS} in all"
            )


@dataclass(frozen=True)
class Draw:
    """One use of a sample in an epoch."""

    source: int
    index: int
    """Index of the sample in the source."""
    copy: int
    """0, 1, ... if a source's weight exceeds 1."""


class Mixture:
    """A mixture of sources: the lengths of all samples and the packs of every epoch."""

    def __init__(
        self,
        sources: Sequence[Source],
        sequence_format: SequenceFormat,
        tokenizer: Tokenizer,
        packing: PackingConfig,
        storage: StorageConfig | None = None,
        shuffle_window: int | None = None,
    ) -> None:
        """Opens the sources and computes the length of every sample from the indices.

        Args:
            sources: the data sets.
            sequence_format: the model's.
            tokenizer: counts the tokens of instructions.
            packing: determines sample lengths and packs.
            storage: how sources at a URL are fetched.
            shuffle_window: see `order`.

        Raises:
            UserError: no sources; a source that is missing, damaged or empty; a duplicate key; an invalid weight; sizes
                that exceed the model's position tables; or no sample within the token budget.
        """
        if not sources:
            raise UserError("the list of data sources is empty; give at least one folder of shards")
        packing.check(sequence_format)
        if packing.balance_window > 1 and shuffle_window is not None:
            raise UserError(
                "packing.balance_window would undo the order that data.shuffle_window keeps; give one of them"
            )
        self.sources = tuple(sources)
        for source in self.sources:
            source.check()
        self.sets = tuple(ShardSet(source.path, storage) for source in self.sources)
        self.packing = packing
        self.storage = storage or StorageConfig()
        self.shuffle_window = shuffle_window
        self._shard_ends = [np.cumsum([shard.samples for shard in shards.manifest.shards]) for shards in self.sets]
        self.lengths = [sample_lengths(shards, sequence_format, tokenizer, packing) for shards in self.sets]
        """Per source (samples,) int64: tokens of every sample."""
        self.pairs: list[np.ndarray] = []
        """Per source (samples,) int64: attended pairs of every sample, if packs are balanced."""
        if packing.balance_window > 1:
            self.pairs = [sample_pair_counts(shards, sequence_format, tokenizer, packing) for shards in self.sets]
        budget = packing.token_budget
        self.usable = [np.flatnonzero(lengths <= budget) for lengths in self.lengths]
        for source, lengths, usable in zip(self.sources, self.lengths, self.usable, strict=True):
            if not len(lengths):
                raise UserError(f"{source.path}: has no samples; convert it again or leave it out")
            if not len(usable):
                raise UserError(
                    f"{source.path}: all {len(lengths)} samples are longer than packing.token_budget {budget} "
                    f"(shortest {lengths.min()}, longest {lengths.max()}); raise it or lower packing.vae_resize"
                )
            source.check_epoch(len(usable))
        self.latents: tuple[LatentCache, ...] = ()
        """Of each source, if they are used, see `use_latents`."""
        self.plan = lru_cache(maxsize=2)(self._plan)

    def use_latents(self, sequence_format: SequenceFormat, autoencoder: str) -> None:
        """Takes VAE images from the caches beside the data sets; see `LatentCache.of` for the arguments.

        Raises:
            UserError: a set has none, or an incomplete or stale one.
        """
        self.latents = tuple(LatentCache.of(s, self.packing, sequence_format, autoencoder) for s in self.sets)
        for cache in self.latents:
            cache.check()

    def encoded(self, draw: Draw) -> dict[str, EncodedImage] | None:
        """VAE images of a draw that are encoded already; None = there is no cache in use.

        Raises:
            BrokenSampleError: see `LatentCache.read`.
        """
        return self.latents[draw.source].read(draw.index) if self.latents else None

    def __reduce__(self) -> tuple[object, ...]:
        state = {name: value for name, value in vars(self).items() if name != "plan"}
        return _restore, (state,)

    @property
    def num_samples(self) -> int:
        return sum(map(len, self.sets))

    @property
    def over_budget(self) -> int:
        """Number of samples that exceed the token budget."""
        return self.num_samples - sum(map(len, self.usable))

    def over_budget_message(self) -> str | None:
        """One line about the samples that exceed the token budget; None if there are none."""
        if not self.over_budget:
            return None
        longest = max(range(len(self.sets)), key=lambda s: self.lengths[s].max())
        key = self.sets[longest].index[int(self.lengths[longest].argmax())].key
        return (
            f"{self.over_budget} of {self.num_samples} samples are longer than packing.token_budget "
            f"{self.packing.token_budget} and are skipped (longest: {key} in {self.sources[longest].path}, "
            f"{self.lengths[longest].max()} tokens); raise token_budget or lower packing.vae_resize"
        )

    def summary(self) -> str:
        """One line: the number of samples per source in an epoch."""
        counts = []
        for source, usable in zip(self.sources, self.usable, strict=True):
            whole, part = source.draws(len(usable))
            counts.append(whole * len(usable) + part)
        parts = [
            f"{count} of {source.title} ({count / sum(counts):.0%})"
            for source, count in zip(self.sources, counts, strict=True)
        ]
        return f"samples an epoch: {', '.join(parts)}"

    def check_cache(self, consumers: int) -> None:
        """Checks that the cache holds the working set; otherwise every sample would fetch its shard again.

        Args:
            consumers: number of processes that share the cache, all of which read and prefetch.

        Raises:
            UserError: the cache is too small; names the minimum.
        """
        limit = self.storage.cache_gigabytes
        if limit is None or not self.has_remote:
            return
        infos = [info for shards in self.sets if shards.storage.remote for info in shards.manifest.shards]
        sizes = sorted((info.bytes for info in infos), reverse=True)
        if self.shuffle_window is not None:
            # The current window and all that prefetching (and the loader's two packs) reaches into.
            per_pack = self.packing.token_budget / np.concatenate(self.lengths).mean()
            ahead = consumers * (self.storage.prefetch_packs + 3) * per_pack + self.packing.lookahead
            window = self.shuffle_window * self.num_samples / sum(map(len, self._shard_ends))
            sizes = sizes[: self.shuffle_window * (1 + math.ceil(ahead / window))]
        if (need := sum(sizes) / 1e9) > limit:
            digit = 10.0 ** (math.floor(math.log10(need)) - 2)
            advice = " or set data.shuffle_window" if self.shuffle_window is None else ""
            raise UserError(
                f"storage.cache_gigabytes is {limit:g}, but {len(sizes)} remote shards are in use at a time: give at "
                f"least {math.ceil(need / digit) * digit:.3g}{advice}"
            )

    def fingerprint(self, seed: int) -> str:
        """Hash of everything that determines which samples are in which pack."""
        contents = [
            seed,
            self.packing.token_budget,
            self.packing.lookahead,
            [
                (source.weight, shards.manifest.index_sha256)
                for source, shards in zip(self.sources, self.sets, strict=True)
            ],
        ]
        if self.shuffle_window is not None:
            contents.append(self.shuffle_window)
        if self.pairs:
            contents.append({"balance_window": self.packing.balance_window})
        if any(source.samples is not None for source in self.sources):
            contents.append([source.samples for source in self.sources])
        digest = hashlib.sha256(json.dumps(contents).encode())
        for lengths in self.lengths:
            digest.update(lengths.tobytes())
        return digest.hexdigest()[:16]

    @property
    def has_remote(self) -> bool:
        return any(shards.storage.remote for shards in self.sets)

    def shard_of(self, draw: Draw) -> int:
        """Index of the shard that holds the sample."""
        return int(np.searchsorted(self._shard_ends[draw.source], draw.index, side="right"))

    def order(self, seed: int, epoch: int) -> list[Draw]:
        """All samples of an epoch, shuffled.

        With a `shuffle_window` of n, the order of shards is shuffled, and samples within windows of n consecutive
        shards: remote shards are then read in sequence, and a cache of two windows suffices.
        """
        draws = []
        for number, (source, usable) in enumerate(zip(self.sources, self.usable, strict=True)):
            whole, part = source.draws(len(usable))
            draws += [Draw(number, int(i), copy) for copy in range(whole) for i in usable]
            if part:
                subset = generator("subset", seed, epoch, number).permutation(usable)[:part]
                draws += [Draw(number, int(i), whole) for i in np.sort(subset)]
        shuffled = generator("order", seed, epoch).permutation(len(draws))
        if self.shuffle_window is not None:
            windows = self._windows(draws, self.shuffle_window, generator("shards", seed, epoch))
            shuffled = shuffled[np.argsort(windows[shuffled], kind="stable")]
        return [draws[i] for i in shuffled]

    def _windows(self, draws: list[Draw], size: int, rng: np.random.Generator) -> np.ndarray:
        """(draws,) int64: index of each draw's window. The copies of a shard are distributed like distinct shards."""
        units = np.array([(draw.source, self.shard_of(draw), draw.copy) for draw in draws])
        distinct, unit = np.unique(units, axis=0, return_inverse=True)
        return rng.permutation(len(distinct))[unit.reshape(-1)] // size

    def _plan(self, seed: int, epoch: int) -> tuple[tuple[Draw, ...], ...]:
        """The packs of an epoch, the same in every process; there is at least one."""
        order = self.order(seed, epoch)
        lengths = [int(self.lengths[draw.source][draw.index]) for draw in order]
        packs = plan_packs(lengths, self.packing.token_budget, self.packing.lookahead).packs
        if self.pairs:
            pairs = [int(self.pairs[draw.source][draw.index]) for draw in order]
            costs = [sum(pairs[i] for i in pack) for pack in packs]
            packs = [packs[i] for i in balanced_order(costs, self.packing.balance_window)]
        return tuple(tuple(order[i] for i in pack) for pack in packs)

    def name_of(self, draw: Draw) -> str:
        """Shard and key of a draw, for messages."""
        shards = self.sets[draw.source]
        shard = shards.manifest.shards[self.shard_of(draw)].file
        return f"{shards.storage.name}/{shard}: {shards.index[draw.index].key}"

    def read(self, draw: Draw) -> Sample:
        """The sample of a draw; see `ShardSet.read`."""
        return self.sets[draw.source].read(draw.index)


def _restore(state: dict[str, object]) -> Mixture:
    mixture = Mixture.__new__(Mixture)
    vars(mixture).update(state)
    mixture.plan = lru_cache(maxsize=2)(mixture._plan)
    return mixture


def sample_pair_counts(
    shards: ShardSet, sequence_format: SequenceFormat, tokenizer: Tokenizer, packing: PackingConfig
) -> np.ndarray:
    """(samples,) int64, see `sample_pairs`."""
    pairs = (sample_pairs(entry, sequence_format, tokenizer, packing) for entry in shards.entries())
    return np.fromiter(pairs, dtype=np.int64, count=len(shards))


def sample_lengths(
    shards: ShardSet, sequence_format: SequenceFormat, tokenizer: Tokenizer, packing: PackingConfig
) -> np.ndarray:
    """(samples,) int64: tokens of every sample of a data set before dropout, from its index.

    Raises:
        UserError: two samples have the same key; see also `ShardSet.entries`.
    """
    lengths = np.zeros(len(shards), dtype=np.int64)

    def keys() -> Iterator[str]:  # in the same pass over the index
        for i, entry in enumerate(shards.entries()):
            lengths[i] = sample_length(entry, sequence_format, tokenizer, packing)
            yield entry.key

    if repeated := duplicates(keys(), len(shards)):
        raise UserError(
            f"{shards.storage.name}: two samples have the key {shards.index[repeated[0]].key!r}; run `shards convert` "
            "from this set to another folder, which skips the second"
        )
    return lengths
