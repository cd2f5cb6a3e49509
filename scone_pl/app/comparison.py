"""The same prompt and noise with and without the bridge."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from scone_pl.app.reading import Reading
from scone_pl.errors import UserError
from scone_pl.model.config import BridgeConfig
from scone_pl.sampling.pipeline import SconePipeline
from scone_pl.sampling.settings import SamplingConfig


@dataclass(frozen=True)
class Generated:
    """One image of the comparison."""

    seed: int
    bridge: bool
    image: Image.Image
    seconds: float
    """From prompt to pixels."""
    tokens_read: float
    """See `Reading.tokens_read`."""


def compare(
    pipeline: SconePipeline, reading: Reading, settings: SamplingConfig, bridge: BridgeConfig, seeds: Sequence[int]
) -> Iterator[Generated]:
    """Per seed an image without the bridge, then one with it.

    Args:
        pipeline: which made `reading`.
        reading: of the prompt.
        settings: how to sample; its seed and bridge are those of the other arguments.
        bridge: the bridge of every second image.
        seeds: of the initial noise.

    Raises:
        UserError: a setting that this model does not allow, or not enough memory.
    """
    for seed in seeds:
        for chosen in (None, bridge):
            tokens = reading.tokens_read(chosen)
            start = time.perf_counter()
            try:
                output = pipeline.generate([reading.prompt], dataclasses.replace(settings, seed=seed, bridge=chosen))
            except torch.OutOfMemoryError:
                raise UserError(f"out of memory on {pipeline.device}; use fewer or smaller references") from None
            yield Generated(seed, chosen is not None, output.images[0], time.perf_counter() - start, tokens)
