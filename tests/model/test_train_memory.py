"""Memory of a training step on the CPU: no L x L tensor, and no heap full of holes."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from scone_pl.model.heap import _glibc, trim_heap

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("bridge", [pytest.param("hard", marks=pytest.mark.slow), "soft"])
def test_a_step_takes_memory_linear_in_its_tokens(bridge: str) -> None:
    """The whole step of the benchmark, half of the reference tokens blocked, activation checkpointing on.

    One float32 L x L tensor is the bound; with dense masks it grows by twice that.
    """
    tokens = 8192
    sizes = ["--width=64", "--heads=2", "--kv-heads=1", "--layers=4", "--repeats=1", "--threads=1"]
    mode = f"--bridge={bridge}"
    command = [sys.executable, "benchmarks/train_step.py", "--json", mode, f"--tokens={tokens}", *sizes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["tokens"] == pytest.approx(tokens, rel=0.01)
    assert found["blocked"] == pytest.approx(0.5, abs=0.02)
    assert found["growth"] < tokens**2 * 4


HOLES = """
    import sys
    sys.path.insert(0, "benchmarks")
    import torch
    from workload import memory
    from scone_pl.model.heap import trim_heap

    torch.ones(5_000_000)  # freed, so that glibc takes blocks up to this size from the heap from now on
    blocks = [torch.ones(100_000) for _ in range(600)]
    blocks = blocks[::50] + blocks[-1:]  # what is left pins the heap
    before = memory("VmRSS")
    small = trim_heap(10**9)
    after_small = memory("VmRSS")
    large = trim_heap(10**8)
    print(small, large, trim_heap(10**8), (before - after_small) / 1e6, (before - memory("VmRSS")) / 1e6)
    assert all(bool((block == 1).all()) for block in blocks)
"""


@pytest.mark.skipif(_glibc() is None, reason="not glibc")
def test_freed_memory_is_given_back_over_the_limit() -> None:
    command = [sys.executable, "-c", textwrap.dedent(HOLES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    small, large, again, freed_small, freed_large = done.stdout.split()
    assert (small, large, again) == ("False", "True", "False")
    assert float(freed_small) < 5
    assert float(freed_large) > 150, "600 blocks of 0.4 MB, 13 of them still used"


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scone_pl.model.heap._glibc", lambda: None)
    assert trim_heap(0) is False
