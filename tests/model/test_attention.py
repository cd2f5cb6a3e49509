import textwrap

import pytest
import torch
from model_helpers import (
    EVERYTHING,
    NO_TEXT,
    SEVERAL_TARGETS,
    TEXT_TO_IMAGE,
    TWO_REFERENCES,
    ComposedPlan,
    make_pack,
    random_blocked,
    random_pack,
)
from running import ROOT, run_python

from scone_pl.model.attention import DensePlan, FlexPlan, SplitPlan, attended_pairs, dense_mask, pieces
from scone_pl.model.attention.batches import batches_of
from scone_pl.model.attention.pieces import QUERY_CHUNK
from scone_pl.model.sequence import SplitKind

HEADS = [(4, 4), (4, 2), (6, 1), (1, 1)]


def inputs(pack, heads=4, kv_heads=2, size=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(len(pack), n, size, generator=generator, dtype=dtype, requires_grad=True)
        for n in (heads, kv_heads, kv_heads)
    ]


def allowed_by_rule(pack, blocked=None):
    """docs/specification.md 3 and 5 spelled out pair by pair."""
    split_of = {p: split for split in pack.splits for p in range(split.start, split.stop)}
    allowed = torch.zeros(len(pack), len(pack), dtype=torch.bool)
    for i in range(len(pack)):
        query = split_of[i]
        for j in range(query.stop):
            key = split_of[j]
            if key.sample != query.sample:
                continue
            if key is query:
                allowed[i, j] = j <= i or query.kind != SplitKind.TEXT
            else:
                allowed[i, j] = key.kind != SplitKind.TARGET
            latent_of_target = query.kind == SplitKind.TARGET and i in query.content
            if blocked is not None and blocked[j] and latent_of_target:
                allowed[i, j] = False
    return allowed


def reference(pack, q, k, v, blocked=None):
    """Attention by its definition in float64, with the scores of all pairs."""
    repeats = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(repeats, 1), v.double().repeat_interleave(repeats, 1)
    scores = torch.einsum("qhe,khe->hqk", q, k) / q.shape[2] ** 0.5
    scores = scores.masked_fill(~dense_mask(pack, blocked), float("-inf"))
    return torch.einsum("hqk,khe->qhe", scores.softmax(-1), v)


def uneven_batch():
    """Three samples of one layout side by side, with 0, 5 and all reference tokens blocked."""
    pack = make_pack(*3 * [TWO_REFERENCES])
    sample = pack.sample_of_token
    second = (pack.reference_tokens & (sample == 1)).nonzero().flatten()[:5]
    blocked = pack.reference_tokens & (sample == 2)
    blocked[second] = True
    return pack, blocked


PACKS = {
    **{f"random {seed}": random_pack(seed) for seed in range(4)},
    "everything": make_pack(*EVERYTHING),
    "no references": make_pack(TEXT_TO_IMAGE, TEXT_TO_IMAGE),
    "one split": make_pack({"text": 2 * QUERY_CHUNK + 37}),
    "target alone": make_pack({"targets": [(2, 3)]}, {"targets": [(1, 1), (2, 2)]}),
    "long text behind an image": make_pack(
        {"references": [(None, (3, 3))], "text": 2 * QUERY_CHUNK, "targets": [(2, 2)]}
    ),
    "text first": make_pack({"text": QUERY_CHUNK + 9}, {"references": [(None, (2, 2))], "text": QUERY_CHUNK - 2}),
}

LONG = ("random 0", "random 3")
"""Of these, what tests of many cases leave to `make test-slow`."""


def cases():
    """Packs with nothing, some and every reference token blocked, and different counts within a batch."""
    for name, pack in PACKS.items():
        marks = pytest.mark.slow if name in LONG else ()
        yield pytest.param(pack, None, id=name, marks=marks)
        if pack.reference_tokens.any():
            yield pytest.param(pack, random_blocked(pack, 1, 0.5), id=f"{name}, half blocked", marks=marks)
            yield pytest.param(pack, pack.reference_tokens, id=f"{name}, all blocked", marks=marks)
            none = torch.zeros(len(pack), dtype=torch.bool)
            yield pytest.param(pack, none, id=f"{name}, none blocked", marks=marks)
    yield pytest.param(*uneven_batch(), id="uneven batch")


def plan_of(kind, pack, blocked):
    plan = kind(pack)
    return plan if blocked is None else plan.hiding(blocked)


