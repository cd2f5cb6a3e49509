"""Where the GPU's time goes in one call: the kernels that take longest, and how much of the time none runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_check.settings import median_seconds

LONGEST = 25
"""Kernels that are listed by name; the others are summed."""
NAME_LENGTH = 100


def kernel_times(call: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Seconds of each kernel of one call, longest first, and seconds of the call without the profiler.

    Names are cut to `NAME_LENGTH` characters; kernels whose names agree so far are added up.
    """
    seconds = median_seconds(call, device, repeats=1, warm_up=1)
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        call()
        torch.cuda.synchronize(device)
    times: dict[str, list[float]] = {}
    for event in recorded.key_averages():
        if event.self_device_time_total > 0:
            total = times.setdefault(event.key[:NAME_LENGTH], [0.0, 0.0])
            total[0] += event.self_device_time_total / 1e6
            total[1] += event.count
    ordered = sorted(times.items(), key=lambda item: -item[1][0])
    busy = sum(spent for spent, _ in times.values())
    return {
        "seconds": seconds,
        "kernel_seconds": busy,
        "kernels": [
            {"name": name, "seconds": spent, "calls": int(calls)} for name, (spent, calls) in ordered[:LONGEST]
        ],
        "other_kernel_seconds": sum(spent for _, (spent, _) in ordered[LONGEST:]),
    }
