"""Compiled operations and kept attention against what they replace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from scone_pl.model import compiled
from scone_pl.model.decoder import ATTENTION_KERNELS, _keep_attention
from scone_pl.model.fused import RMSNormFunction, Rotate


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("tokens", [0, 1, 5, 8])
@pytest.mark.parametrize(
    ("function", "reference", "shapes"),
    [
        (compiled._rms_norm, lambda x, w: RMSNormFunction.apply(x, w, 1e-6), [(None, 6), (6,)]),
        (compiled._rotate, Rotate.apply, [(None, 3, 4), (None, 1, 4), (None, 1, 2)]),
        (compiled._gated, lambda gate, up: F.silu(gate) * up, [(None, 6), (None, 6)]),
    ],
)
def test_the_formulas_are_those_of_the_operations_that_they_replace(
    function: Callable[..., Tensor], reference: Callable[..., Tensor], shapes: list[tuple[int, ...]], tokens: int
) -> None:
    torch.manual_seed(0)
    arguments = [_random(*(tokens if size is None else size for size in shape)) for shape in shapes]
    more = (1e-6,) if function is compiled._rms_norm else ()
    if function is compiled._rotate:  # cosines come twice over, see `embeddings.rotary_tables`
        arguments[1] = torch.cat([arguments[1][..., :2]] * 2, dim=-1)
    arguments[0].requires_grad_()
    result, expected = function(*arguments, *more), reference(*arguments)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(result)
    torch.testing.assert_close(*(torch.autograd.grad(x, arguments[0], upstream)[0] for x in (result, expected)))


@pytest.mark.slow  # compiles
def test_compiled_once_for_all_lengths() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    weight = torch.ones(16, requires_grad=True)
    for tokens in (7, 40, 23, 1, 0, 16, 100):  # 16: as many as the weight has channels
        x = torch.randn(tokens, 16, requires_grad=True)
        result, expected = compiled.rms_norm(x, weight, 1e-6), RMSNormFunction.apply(x, weight, 1e-6)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (result, expected)))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    norm = nn.GroupNorm(2, 4)
    for rows, columns in ((5, 6), (8, 9), (12, 3)):
        x = torch.randn(1, 4, rows, columns)
        torch.testing.assert_close(compiled.group_norm_silu(x, norm), F.silu(norm(x)))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_kept_attention_is_not_computed_again() -> None:
    calls = []
    x = torch.randn(1, 2, 5, 8, requires_grad=True)

    def layer(x: Tensor) -> Tensor:
        y = x.sin()
        return F.scaled_dot_product_attention(y, y, y).cos()

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(func)
            return func(*args, **(kwargs or {}))

    gradients = []
    for context in ({}, {"context_fn": lambda: create_selective_checkpoint_contexts(_keep_attention)}):
        calls.clear()
        with Counting():
            result = checkpoint(layer, x, use_reentrant=False, **context)
            gradients.append(torch.autograd.grad(result.square().sum(), x)[0])
        kernels = [call for call in calls if call in ATTENTION_KERNELS]
        assert len(kernels) == (1 if context else 2)
    assert torch.equal(*gradients)
