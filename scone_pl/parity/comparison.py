"""Lines of a parity report, and the tensors that it is made from."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scone_pl.checkpoints.safetensors_header import read_header
from scone_pl.errors import UserError

TOLERANCE = 1e-4
"""Relative to a tensor's largest magnitude; the accuracy of float32 (golden README)."""


@dataclass(frozen=True)
class Comparison:
    """One line of the report."""

    name: str
    error: float
    """Relative for floats, number of differing entries for integers and masks, levels (of 255) for images."""
    tolerance: float

    @property
    def agrees(self) -> bool:
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok" if self.agrees else "DIFFERS"
        return f"{self.name:<40} error {self.error:9.2e}  tolerance {self.tolerance:7.0e}  {verdict}"


def exact(name: str, ours: Tensor | list[Any], theirs: Tensor | list[Any]) -> Comparison:
    """Number of differing entries of integers, masks or shapes."""
    a, b = (torch.as_tensor(x).cpu() for x in (ours, theirs))
    if a.shape != b.shape:
        return Comparison(name, float("inf"), 0)
    return Comparison(name, float((a != b).sum()), 0)


def close(name: str, ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> Comparison:
    """Largest difference over the largest expected magnitude; entries that are infinite on both sides agree."""
    a, b = ours.detach().cpu().double(), theirs.cpu().double()
    if a.shape != b.shape:
        return Comparison(name, float("inf"), tolerance)
    equal_infinities = torch.isinf(b) & (a == b)
    a, b = a.masked_fill(equal_infinities, 0), b.masked_fill(equal_infinities, 0)
    scale = b.abs().max().clamp(min=1e-12) if b.numel() else 1.0
    error = float((a - b).abs().max() / scale) if b.numel() else 0.0
    return Comparison(name, error if error == error else float("inf"), tolerance)


class TrackedTensors(dict[str, Tensor]):
    """Named tensors that record which were read, so that none is left uncompared."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__(tensors)
        self.read: set[str] = set()

    @classmethod
    def of(cls, file: Path) -> TrackedTensors:
        """Those of a safetensors file.

        Raises:
            UserError: it cannot be read.
        """
        read_header(file)
        try:
            return cls(load_file(file))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: cannot be read ({error})") from error

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise UserError(f"expected.safetensors: no tensor {name}; is the parity folder complete?")
        self.read.add(name)
        return super().__getitem__(name)


def png(image: Tensor) -> bytes:
    """(H, W, 3) uint8 as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
