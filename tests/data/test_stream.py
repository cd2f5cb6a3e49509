import dataclasses
import itertools
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import make_sample
from torch.utils.data import DataLoader

from scone_pl.data.seeding import seed_of
from scone_pl.data.shard_writer import write_shards
from scone_pl.data.shards import ShardSet
from scone_pl.data.sources import Mixture, Source
from scone_pl.data.stream import Batch, Cursor, FixedPacks, PackMaker, PackStream, SingleSamples, StreamPosition
from scone_pl.data.windows import WindowedLoader
from scone_pl.errors import UserError
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.sequence import SplitKind
from scone_pl.training.heap import trim_heap


@pytest.fixture(scope="module")
def maker(shard_folder, sequence_format, tokenizer, packing):
    return maker_of([Source(str(shard_folder))], sequence_format, tokenizer, packing)


def maker_of(sources, sequence_format, tokenizer, packing, **fields):
    return PackMaker(
        Mixture(sources, sequence_format, tokenizer, packing), sequence_format, tokenizer, packing, seed=3, **fields
    )


def take(dataset, count, workers=0):
    return list(itertools.islice(DataLoader(dataset, batch_size=None, num_workers=workers), count))


def numbers(batches):
    return [batch.position.number for batch in batches]


def equal(a, b):
    """Equal down to the last bit, drawn noise levels included."""
    tensors = ("text_ids", "vit_patches", "vit_positions", "latent_positions", "timestep_logits")
    return (
        a.position == b.position
        and a.seed == b.seed
        and a.sequence.splits == b.sequence.splits
        and a.sequence.keys == b.sequence.keys
        and all(torch.equal(getattr(a.sequence, name), getattr(b.sequence, name)) for name in tensors)
        and all(torch.equal(x, y) for x, y in zip(a.sequence.images, b.sequence.images, strict=True))
    )


def test_an_epoch_holds_every_sample_once_within_the_budget(maker):
    start = 0
    for epoch in range(2):
        packs = len(maker.mixture.plan(3, epoch))
        keys = []
        for batch in take(PackStream(maker, Cursor(start, epoch, start)), packs):
            assert 0 < len(batch.sequence) <= maker.packing.token_budget
            assert batch.position.epoch == epoch
            assert batch.seed == seed_of("step", "train", 3, epoch, batch.position.pack), "noise of each pack its own"
            keys += batch.sequence.keys
        assert sorted(keys) == [make_sample(i).key for i in range(60)]
        start += packs


def test_epochs_differ_and_processes_do_not(maker):
    plans = [maker.mixture.plan(3, epoch) for epoch in range(2)]
    assert plans[0] != plans[1]
    assert maker.mixture.plan(4, 0) != plans[0], "nor do seeds agree"
    copy = pickle.loads(pickle.dumps(maker))  # noqa: S301
    assert copy.mixture.plan(3, 1) == plans[1]
    first = [draw.index for draw in maker.mixture.order(3, 1)[:8]]
    assert first == [40, 54, 3, 38, 41, 37, 48, 44], "as recorded: a run resumes in the order in which it began"


def test_each_batch_knows_the_counts_of_its_optimizer_step(maker):
    builder = SequenceBuilder(maker.sequence_format)
    builder.begin_sample()
    builder.add_text([1, 2, 3], loss=True)
    answer = Batch(builder.build(), StreamPosition(0, 0, 0), seed=0)
    batches = [*take(PackStream(maker, Cursor()), 3), answer, answer]
    targets = [len(batch.sequence.target_index) for batch in batches]
    assert min(targets[:3]) > 0
    counted = list(WindowedLoader(batches, 2))
    assert [batch.sequence.keys for batch in counted] == [batch.sequence.keys for batch in batches]
    sums = [sum(targets[:2]), targets[2], 0]
    assert [batch.step_targets for batch in counted] == [sums[0], sums[0], sums[1], sums[1], sums[2]]
    assert [batch.step_labels for batch in counted] == [0, 0, 4, 4, 4]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_nothing(maker, workers):
    straight = take(PackStream(maker, Cursor()), 12)
    assert all(map(equal, take(PackStream(maker, Cursor()), 12, workers), straight))


