"""Paths and synthetic samples shared by the tests of the data room."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from scone_pl.data.sample import Candidate, Sample

ROOT = Path(__file__).parents[2]
TINY = ROOT / "data_shards" / "tiny"
GOLDEN = ROOT / "tests" / "golden" / "parity"


def encode(width, height, seed=0, format="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def make_sample(number, references=None):
    """Sizes and instruction lengths vary with `number`."""
    references = number % 3 if references is None else references
    half = (Candidate(box=(0.0, 0.0, 0.5, 1.0), meant=True), Candidate(box=(0.5, 0.0, 1.0, 1.0), meant=False))
    return Sample(
        key=f"s{number:04d}",
        references=tuple(encode(16 + 8 * (number % 4), 16 + 8 * i, number) for i in range(references)),
        instruction="x" * (1 + number % 7),
        target=encode(16 + 8 * (number % 3), 24, number + 1000),
        kind="multi" if number % 2 else "single",
        candidates=tuple(half for _ in range(references)) if number % 2 else None,
        metadata={"number": number},
    )
