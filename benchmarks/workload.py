"""What the benchmarks share: samples in the proportions of real training, memory of a process, the machine's speed."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.sequence import PackedSequence, SequenceFormat, SpecialTokens

SEQUENCE_FORMAT = SequenceFormat(
    special=SpecialTokens(0, 1, 2, 3),
    latent_stride=16,
    latent_positions_per_side=128,
    vit_patch_size=14,
    vit_positions_per_side=128,
)
VIT_SHARE = (518 / 14) ** 2 / (1024 / 16) ** 2
"""ViT tokens over VAE tokens of a reference at the largest training sizes: 37 x 37 against 64 x 64."""
INSTRUCTION = 62
"""Words of an instruction (+ 2 frame tokens)."""


def training_pack(tokens: int, *, pixels: bool = False, seed: int = 0, samples: int = 1) -> PackedSequence:
    """Samples of about `tokens` tokens in all: two references, an instruction, a target of the references' size.

    Args:
        tokens: wanted length; grids round it.
        pixels: with random images; else empty ones, for attention alone.
        seed: of images and noise level.
        samples: number of samples; their instructions differ in length.
    """
    random = torch.Generator().manual_seed(seed)
    frames = 5 * 2
    builder = SequenceBuilder(SEQUENCE_FORMAT)
    for sample in range(samples):
        words = INSTRUCTION + 3 * sample
        per_image = (tokens / samples - frames - words - 2) / (3 + 2 * VIT_SHARE)
        builder.begin_sample()
        vae, vit = (
            _image(count, stride, random, pixels)
            for count, stride in (
                (per_image, SEQUENCE_FORMAT.latent_stride),
                (per_image * VIT_SHARE, SEQUENCE_FORMAT.vit_patch_size),
            )
        )
        for number in range(2):
            builder.add_vae(vae, reference=number)
            builder.add_vit(vit, reference=number)
        builder.add_text([4 + i % 250 for i in range(words)])
        builder.add_targets(vae.flip(-1), [0.3])
    return builder.build()


def _image(tokens: float, stride: int, random: torch.Generator, pixels: bool) -> torch.Tensor:
    rows = round(tokens**0.5)
    size = (3, rows * stride, round(tokens / rows) * stride)
    return torch.rand(size, generator=random) * 2 - 1 if pixels else torch.zeros(1).expand(size)


def memory(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (peak) of this process in bytes.

    The peak is not `ru_maxrss`, which a child inherits from the process that started it.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def available_memory() -> int:
    """Bytes that the machine could give."""
    file = Path("/proc/meminfo")
    if not file.exists():
        return 8 * 2**30
    line = next(line for line in file.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def in_own_process(arguments: list[str]) -> dict[str, Any]:
    """Runs a benchmark's one case, which prints a JSON object, so that its peak memory is its own."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {"error": "killed, out of memory?" if done.returncode == -9 else last}
    return json.loads(done.stdout.splitlines()[-1])


@torch.no_grad()
def matmul_rate(size: int = 2048, repeats: int = 8) -> float:
    """FLOPs a CPU second of a float32 matrix product on this machine, the best of `repeats`."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        torch.mm(a, b)
        best = min(best, time.process_time() - start)
    return 2 * size**3 / best
