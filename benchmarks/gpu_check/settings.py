"""Where the check runs and how large, and how it measures time."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
"""Root of the repository."""


@dataclass(frozen=True)
class Settings:
    """The same for all steps."""

    device: torch.device
    quick: bool = False
    """Toy sizes."""

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of matrix products: bfloat16 on CUDA, as the recipes train, float32 on the CPU, where it is fast."""
        return torch.bfloat16 if self.cuda else torch.float32


def wait(device: torch.device) -> None:
    """Until the device has done everything that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device, repeats: int = 10, warm_up: int = 2) -> list[float]:
    """Seconds of each of `repeats` calls after `warm_up` others; by CUDA events, so launches overlap."""
    for _ in range(warm_up):
        call()
    if device.type != "cuda":
        points = [time.perf_counter()]
        for _ in range(repeats):
            call()
            points.append(time.perf_counter())
        return [stop - start for start, stop in itertools.pairwise(points)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    wait(device)
    return [start.elapsed_time(stop) / 1e3 for start, stop in itertools.pairwise(events)]


def median_seconds(call: Callable[[], object], device: torch.device, repeats: int = 10, warm_up: int = 2) -> float:
    """The median of `seconds_of`."""
    return statistics.median(seconds_of(call, device, repeats, warm_up))


@torch.no_grad()
def product_rate(device: torch.device, dtype: torch.dtype, size: int, repeats: int = 10) -> float:
    """FLOP/s of a square matrix product of random numbers, the best of `repeats`."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: torch.mm(a, b), device, repeats))
