"""Returns freed host memory to the system while training on a CPU.

Small objects of a step's graph are allocated between its large tensors, so glibc's heap fragments into holes of one
tensor each; the aligned block that torch requests next needs a little more than such a hole, and the heap grows
instead. A step on 16k tokens took 3.7 GB that way, of which less than half was in use.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from torch import nn

IDLE_LIMIT = 3 * 2**28
"""Maximum freed bytes that stay in the heap; allocating them again after a trim costs page faults."""


class _MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library if it supports this (Linux, glibc >= 2.33)."""
    if not Path("/proc/self/statm").exists():
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2") or not hasattr(library, "malloc_trim"):
        return None
    library.mallinfo2.restype = _MallocInfo
    return library


def trim_heap(idle_limit: int = IDLE_LIMIT) -> bool:
    """Returns freed memory once more than `idle_limit` bytes of it are resident; True if it did."""
    library = _glibc()
    if library is None:
        return False
    with open("/proc/self/statm", "rb") as file:
        _, resident, shared, *_ = map(int, file.read().split())
    private = (resident - shared) * os.sysconf("SC_PAGESIZE")
    if private <= idle_limit:
        return False
    info = library.mallinfo2()
    if private - info.uordblks - info.hblkhd <= idle_limit:
        return False
    library.malloc_trim(0)
    return True


def trim_heap_before(layers: Iterable[nn.Module]) -> None:
    """Calls `trim_heap` before each of `layers` runs in training, also where a checkpointed layer is recomputed."""
    for layer in layers:
        layer.register_forward_pre_hook(_trim)


def _trim(module: nn.Module, inputs: object) -> None:
    if torch.is_grad_enabled():
        trim_heap()
