"""Environment variables by which a launcher tells a process its rank, checked before Lightning and torch read them."""

from __future__ import annotations

import os
from typing import Any

from scone_pl.errors import UserError

_LIMITS = {
    **dict.fromkeys(("LOCAL_RANK", "RANK", "GROUP_RANK", "NODE_RANK"), (0, 10**6)),
    **dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), (0, 10**6)),
    **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS"), (1, 10**6)),
    "MASTER_PORT": (0, 65535),
}
"""Variable -> smallest and largest value."""


def check_environment(devices: Any) -> None:
    """Checks the variables that are set.

    Args:
        devices: `trainer.devices`.

    Raises:
        UserError: one is not a whole number in its range, or the local rank has no device.
    """
    for name, (minimum, maximum) in _LIMITS.items():
        value = os.environ.get(name)
        if value is None:
            continue
        if not (value.isascii() and value.isdecimal() and len(value) < 10 and minimum <= int(value) <= maximum):
            raise UserError(
                f"environment variable {name} is {value!r:.80}; it must be a whole number from {minimum} to {maximum}, "
                "which the launcher sets: unset it to start without one"
            )
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else None
    local = os.environ.get("LOCAL_RANK")
    if local is not None and count is not None and int(local) >= count:
        raise UserError(
            f"environment variable LOCAL_RANK is {local}, but trainer.devices gives {count} processes, numbered from "
            "0; unset it, or raise trainer.devices"
        )
