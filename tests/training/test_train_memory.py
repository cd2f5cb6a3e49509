"""Memory of a training step on the CPU: no L x L tensor, and no heap full of holes."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from running import ROOT, run_python
from torch.utils.checkpoint import checkpoint

from scone_pl.training.heap import _glibc, trim_heap, trim_heap_before


@pytest.mark.parametrize("bridge", [pytest.param("hard", marks=pytest.mark.slow), "soft"])
@pytest.mark.slow
def test_a_step_takes_memory_linear_in_its_tokens(bridge: str) -> None:
    """The whole step of the benchmark, half of the reference tokens blocked, activation checkpointing on.

    One float32 L x L tensor is the bound; with dense masks it grows by twice that.
    """
    tokens = 8192
    sizes = ["--width=64", "--heads=2", "--kv-heads=1", "--layers=3", "--repeats=1", "--threads=1"]
    mode = f"--bridge={bridge}", "--implementation=ours"
    done = run_python("benchmarks/train_step.py", "--json", *mode, f"--tokens={tokens}", *sizes, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["tokens"] == pytest.approx(tokens, rel=0.01)
    assert result["blocked"] == pytest.approx(0.5, abs=0.02)
    assert result["growth"] < tokens**2 * 4


HOLES = """
    import sys
    sys.path.insert(0, "benchmarks")
    import torch
    from workload import memory
    from scone_pl.training.heap import trim_heap

    torch.ones(5_000_000)  # freed, so that glibc takes blocks up to this size from the heap from now on
    blocks = [torch.ones(100_000) for _ in range(600)]
    blocks = blocks[::50] + blocks[-1:]  # the remaining blocks pin the heap
    before = memory("VmRSS")
    small = trim_heap(10**9)
    after_small = memory("VmRSS")
    large = trim_heap(10**8)
    print(small, large, trim_heap(10**8), (before - after_small) / 1e6, (before - memory("VmRSS")) / 1e6)
    assert all(bool((block == 1).all()) for block in blocks)
"""


@pytest.mark.skipif(_glibc() is None, reason="not glibc")
@pytest.mark.slow
def test_freed_memory_is_given_back_over_the_limit() -> None:
    command = [sys.executable, "-c", textwrap.dedent(HOLES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    small, large, again, freed_small, freed_large = done.stdout.split()
    assert (small, large, again) == ("False", "True", "False")
    assert float(freed_small) < 5
    assert float(freed_large) > 150, "600 blocks of 0.4 MB, 13 of them still used"


def test_without_glibc_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scone_pl.training.heap._glibc", lambda: None)
    assert trim_heap(0) is False


def test_layers_are_preceded_by_a_trim_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr("scone_pl.training.heap.trim_heap", lambda: trims.append(len(trims)))
    layers = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
    trim_heap_before(layers)
    x = torch.ones(1, 2, requires_grad=True)
    with torch.no_grad():
        layers[0](x)
    assert not trims
    checkpoint(layers[0], layers[1](x), use_reentrant=False).sum().backward()
    assert len(trims) == 3, "two layers, one of them recomputed"
