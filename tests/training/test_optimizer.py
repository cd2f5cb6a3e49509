"""AdamW's fused kernel: the same steps as torch's plain one, and the same bits when a run resumes."""

from __future__ import annotations

import copy

import torch

from scone_pl.training.optimizer import OptimizerConfig

SHAPES = [(3,), (17, 5), (64, 64), (1,), (129, 7)]
CONFIG = OptimizerConfig(lr=1e-2, weight_decay=0.1)


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def train(values: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step + 1)
        for value in values:
            value.grad = torch.randn(value.shape, generator=generator)
        optimizer.step()


def test_resuming_changes_no_bit() -> None:
    straight = parameters()
    train(straight, CONFIG.build(straight), range(6))
    first = parameters()
    optimizer = CONFIG.build(first)
    train(first, optimizer, range(3))
    state, weights = copy.deepcopy(optimizer.state_dict()), [value.detach().clone() for value in first]
    # Other addresses, as in another process.
    second = [torch.nn.Parameter(torch.cat([torch.zeros(1), w.flatten()])[1:].view(w.shape)) for w in weights]
    resumed = CONFIG.build(second)
    resumed.load_state_dict(state)
    train(second, resumed, range(3, 6))
    assert all(a.equal(b) for a, b in zip(straight, second, strict=True))


def test_it_is_adamw() -> None:
    fused, plain = parameters(), parameters()
    train(fused, CONFIG.build(fused), range(5))
    optimizer = torch.optim.AdamW(
        plain, lr=CONFIG.lr, betas=CONFIG.betas, eps=CONFIG.eps, weight_decay=CONFIG.weight_decay, foreach=False
    )
    train(plain, optimizer, range(5))
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_settings_reach_adamw() -> None:
    config = OptimizerConfig(lr=0.3, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2)
    (group,) = config.build(parameters()[:1]).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.3, (0.8, 0.9), 1e-3, 0.2)
