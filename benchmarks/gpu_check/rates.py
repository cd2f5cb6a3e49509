"""Versions, the GPU's name, and the two ceilings: matrix-product and copy rates, measured on random data."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.settings import Settings, product_rate, seconds_of

PACKAGES = ("torch", "triton", "lightning", "transformers", "safetensors", "numpy")


def run(settings: Settings, report: Report) -> None:
    """See the module."""
    device = settings.device
    report.record(versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}})
    report.record(device=platform.machine() + " CPU")
    if settings.cuda:
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        report.record(
            device=properties.name,
            multiprocessors=properties.multi_processor_count,
            capability=f"{properties.major}.{properties.minor}",
            memory_gib=total / 2**30,
            free_gib=free / 2**30,
            cuda=torch.version.cuda,
            nccl=".".join(map(str, torch.cuda.nccl.version())),
        )
    size = 8192 if settings.cuda else 256
    rates = {"bfloat16": product_rate(device, torch.bfloat16, size)}
    for name, allowed in (("float32", False), ("tf32", True)):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        rates[name] = product_rate(device, torch.float32, size)
    torch.backends.cuda.matmul.allow_tf32 = False
    report.record(flops_per_second=rates, copy_bytes_per_second=copy_rate(settings))
    for name, rate in rates.items():
        report.require(rate > 0, f"the rate of {name} products is {rate}")
    if settings.cuda:
        faster = rates["bfloat16"] / rates["float32"]
        report.require(faster > 2, f"bfloat16 products are only {faster:.2f} times as fast as float32 ones")
    else:
        report.skip("needs CUDA: rates of the CPU only")


def copy_rate(settings: Settings) -> float:
    """Bytes a second of a copy on the device, read and written bytes counted."""
    source = torch.randn(2**29 if settings.cuda else 2**20, device=settings.device)  # 2 GiB on CUDA: no cache holds it
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds_of(lambda: target.copy_(source), settings.device))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
