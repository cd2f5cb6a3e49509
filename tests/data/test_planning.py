import numpy as np
import pytest

from scone_pl.data.planning import plan_packs
from scone_pl.data.sources import Source
from scone_pl.errors import UserError


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
