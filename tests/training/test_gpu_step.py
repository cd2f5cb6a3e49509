"""benchmarks/gpu_step.py where there is no GPU: its way at toy sizes, and the one line without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from running import ROOT


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "benchmarks/gpu_step.py", *args]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_toy_sizes() -> None:
    done = bench("--device", "cpu", "--tiny", "--repeats", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["layers"], found["tokens"]) == (4, 1500)
    assert found["rate"] > 1e8
    off, on = found["bridge"]["off"], found["bridge"]["on"]
    assert (off["blocked"], on["blocked"]) == (0, pytest.approx(0.5, abs=0.05))
    assert on["flops"] < off["flops"]
    for case in (off, on):
        assert case["seconds"] == pytest.approx(sum(case["phases"].values()))
        assert 0 < case["loss"] < 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what to do without CUDA")
def test_without_cuda() -> None:
    for args, expected in (((), "no CUDA device here"), (("--device", "cpu"), "needs --tiny")):
        done = bench(*args)
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1
        assert expected in done.stderr


@pytest.mark.slow
def test_as_many_layers_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the real sizes, found on the meta device: more memory, more layers, and those fit."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_step

    options = Namespace(tiny=False, tokens=8192, attention="flex", compute="bfloat16")
    small, large = (gpu_step.most_layers(options, memory * 2**30) for memory in (60, 78))
    assert 3 <= small < large <= 28
    config, _ = gpu_step.sizes(False, small)
    assert config.decoder.hidden_size == 3584
    with pytest.raises(SystemExit, match="too little for 3 layers"):
        gpu_step.most_layers(options, 8 * 2**30)
