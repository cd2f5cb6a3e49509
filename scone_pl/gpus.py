"""Peak performance, memory and approximate prices of GPUs, for the estimator and for MFU in training."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scone_pl.errors import UserError
from scone_pl.files import read_yaml
from scone_pl.ranges import check_number

SOURCE = (
    "list values: peaks and memory as in the makers' data sheets (dense bf16 with float32 accumulation); prices are "
    "rounded on-demand offers of clouds as of 2025, not looked up again: give your own with --gpu_file"
)
"""Source of the numbers below."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    tflops: float
    """Peak of dense bf16 matrix products, 10^12 FLOP/s."""
    memory_gib: float
    """Memory available to a process, GiB."""
    price: float
    """USD per hour."""


GPUS = {
    "h100": Gpu("H100 80GB SXM", 989, 79.1, 3.00),
    "h200": Gpu("H200 141GB", 989, 139.8, 3.80),
    "b200": Gpu("B200 180GB", 2250, 178.0, 5.00),
    "a100-80": Gpu("A100 80GB", 312, 79.2, 1.80),
    "a100-40": Gpu("A100 40GB", 312, 39.4, 1.30),
    "l40s": Gpu("L40S 48GB", 362, 44.4, 0.90),
    "rtx4090": Gpu("RTX 4090 24GB", 165, 23.5, 0.40),
    "rtx5090": Gpu("RTX 5090 32GB", 209, 31.4, 0.70),
}
"""Name in options -> GPU; see `SOURCE`."""

_DEVICE_NAMES = {
    "H100": "h100",
    "H200": "h200",
    "B200": "b200",
    "A100-SXM4-80GB": "a100-80",
    "A100 80GB": "a100-80",
    "A100": "a100-40",
    "L40S": "l40s",
    "4090": "rtx4090",
    "5090": "rtx5090",
}
"""Substrings of CUDA's device names -> keys of `GPUS`; the first match applies."""


def peak_of(device_name: str) -> float | None:
    """Peak in FLOP/s of a GPU by CUDA's device name; None if it is not in the table."""
    if "H100" in device_name and ("PCIe" in device_name or "NVL" in device_name):
        return None  # slower than the SXM one
    key = next((key for part, key in _DEVICE_NAMES.items() if part in device_name), None)
    return None if key is None else GPUS[key].tflops * 1e12


def read_gpus(file: str | os.PathLike[str] | None) -> dict[str, Gpu]:
    """The table, updated from a YAML file: `{h100: {price: 2.5}, mine: {name, tflops, ...}}`.

    Raises:
        UserError: the file cannot be read, has an unknown field, or lacks a field of a new GPU.
    """
    if file is None:
        return GPUS
    try:
        content = read_yaml(Path(file), dict)
    except UserError as error:
        raise UserError(f"--gpu_file {error}") from error
    table = dict(GPUS)
    for key, fields in content.items():
        table[str(key)] = _updated(table.get(str(key)), str(key), fields, file)
    return table


def choose_gpus(names: list[str], table: dict[str, Gpu]) -> dict[str, Gpu]:
    """The rows of `table` called `names`.

    Raises:
        UserError: there is no such row.
    """
    for name in names:
        if name not in table:
            raise UserError(f"--gpu {name}: one of {', '.join(table)}, or describe it in a --gpu_file")
    return {name: table[name] for name in names}


def _updated(gpu: Gpu | None, key: str, fields: Any, file: str | os.PathLike[str]) -> Gpu:
    try:
        values: dict[str, Any] = dict(fields)
        title = str(values.pop("name", key if gpu is None else gpu.name))
        values = {name: float(value) for name, value in values.items()}
        for name, value in values.items():
            check_number(f"--gpu_file {file}: {name} of {key}", value, minimum=0, maximum=1e9)
        return Gpu(name=title, **values) if gpu is None else dataclasses.replace(gpu, name=title, **values)
    except UserError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"--gpu_file {file}: {key} needs tflops, memory_gib and price as numbers ({error})") from error
