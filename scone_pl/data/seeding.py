"""Stateless random numbers: every generator is seeded by a hash of its purpose, such as (seed, epoch, sample key).

Workers, ranks, shards and interruptions therefore cannot change a draw, and no random state needs to be saved.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np


def seed_of(*parts: int | str) -> int:
    """A 63-bit hash of all `parts`, the same on every machine and in every process."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """A generator seeded by `parts`, see `seed_of`."""
    return np.random.Generator(np.random.PCG64(seed_of(*parts)))
