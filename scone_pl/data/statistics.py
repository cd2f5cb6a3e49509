"""Looking at a data set: is it sound, and what will training see of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scone_pl.data.convert import Faults, check_images
from scone_pl.data.packing import PackingConfig, sample_length
from scone_pl.data.planning import plan_packs
from scone_pl.data.sample import BrokenSampleError
from scone_pl.data.seeding import generator
from scone_pl.data.shards import INDEX, IndexEntry, ShardSet, Size, sha256_of
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.data.transforms import open_image
from scone_pl.model.sequence import SequenceFormat


def verify_shards(folder: str | Path, progress: bool = True) -> tuple[int, Faults]:
    """Checks every checksum, decodes every image and compares every sample with its index entry.

    Returns:
        The number of samples looked at, and what is wrong with them.

    Raises:
        UserError: the folder is no complete shard set.
    """
    shards = ShardSet.open(folder)
    faults = Faults()
    if sha256_of(shards.folder / INDEX) != shards.manifest.index_sha256:
        faults.add(INDEX, BrokenSampleError("wrong checksum", "differs from the manifest"))
    for info in tqdm(shards.manifest.shards, desc="checksums", unit="shard", disable=not progress):
        if sha256_of(shards.folder / info.file) != info.sha256:
            faults.add(info.file, BrokenSampleError("wrong checksum", "differs from the manifest"))
    keys: set[str] = set()
    for i in tqdm(range(len(shards)), desc="samples", unit="sample", disable=not progress):
        entry = shards.index[i]
        where = f"{shards.manifest.shards[entry.shard].file}: {entry.key}"
        try:
            if entry.key in keys:
                raise BrokenSampleError("duplicate key", "an earlier sample has this key")
            keys.add(entry.key)
            _check_sample(shards, i, entry)
        except BrokenSampleError as error:
            faults.add(where, error)
    return len(shards), faults


def _check_sample(shards: ShardSet, i: int, entry: IndexEntry) -> None:
    sample = shards.read(i)
    check_images(sample)
    sizes = tuple(open_image(data).size for data in sample.references)
    target = open_image(sample.target).size if sample.target else None
    if (sizes, target) != (entry.references, entry.target):
        raise BrokenSampleError("index differs", f"images {sizes}, {target}, index {entry.references}, {entry.target}")
    if (sample.instruction, sample.kind) != (entry.instruction, entry.kind):
        raise BrokenSampleError("index differs", "another instruction or kind than the index says")
    if not sample.instruction.strip():
        raise BrokenSampleError("missing instruction", "the instruction is empty")


@dataclass(frozen=True)
class Statistics:
    """What training will see of a data set."""

    samples: int
    kinds: dict[str, int]
    references: dict[int, int]
    """Samples per number of reference images."""
    sizes: list[tuple[Size, int]]
    """The most frequent image sizes (width, height), and how many images have them."""
    lengths: np.ndarray
    """(samples,) int64: tokens of every sample."""
    token_budget: int
    over_budget: int
    packs: int
    efficiency: float
    """Share of a pack's tokens that are used."""

    def report(self, ranks: int) -> str:
        """A table for people; `ranks`: GPUs that share an epoch."""
        lines = [
            f"samples           {self.samples} ({_counts(self.kinds)})",
            f"reference images  {_counts(self.references)} (images a sample: samples)",
            "image sizes       " + ", ".join(f"{w}x{h}: {n}" for (w, h), n in self.sizes),
            f"tokens a sample   min {self.lengths.min()}, mean {self.lengths.mean():.0f}, max {self.lengths.max()}",
        ]
        counts, edges = np.histogram(self.lengths, bins=min(10, len(np.unique(self.lengths))))
        for count, low, high in zip(counts, edges, edges[1:], strict=False):
            bar = "#" * round(40 * count / counts.max())
            lines.append(f"  {low:8.0f} to {high:<8.0f} {count:7d} {bar}")
        lines += [
            f"token budget      {self.token_budget}; longer, and left out: {self.over_budget} samples",
            f"packs an epoch    {self.packs}, filled to {self.efficiency:.1%}",
            f"steps an epoch    {-(-self.packs // ranks)} on {ranks} ranks",
        ]
        return "\n".join(lines)


def shard_statistics(
    folder: str | Path, form: SequenceFormat, tokenizer: Tokenizer, packing: PackingConfig
) -> Statistics:
    """Statistics of the data set in `folder`, from its index alone.

    Raises:
        UserError: the folder is no complete shard set.
    """
    shards = ShardSet.open(folder)
    lengths = np.zeros(len(shards), dtype=np.int64)
    references: Counter[int] = Counter()
    sizes: Counter[Size] = Counter()
    for i, entry in enumerate(shards.index):
        lengths[i] = sample_length(entry, form, tokenizer, packing)
        references[len(entry.references)] += 1
        sizes.update((*entry.references, entry.target) if entry.target else entry.references)
    shuffled = generator("statistics").permutation(lengths)
    plan = plan_packs(shuffled, packing.token_budget, packing.lookahead)
    return Statistics(
        samples=len(shards),
        kinds=shards.manifest.kinds,
        references=dict(sorted(references.items())),
        sizes=sizes.most_common(8),
        lengths=lengths,
        token_budget=packing.token_budget,
        over_budget=len(plan.over_budget),
        packs=len(plan.packs),
        efficiency=plan.efficiency(shuffled, packing.token_budget),
    )


def _counts(counts: dict) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