@pytest.mark.parametrize(
    ("pack", "fraction"),
    [(make_pack(*EVERYTHING), 0.0), (make_pack(*EVERYTHING), 0.5), (make_pack(SEVERAL_TARGETS, NO_TEXT), 1.0)],
)
def test_dense_mask_is_the_rule(pack, fraction):
    blocked = random_blocked(pack, 3, fraction)
    assert torch.equal(dense_mask(pack, blocked), allowed_by_rule(pack, blocked))
    assert torch.equal(dense_mask(pack), allowed_by_rule(pack))


@pytest.mark.parametrize(("pack", "blocked"), cases())
def test_attended_pairs_counts_the_mask(pack, blocked):
    assert attended_pairs(pack, blocked) == dense_mask(pack, blocked).sum().item()


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("kind", [SplitPlan, ComposedPlan])
@pytest.mark.parametrize(("pack", "blocked"), cases())
def test_split_equals_dense_with_gradients(pack, blocked, kind):
    """Outputs and the gradients of q, k, v to 1e-10 in float64."""
    qkv = inputs(pack)
    weights = torch.randn(len(pack), 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    output = plan_of(kind, pack, blocked)(*qkv, layer=0)
    expected = reference(pack, *qkv, blocked)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    gradients = torch.autograd.grad((output * weights).sum(), qkv)
    for actual, exact in zip(gradients, torch.autograd.grad((expected * weights).sum(), qkv), strict=True):
        torch.testing.assert_close(actual, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [SplitPlan, ComposedPlan])
@pytest.mark.parametrize("mode", ["off", "hard", "soft"])
@pytest.mark.parametrize("name", ["everything", "random 1", "target alone", "no references", "five alike"])
def test_small_samples_in_two_pieces(name, mode, kind, monkeypatch):
    """Equal to one piece a split, gradients included; by sample, and by head where there are fewer heads."""
    pack, results = make_pack(*5 * [TWO_REFERENCES]) if name == "five alike" else PACKS[name], []
    bias = torch.where(random_blocked(pack, 4, 0.6), -1.5, 0.0).double().requires_grad_()
    for size in (0, 128):
        monkeypatch.setattr(pieces, "SMALL_SAMPLE", size)
        plan = kind(pack)
        if mode != "off":
            plan = plan.biased(bias) if mode == "soft" else plan.hiding(bias < -1)
        qkv = inputs(pack, 4, 2)
        output = plan(*qkv, layer=0)
        of_inputs = [*qkv, bias] if mode == "soft" else qkv
        results.append([output, *torch.autograd.grad(output.square().sum(), of_inputs)])
    for several, one in zip(*results, strict=True):
        torch.testing.assert_close(one, several, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_grouped_query_heads(heads, kv_heads):
    pack, blocked = uneven_batch()
    qkv = inputs(pack, heads, kv_heads)
    expected = reference(pack, *qkv, blocked)
    for kind in (SplitPlan, ComposedPlan, DensePlan):
        torch.testing.assert_close(plan_of(kind, pack, blocked)(*qkv, layer=0), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("pack", "blocked"), [*cases()])
def test_dense_plan_equals_the_definition(pack, blocked):
    qkv = inputs(pack)
    expected = reference(pack, *qkv, blocked)
    torch.testing.assert_close(plan_of(DensePlan, pack, blocked)(*qkv, layer=0), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("pack", "blocked"),
    [
        pytest.param(PACKS["random 0"], random_blocked(PACKS["random 0"], 1, 0.5), id="random"),
        pytest.param(PACKS["everything"], None, id="everything"),
        pytest.param(*uneven_batch(), id="uneven batch"),
        pytest.param(PACKS["one split"], None, id="one split"),
    ],
)
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_equals_dense(pack, blocked):
    """Forward only: FlexAttention has no backward on the CPU."""
    for heads, kv_heads in HEADS[:2]:
        qkv = inputs(pack, heads, kv_heads, size=16, dtype=torch.float32)
        output = plan_of(FlexPlan, pack, blocked)(*qkv, layer=0)
        assert output.shape == qkv[0].shape
        torch.testing.assert_close(output.double(), reference(pack, *qkv, blocked), rtol=0, atol=2e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention trains on CUDA only")
@pytest.mark.parametrize("kind", [SplitPlan, FlexPlan])
def test_on_cuda_with_gradients(kind):
    pack = PACKS["random 1"]
    blocked = random_blocked(pack, 1, 0.5)
    qkv = inputs(pack, 4, 2, size=32, dtype=torch.float32)
    expected = reference(pack, *qkv, blocked)
    expected_gradients = torch.autograd.grad(expected.square().sum(), qkv)
    moved = [x.detach().cuda().requires_grad_() for x in qkv]
    output = plan_of(kind, pack.to("cuda"), blocked.cuda())(*moved, layer=0)
    torch.testing.assert_close(output.cpu().double(), expected, rtol=1e-3, atol=1e-3)
    for actual, exact in zip(torch.autograd.grad(output.square().sum(), moved), expected_gradients, strict=True):
        torch.testing.assert_close(actual.cpu(), exact, rtol=5e-3, atol=5e-3)


def test_adjacent_samples_of_equal_layout_are_one_batch():
    pack = make_pack(TWO_REFERENCES, TWO_REFERENCES, TEXT_TO_IMAGE, TWO_REFERENCES)
    batches = batches_of(pack)
    assert [batch.num_samples for batch in batches] == [2, 1, 1]
    assert [batch.start for batch in batches] == [0, 116, 129]
    assert sum(batch.num_tokens for batch in batches) == len(pack)


def test_hiding_leaves_the_first_plan_alone():
    pack, blocked = uneven_batch()
    qkv = inputs(pack)
    plan = SplitPlan(pack)
    before = plan(*qkv, layer=0)
    hidden = plan.hiding(blocked)(*qkv, layer=0)
    assert torch.equal(plan(*qkv, layer=0), before)
    changed = (hidden - before).abs().amax((1, 2)) > 1e-12
    with_blocked = pack.sample_of_token > 0
    only_targets = torch.zeros(len(pack), dtype=torch.bool).index_fill(0, pack.target_index, True)
    assert torch.equal(changed, with_blocked & only_targets), "only latents of targets see less"


@pytest.mark.usefixtures("in_pieces")
def test_blocked_keys_are_left_out_of_the_product():
    """Not masked in it: not even a nan there does harm."""
    pack = make_pack(TWO_REFERENCES)
    q, k, v = (x.detach() for x in inputs(pack))
    poisoned = v.masked_fill(pack.reference_tokens[:, None, None], float("nan"))
    plan = SplitPlan(pack).hiding(pack.reference_tokens)
    expected = plan(q, k, v, layer=0)[pack.target_index]
    assert torch.equal(plan(q, k, poisoned, layer=0)[pack.target_index], expected)


MEMORY = """
    import sys
    sys.path[:0] = ["benchmarks", "tests/model"]
    import torch
    from model_helpers import SEQUENCE_FORMAT, make_pack
    from workload import memory, training_pack
    from scone_pl.model.attention import DensePlan, SplitPlan

    torch.set_num_threads(1)
    kind, case, tokens, kv_heads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

    def pack_of(tokens):
        if case == "sample":
            return training_pack(tokens)
        return make_pack({"references": [(None, (4, 4))], "text": tokens})

    def step(pack):
        q, k, v = (torch.randn(len(pack), n, 16, requires_grad=True) for n in (2, kv_heads, kv_heads))
        before = memory("VmRSS")
        plan = {"split": SplitPlan, "dense": DensePlan}[kind](pack)
        blocked = pack.reference_tokens & (torch.rand(len(pack)) < 0.5)
        output = plan(q, k, v, 0) + plan.hiding(blocked)(q, k, v, 1)
        output.sum().backward()
        return memory("VmHWM") - before

    step(pack_of(300))
    print(step(pack_of(tokens)))
"""


def peak_growth(*arguments):
    done = run_python("-c", textwrap.dedent(MEMORY), *map(str, arguments), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize(
    ("case", "kv_heads"),
    [("sample", 2), *(pytest.param(case, 1, marks=pytest.mark.slow) for case in ("sample", "text"))],
)
def test_no_square_memory(case, kv_heads):
    """Forward and backward at 8k tokens, also with grouped heads, key masks and a long text behind an image."""
    tokens = 8192
    # The allocator's moods only add: 98 to 129 MB were seen for the long text, against a limit of 121.
    assert any(peak_growth("split", case, tokens, kv_heads) < 0.45 * tokens**2 * 4 for _ in range(3))


def test_the_memory_measure_sees_a_square():
    """A single L x L float mask would break the bound above."""
    assert peak_growth("dense", "sample", 4096, 2) > 4096**2 * 4
