"""A soft bridge's bias in every backend against its definition with all scores, and without an L x L tensor."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable

import pytest
import torch
from largest import Largest
from model_helpers import (
    EVERYTHING,
    SEQUENCE_FORMAT,
    SEVERAL_TARGETS,
    TWO_REFERENCES,
    ComposedPlan,
    make_pack,
    random_blocked,
    random_layout,
)
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module

from scone_pl.model.attention import AttentionPlan, DensePlan, FlexPlan, SplitPlan, dense_mask
from scone_pl.model.attention.sdpa import append_channel
from scone_pl.model.sequence import PackedSequence

PACKS = {
    "everything": make_pack(*EVERYTHING),
    "random": make_pack(*(random_layout(random.Random(seed)) for seed in range(4))),
    "batch": make_pack(*3 * [TWO_REFERENCES]),
    "several targets": make_pack(SEVERAL_TARGETS, SEVERAL_TARGETS, {"targets": [(2, 3)]}),
}
HEAD_DIMS = [32, 64, 72, 80, 128]


pytestmark = pytest.mark.usefixtures("in_pieces")


@pytest.fixture(autouse=True)
def flex_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention's own backward is refused on the CPU, where it has no kernel; its definition runs there too."""
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)


def inputs(pack: PackedSequence, heads: int, kv_heads: int, size: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(len(pack), n, size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for n in (heads, kv_heads, kv_heads)
    ]


def bias_of(pack: PackedSequence, fraction: float, dtype: torch.dtype) -> Tensor:
    """Log sigmoids for `fraction` of the reference tokens, one of them -1e5: exp gives exactly 0."""
    generator = torch.Generator().manual_seed(1)
    chosen = random_blocked(pack, 2, fraction) if fraction < 1 else pack.reference_tokens
    value = torch.nn.functional.logsigmoid(3 * torch.randn(len(pack), generator=generator, dtype=torch.float64))
    bias = torch.where(chosen, value, 0.0)
    if fraction:
        bias[chosen.nonzero()[0]] = -1e5
    return bias.to(dtype).requires_grad_()


def by_definition(pack: PackedSequence, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    repeats = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
    scores = torch.einsum("qhe,khe->hqk", q, k) / q.shape[2] ** 0.5
    is_latent = torch.zeros(len(pack), dtype=torch.bool).index_fill(0, pack.target_index, True)
    scores = scores + torch.where(is_latent[:, None], bias, 0.0)
    return torch.einsum("hqk,khe->qhe", scores.masked_fill(~dense_mask(pack), -torch.inf).softmax(-1), v)


def compare(
    kind: Callable[[PackedSequence], AttentionPlan],
    pack: PackedSequence,
    heads: tuple[int, int],
    size: int,
    fraction: float,
    dtype: torch.dtype,
) -> None:
    """Output and all gradients, the bias's of context keys included."""
    qkv, bias = inputs(pack, *heads, size, dtype), bias_of(pack, fraction, dtype)
    exact = [x.detach().double().requires_grad_() for x in (*qkv, bias)]
    weights = torch.randn(len(pack), heads[0], size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    expected = by_definition(pack, *exact)
    output = kind(pack).biased(bias)(*qkv, layer=0)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad((output * weights).sum(), [*qkv, bias])
    expected_gradients = torch.autograd.grad((expected * weights).sum(), exact)
    for actual, exact_gradient in zip(gradients[:3], expected_gradients[:3], strict=True):
        torch.testing.assert_close(actual.double(), exact_gradient, rtol=tolerance, atol=10 * tolerance)
    of_references = [g[pack.reference_tokens].double() for g in (gradients[3], expected_gradients[3])]
    assert of_references[1].abs().max() > 0.1, "there is a gradient to compare"
    torch.testing.assert_close(*of_references, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("size", HEAD_DIMS)
@pytest.mark.parametrize("kind", [SplitPlan, FlexPlan])
def test_every_head_dimension(kind: Callable[[PackedSequence], AttentionPlan], size: int) -> None:
    compare(kind, PACKS["everything"], (4, 2), size, 0.5, torch.float64)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("kind", "name", "fraction"),
    [
        pytest.param(*case, marks=[] if case[0] is SplitPlan or case[2] == 0.5 else pytest.mark.slow)
        for case in itertools.product((SplitPlan, ComposedPlan, FlexPlan, DensePlan), PACKS, (0.0, 0.5, 1.0))
    ],
)
def test_every_structure(kind: Callable[[PackedSequence], AttentionPlan], name: str, fraction: float) -> None:
    compare(kind, PACKS[name], (4, 2), 16, fraction, torch.float64)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", [SplitPlan, FlexPlan])
def test_seven_query_heads_a_key(kind: Callable[[PackedSequence], AttentionPlan]) -> None:
    """The heads of the 7B decoder: 28 to 4."""
    for dtype in (torch.float64, torch.float32):
        compare(kind, PACKS["several targets"], (28, 4), 128, 0.5, dtype)


@pytest.mark.parametrize("size", [*HEAD_DIMS, 7, 8, 33])
def test_the_channel_fills_up_to_whole_vectors(size: int) -> None:
    x = torch.randn(2, 3, size)
    output = append_channel(x, torch.tensor([5.0]))
    assert output.shape[-1] % 8 == 0
    assert size < output.shape[-1] <= size + 8
    assert output[..., :size].equal(x)
    assert output[..., size].eq(5).all()
    assert not output[..., size + 1 :].any()


def largest_of_step(kind: Callable[[PackedSequence], AttentionPlan], tokens: int, mode: str) -> int:
    """Forward and backward with two query heads a key; of FlexAttention, whose kernels are for CUDA, the plan."""
    grid = 16, tokens // 64
    sequence_format = dataclasses.replace(
        SEQUENCE_FORMAT, latent_positions_per_side=grid[1], vit_positions_per_side=grid[1]
    )
    pack = make_pack({"references": [(grid, grid)], "text": 9, "targets": [grid]}, sequence_format=sequence_format)
    bias = bias_of(pack, 0.5, torch.float32)
    with Largest() as largest:
        plan = kind(pack)
        plan = plan.biased(bias) if mode == "soft" else plan.hiding(bias < -0.5)
        if isinstance(plan, FlexPlan):
            assert plan.bias_block_mask is not None
        else:
            plan(*inputs(pack, 2, 1, 8, torch.float32), layer=0).sum().backward()
    return largest.elements


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("kind", [SplitPlan, FlexPlan])
def test_no_tensor_grows_with_the_square(kind: Callable[[PackedSequence], AttentionPlan], mode: str) -> None:
    once, twice = (largest_of_step(kind, tokens, mode) for tokens in (2048, 4096))
    assert twice < 2.2 * once
    assert twice < 4096**2 / 8


def test_the_measure_sees_a_square() -> None:
    assert largest_of_step(DensePlan, 1024, "soft") > 750**2
