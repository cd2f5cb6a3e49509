"""Adjacent samples of equal layout, which attention computes as one batch.

Shapes: G samples of equal layout, S tokens of such a sample, C of them before its first target.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from torch import Tensor

from scone_pl.model.sequence import PackedSequence, Split, SplitKind


@dataclass(frozen=True)
class SampleBatch:
    """Adjacent samples whose splits have the same kinds and lengths."""

    start: int
    """Index of its first token."""
    num_samples: int
    """G."""
    layout: tuple[Split, ...]
    """The splits of the first sample."""

    @cached_property
    def length(self) -> int:
        """S."""
        return self.layout[-1].stop - self.layout[0].start

    @cached_property
    def context(self) -> tuple[Split, ...]:
        """Splits before the first target."""
        return tuple(s for s in self.layout if s.kind != SplitKind.TARGET)

    @cached_property
    def targets(self) -> tuple[Split, ...]:
        return tuple(s for s in self.layout if s.kind == SplitKind.TARGET)

    @cached_property
    def context_length(self) -> int:
        """C."""
        return sum(s.length for s in self.context)

    @property
    def num_tokens(self) -> int:
        """G * S."""
        return self.num_samples * self.length

    def of_context(self, values: Tensor) -> Tensor:
        """(L,) -> (G, C), a view."""
        rows = values[self.start : self.start + self.num_tokens]
        return rows.view(self.num_samples, -1)[:, : self.context_length]


def batches_of(pack: PackedSequence) -> tuple[SampleBatch, ...]:
    """Groups adjacent samples of equal layout; together the batches hold all tokens, in order."""
    batches = []
    for _, group in groupby(pack.by_sample, key=lambda splits: tuple((s.kind, s.length) for s in splits)):
        samples = list(group)
        batches.append(SampleBatch(samples[0][0].start, len(samples), samples[0]))
    return tuple(batches)
