"""Gradient accumulation: how many tokens the packs of one optimizer step have together.

The loss is a mean over the target tokens of all packs of a step (spec. 4). Each pack's share of it must be known
before the first backward pass, so the packs of a step are fetched together: `accumulate_grad_batches` of them wait in
host memory.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

from scone_pl.data.stream import Batch


class WindowedLoader:
    """Puts into each batch the counts of the batches that it makes a step with."""

    def __init__(self, batches: Iterable[Batch], size: int) -> None:
        """`size`: packs of a rank in an optimizer step."""
        self.batches = batches
        self.size = size

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.batches)
        while window := list(itertools.islice(batches, self.size)):
            targets = sum(len(batch.sequence.target_index) for batch in window)
            labels = sum(len(batch.sequence.label_index) for batch in window)
            for batch in window:
                yield dataclasses.replace(batch, step_targets=targets, step_labels=labels)
