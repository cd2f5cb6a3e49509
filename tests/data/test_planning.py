import dataclasses

import numpy as np
import pytest

from scone_pl.data.packing import add_sample
from scone_pl.data.planning import balanced_order, plan_packs
from scone_pl.data.seeding import generator
from scone_pl.data.sources import Mixture, Source
from scone_pl.errors import UserError
from scone_pl.model.attention import dense_mask
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.sequence import SplitKind


def first_come(lengths, budget):
    """Packs of the greedy packing that closes a pack when the next sample does not fit."""
    packs, used = 1, 0
    for length in lengths:
        if used + length > budget:
            packs, used = packs + 1, 0
        used += length
    return packs


def published_like(count, seed=0):
    """Token lengths as 1 to 4 references at published sizes make them."""
    rng = np.random.default_rng(seed)
    references = rng.choice([1, 2, 3, 4], count, p=[0.45, 0.35, 0.15, 0.05])
    image = rng.choice([1024, 2048, 3072, 4096], (count, 5))
    vae = np.array([image[i, : n + 1].sum() for i, n in enumerate(references)])
    return vae + references * rng.integers(256, 1369, count) + rng.integers(10, 80, count)


@pytest.mark.parametrize("lookahead", [1, 2, 8, 64])
@pytest.mark.parametrize("seed", range(5))
def test_every_sample_once_and_never_over_the_budget(lookahead, seed):
    lengths = np.random.default_rng(seed).integers(1, 130, 200)
    plan = plan_packs(lengths, 100, lookahead)
    packed = [i for pack in plan.packs for i in pack]
    assert sorted(packed + plan.over_budget) == list(range(200))
    assert all(0 < lengths[pack].sum() <= 100 for pack in plan.packs)
    assert plan.over_budget == np.flatnonzero(lengths > 100).tolist()


def test_oldest_goes_first():
    lengths = np.random.default_rng(0).integers(1, 100, 300)
    waiting = set(range(300))
    for pack in plan_packs(lengths, 100, 16).packs:
        assert pack[0] == min(waiting)
        assert max(pack) < min(waiting) + 16 + len(set(range(min(waiting), max(pack))) - waiting)
        waiting -= set(pack)


def test_fills_exactly_where_it_can():
    assert plan_packs([6, 5, 3, 1, 4], 10, 8).packs == [[0, 2, 3], [1, 4]]
    assert plan_packs([6, 5, 3, 1, 4], 10, 1).packs == [[0], [1], [2], [3], [4]]
    assert plan_packs([], 10).packs == []
    assert plan_packs([11], 10).over_budget == [0]


def test_efficiency_beats_first_come():
    lengths, budget = published_like(3000), 26496
    usable = lengths[lengths <= budget]
    plan = plan_packs(usable, budget, 64)
    greedy = usable.sum() / (budget * first_come(usable, budget))
    assert plan.efficiency(usable, budget) > 0.98
    assert greedy < 0.9


def test_plan_is_a_function_of_its_arguments():
    lengths = published_like(500)
    assert plan_packs(lengths, 26496, 32) == plan_packs(lengths.tolist(), 26496, 32)


def test_a_budget_without_bounds_takes_no_memory():
    assert plan_packs([3, 5, 4], 10**15).packs == [[0, 1, 2]]


def test_an_epoch_that_no_memory_holds_is_refused():
    for source in (Source("set", weight=1e12), Source("set", samples=10**12)):
        with pytest.raises(UserError, match=r"set: an epoch would hold 10+\d* of its samples"):
            source.check_epoch(10)
    Source("set", weight=3).check_epoch(10**7)


@pytest.mark.parametrize("window", [1, 2, 7, 64, 1000])
def test_balanced_packs_are_the_same_packs_beside_their_likes(window):
    costs = np.random.default_rng(0).integers(1, 10**6, 200).tolist()
    order = balanced_order(costs, window)
    assert sorted(order) == list(range(200))
    assert window > 1 or order == list(range(200))
    for start in range(0, 200, window):
        assert sorted(order[start : start + window]) == list(range(start, min(start + window, 200)))

    def waiting(order, ranks):
        """How much longer a step takes than its mean pack, at most, whichever pack a step begins with."""
        taken = np.array([costs[i] for i in order])
        return max(
            np.mean([w.max() / w.mean() for w in np.split(taken[first:], range(ranks, 200 - first, ranks))])
            for first in range(ranks)
        )

    if window >= 64:
        assert waiting(order, 8) < 1 + (waiting(range(200), 8) - 1) / 2


def test_balancing_changes_the_order_alone_and_is_part_of_the_fingerprint(
    shard_folder, sequence_format, tokenizer, packing
):
    def mixture(**changes):
        changed = dataclasses.replace(packing, **changes)
        return Mixture([Source(str(shard_folder))], sequence_format, tokenizer, changed)

    plain, sorted_ = mixture(), mixture(balance_window=16)
    packs = [{tuple((d.source, d.index, d.copy) for d in pack) for pack in one.plan(3, 1)} for one in (plain, sorted_)]
    assert packs[0] == packs[1]
    assert plain.plan(3, 1) != sorted_.plan(3, 1) == mixture(balance_window=16).plan(3, 1)
    assert plain.fingerprint(3) != sorted_.fingerprint(3)
    with pytest.raises(UserError, match=r"balance_window would undo the order that data\.shuffle_window keeps"):
        Mixture(sorted_.sources, sequence_format, tokenizer, sorted_.packing, shuffle_window=2)
    (pairs,), shards = sorted_.pairs, sorted_.sets[0]
    for i in range(6):
        builder = SequenceBuilder(sequence_format)
        add_sample(builder, shards.read(i), tokenizer, packing.without_dropout(), generator(i))
        lengths = [(split.length, split.kind == SplitKind.TEXT) for split in builder.build().splits]
        causal = sum(length * (length - 1) // 2 for length, is_text in lengths if is_text)
        assert pairs[i] - causal == dense_mask(builder.build()).sum()
