"""`VarlenPlan` against the dense float64 reference, its CUDA kernels replaced by plain products on the CPU."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from benchmarks.gpu_check.attention import BRIDGES, FRACTIONS, Case, attend, odd_pack, relative_error
from scone_pl.errors import UserError
from scone_pl.model.attention import DensePlan, VarlenPlan, varlen
from scone_pl.model.attention.varlen import STATE, Segments, VarlenAttention

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16


def _by_segment(q: Tensor, k: Tensor, v: Tensor, group: Segments, scale: float) -> Tensor:
    outputs = []
    for (a, b), (c, d) in zip(pairwise(group.query_starts), pairwise(group.key_starts), strict=True):
        assert b - a <= group.longest[0]
        assert d - c <= group.longest[1]
        repeats = q.shape[1] // k.shape[1]
        keys, values = (x[c:d].repeat_interleave(repeats, dim=1) for x in (k, v))
        scores = torch.einsum("qhe,khe->hqk", q[a:b], keys) * scale
        if group.causal:
            scores = scores.masked_fill(~torch.ones_like(scores[0]).bool().tril(len(keys) - int(b - a)), -torch.inf)
        outputs.append(torch.einsum("hqk,khe->qhe", scores.softmax(-1), values))
    return torch.cat(outputs)


def _forward(q: Tensor, k: Tensor, v: Tensor, group: Segments, scale: float) -> tuple[Tensor, ...]:
    return _by_segment(q, k, v, group, scale), *[torch.zeros(())] * STATE


def _backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    state: tuple[Tensor, ...],
    group: Segments,
    scale: float,
) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    with torch.enable_grad():
        grads = torch.autograd.grad(_by_segment(*leaves, group, scale), leaves, gradient)
    stop = group.key_starts[-1]
    for grad in grads[1:]:
        grad[stop:] = torch.nan  # as the kernel leaves them: unwritten
    return grads


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "attend_forward", _forward)
    monkeypatch.setattr(varlen, "attend_backward", _backward)
    monkeypatch.setattr(
        VarlenPlan, "__call__", lambda self, q, k, v, layer: VarlenAttention.apply(q, k, v, self._bias, self.segments)
    )


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("bridge", BRIDGES)
def test_output_and_gradients_are_the_reference_s(bridge: str, fraction: float) -> None:
    pack = odd_pack()
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shapes = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
    inputs = {name: random(len(pack), heads, HEAD_DIM) for name, heads in shapes.items()}
    logits, upstream = random(len(pack)), random(len(pack), HEADS, HEAD_DIM)
    chosen = pack.reference_tokens & (torch.rand(len(pack), generator=generator) < fraction)
    case = Case("varlen", bridge, fraction, HEAD_DIM, "float64")
    results, references = (
        attend(plan(pack), case, inputs, logits, chosen, upstream, backward=True) for plan in (VarlenPlan, DensePlan)
    )
    assert results.keys() == references.keys()
    for name, value in results.items():
        # The gradient of keys and of the bias is summed in float32.
        assert relative_error(value, references[name]) < 1e-6, name


def test_hidden_keys_shorten_their_segments_without_the_host() -> None:
    pack = odd_pack()
    whole = VarlenPlan(pack).segments[0]
    hidden = VarlenPlan(pack).hiding(pack.reference_tokens).segments[0]
    kept = int(hidden.key_starts[-1])
    assert kept < len(hidden.keys)
    assert hidden.longest[1] == whole.longest[1]
    rows = hidden.keys[:kept]
    targets = [i for i, (a, b) in enumerate(pairwise(hidden.query_starts.tolist())) if b - a > 2]
    content = pack.target_tokens[hidden.queries]
    for segment in targets:
        a, b = hidden.query_starts[segment], hidden.query_starts[segment + 1]
        if content[a:b].all():
            c, d = hidden.key_starts[segment], hidden.key_starts[segment + 1]
            assert not pack.reference_tokens[rows[c:d]].any()


def test_dropped_tokens_are_seen_by_nobody() -> None:
    pack = odd_pack()
    present = ~(pack.reference_tokens & (torch.arange(len(pack)) % 3 == 0))
    for group in VarlenPlan(pack, present).segments:
        assert present[group.keys[: int(group.key_starts[-1])]].all()


def test_other_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    q = torch.zeros(len(odd_pack()), 1, 8)
    with pytest.raises(UserError, match="needs CUDA"):
        VarlenPlan(odd_pack())(q, q, q, 0)