@pytest.mark.parametrize("ranks", [2, 5])
def test_ranks_share_the_stream_without_gaps(maker, ranks):
    straight = take(PackStream(maker, Cursor()), 10)
    shares = [take(PackStream(maker, Cursor(), rank, ranks), 10 // ranks) for rank in range(ranks)]
    together = [batch for step in zip(*shares, strict=True) for batch in step]
    assert all(map(equal, together, straight))


def test_fewer_packs_than_consumers(sequence_format, tokenizer, packing, tmp_path):
    write_shards([make_sample(1)], tmp_path / "one", progress=False)
    maker = maker_of([Source(str(tmp_path / "one"))], sequence_format, tokenizer, packing)
    batches = take(PackStream(maker, Cursor(), rank=1, world_size=4), 3, workers=2)
    assert [(b.position.number, b.position.epoch, b.position.pack) for b in batches] == [
        (1, 1, 0),
        (5, 5, 0),
        (9, 9, 0),
    ]
    assert len({batch.sequence.timestep_logits.tolist()[-1] for batch in batches}) == 3
    fixed = [take(FixedPacks(maker, 8, rank, 4), 10) for rank in range(4)]
    assert [len(batches) for batches in fixed] == [1] * 4


def test_weights(shard_folder, sequence_format, tokenizer, packing, tmp_path):
    write_shards((make_sample(100 + i) for i in range(10)), tmp_path / "b", progress=False)
    sources = [Source(str(shard_folder), 0.5), Source(str(tmp_path / "b"), 2.0)]
    mixture = Mixture(sources, sequence_format, tokenizer, packing)
    halves = []
    for epoch in range(40):
        draws = mixture.order(3, epoch)
        assert len(draws) == len(set(draws)) == 30 + 20
        halves.append({draw.index for draw in draws if draw.source == 0})
        assert sorted((d.index, d.copy) for d in draws if d.source == 1) == [(i, c) for i in range(10) for c in (0, 1)]
    assert {draw.index for draw in mixture.order(4, 0) if draw.source == 0} != halves[0], "nor do seeds agree"
    assert set().union(*halves) == set(range(60))
    counts = np.bincount([i for half in halves for i in half])
    assert counts.mean() == 20
    assert counts.max() < 35


def test_sample_counts(shard_folder, sequence_format, tokenizer, packing, tmp_path):
    write_shards((make_sample(i) for i in range(100, 110)), tmp_path / "b", progress=False)
    sources = [Source(str(shard_folder), samples=7, name="few"), Source(str(tmp_path / "b"), samples=25)]
    mixture = Mixture(sources, sequence_format, tokenizer, packing)
    epochs = [Counter(mixture.order(3, epoch)) for epoch in range(2)]
    for draws in epochs:
        assert max(draws.values()) == 1
        assert Counter(draw.source for draw in draws) == {0: 7, 1: 25}
        again = Counter(draw.index for draw in draws if draw.source == 1)
        assert sorted(again.values()) == [2] * 5 + [3] * 5
    assert epochs[0] != epochs[1]
    assert mixture.summary() == "samples an epoch: 7 of few (22%), 25 of b (78%)"
    other = Mixture([sources[0], Source(str(tmp_path / "b"), samples=24)], sequence_format, tokenizer, packing)
    assert other.fingerprint(3) != mixture.fingerprint(3)


def test_copies_epochs_seeds_and_purposes_have_their_own_noise(sequence_format, tokenizer, packing, tmp_path):
    write_shards([make_sample(0)], tmp_path / "one", progress=False)
    maker = maker_of([Source(str(tmp_path / "one"), 3.0)], sequence_format, tokenizer, packing)
    logits = []
    for one in (maker, dataclasses.replace(maker, seed=4), dataclasses.replace(maker, purpose="val")):
        packs = sum(len(one.mixture.plan(one.seed, epoch)) for epoch in range(2))
        logits += [batch.sequence.timestep_logits for batch in take(PackStream(one, Cursor()), packs)]
    assert len(torch.cat(logits).unique()) == 3 * 2 * 3


def test_equal_layouts_are_adjacent(maker):
    for batch in take(PackStream(maker, Cursor()), 10):
        layouts = [tuple((s.kind, s.grid, s.length) for s in splits) for splits in batch.sequence.by_sample]
        changes = sum(a != b for a, b in itertools.pairwise(layouts))
        assert changes == len(set(layouts)) - 1


def test_sharding_does_not_change_the_draws(shard_folder, sequence_format, tokenizer, packing, tmp_path):
    write_shards(ShardSet(shard_folder), tmp_path / "other", samples_per_shard=7, progress=False)
    makers = [
        maker_of([Source(str(folder))], sequence_format, tokenizer, packing)
        for folder in (shard_folder, tmp_path / "other")
    ]
    one, other = (take(PackStream(maker, Cursor()), 5) for maker in makers)
    assert all(map(equal, one, other))


def damage(folder, keys):
    """Zeroes the pixels of some samples in place, file sizes unchanged."""
    shards = ShardSet(folder)
    for entry in shards.index:
        if entry.key in keys:
            path = folder / shards.manifest.shards[entry.shard].file
            tar = bytearray(path.read_bytes())
            position = tar.index(b"IDAT", entry.offset)
            tar[position : position + 40] = bytes(40)
            path.write_bytes(tar)


def test_broken_samples_are_left_out_and_counted(sequence_format, tokenizer, packing, tmp_path):
    folder = tmp_path / "s"
    write_shards((make_sample(i) for i in range(20)), folder, progress=False)
    broken = {"s0003", "s0007"}
    damage(folder, broken)
    maker = maker_of([Source(str(folder))], sequence_format, tokenizer, packing)
    batches = take(PackStream(maker, Cursor()), len(maker.mixture.plan(3, 0)))
    seen = [key for batch in batches for key in batch.sequence.keys]
    assert set(seen) == {make_sample(i).key for i in range(20)} - broken
    assert sum(sum(batch.skipped.values()) for batch in batches) >= 2


def test_unreadable_pack_is_replaced_and_numbers_hold(sequence_format, tokenizer, packing, tmp_path):
    folder = tmp_path / "s"
    write_shards((make_sample(i) for i in range(12)), folder, progress=False)
    maker = maker_of([Source(str(folder))], sequence_format, tokenizer, packing)
    first, second = maker.mixture.plan(3, 0)[:2]
    damage(folder, {maker.mixture.read(draw).key for draw in first})
    batches = take(PackStream(maker, Cursor()), 2)
    assert numbers(batches) == [0, 1]
    assert set(batches[0].sequence.keys) == {maker.mixture.read(draw).key for draw in second}
    assert not torch.equal(batches[0].sequence.timestep_logits, batches[1].sequence.timestep_logits)


def test_nothing_readable_is_a_message_not_a_hang(sequence_format, tokenizer, packing, tmp_path):
    folder = tmp_path / "s"
    write_shards((make_sample(i) for i in range(4)), folder, progress=False)
    damage(folder, {make_sample(i).key for i in range(4)})
    maker = maker_of([Source(str(folder))], sequence_format, tokenizer, packing)
    batch = take(PackStream(maker, Cursor()), 1, workers=1)[0]
    assert "no readable sample" in batch.failure
    assert str(folder) in batch.failure


def test_validation_is_the_same_every_time_without_dropout(shard_folder, sequence_format, tokenizer, packing):
    maker = maker_of(
        [Source(str(shard_folder))],
        sequence_format,
        tokenizer,
        packing.without_dropout(),
        purpose="val",
        keep_samples=True,
    )
    fixed = FixedPacks(maker, 3, rank=1, world_size=2)
    batches = take(fixed, 99)
    assert len(batches) == 3
    assert all(map(equal, batches, take(fixed, 99, workers=2)))
    for batch in batches:
        assert tuple(sample.key for sample in batch.samples) == batch.sequence.keys
        assert len(batch.sequence.splits_of(SplitKind.TEXT)) == batch.sequence.num_samples


def test_prediction_gives_every_sample(sequence_format, tokenizer, packing, tmp_path):
    samples = [dataclasses.replace(make_sample(i), target=b"" if i == 1 else make_sample(i).target) for i in range(5)]
    write_shards(samples, tmp_path / "s", progress=False)
    maker = maker_of(
        [Source(str(tmp_path / "s"))], sequence_format, tokenizer, packing, purpose="predict", keep_samples=True
    )
    shares = [take(SingleSamples(maker, None, rank, 2), 99) for rank in range(2)]
    assert [len(share) for share in shares] == [3, 3]
    keys = [batch.samples[0].key for step in zip(*shares, strict=True) for batch in step]
    assert keys == ["s0000", "s0001", "s0002", "s0003", "s0004", "s0000"]
    assert shares[1][0].sequence.splits_of(SplitKind.TARGET) == []
    assert len(shares[0][0].sequence.splits_of(SplitKind.TARGET)) == 1


def test_sources_are_checked_before_the_first_step(shard_folder, sequence_format, tokenizer, packing, tmp_path):
    path = str(shard_folder)
    for sources, message in (
        ([], "list of data sources is empty"),
        ([Source(str(tmp_path / "none"))], "no such folder"),
        ([Source(path, 0)], "weight is 0"),
        ([Source(path, float("nan"))], "weight is nan"),
    ):
        with pytest.raises(UserError, match=message):
            Mixture(sources, sequence_format, tokenizer, packing)
    with pytest.raises(UserError, match="all 60 samples are longer"):
        Mixture([Source(path)], sequence_format, tokenizer, dataclasses.replace(packing, token_budget=5))


def test_samples_over_the_budget_are_reported(shard_folder, sequence_format, tokenizer, packing):
    mixture = Mixture(
        [Source(str(shard_folder))], sequence_format, tokenizer, dataclasses.replace(packing, token_budget=60)
    )
    assert 0 < mixture.over_budget < 60
    assert mixture.over_budget == sum(length > 60 for length in mixture.lengths[0])
    assert f"{mixture.over_budget} of 60 samples" in mixture.over_budget_message()
    assert sum(map(len, mixture.plan(0, 0))) == 60 - mixture.over_budget


def resident():
    """Megabytes, less what was freed: what earlier tests left in the heap would hide growth."""
    trim_heap(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_memory_does_not_grow(maker):
    """Over 100,000 samples: `benchmarks/data.py --only memory`."""
    stream, marks, seen = iter(PackStream(maker, Cursor())), [], 0
    while seen < 1200:
        seen += next(stream).sequence.num_samples
        marks.append(resident())
    assert marks[-1] - marks[len(marks) // 3] < 5
