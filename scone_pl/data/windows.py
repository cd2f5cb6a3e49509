"""Token counts over the packs of an optimizer step, for gradient accumulation.

The loss is a mean over the target tokens of all packs in a step (docs/specification.md 4). Each pack's weight must be
known before the first backward pass, so all `accumulate_grad_batches` packs of a step are fetched into host memory
first.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

from scone_pl.data.stream import Batch


class WindowedLoader:
    """Adds to each batch the token counts of its optimizer step."""

    def __init__(self, batches: Iterable[Batch], size: int) -> None:
        """`size`: packs per rank in an optimizer step."""
        self.batches = batches
        self.size = size

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.batches)
        while window := list(itertools.islice(batches, self.size)):
            targets = sum(batch.sequence.target_weight for batch in window)
            labels = sum(len(batch.sequence.label_index) for batch in window)
            for batch in window:
                yield dataclasses.replace(batch, step_targets=targets, step_labels=labels)
