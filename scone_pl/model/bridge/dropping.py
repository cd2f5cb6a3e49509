"""The tokens that remain of a pack when the bridge's blocked tokens leave the network (beyond the paper).

`BridgeConfig.drop_blocked`: after the source layer blocked tokens are computed by no layer, seen by no query and held
by no cache. Experts compute the remaining tokens alone. Attention batches adjacent samples of equal layout, which lose
different numbers of tokens; so that they stay a batch, each split of such samples is padded to the longest of them
with *filler*, which no query sees. Only attention handles filler: it costs neither projections nor MLPs.

Shapes: L tokens, S splits, U understanding and N latent tokens; L', U', N' those that remain, filler counted in L'.
"""

from __future__ import annotations

import dataclasses
from itertools import accumulate

import torch
from torch import Tensor

from scone_pl.model.attention.batches import batches_of
from scone_pl.model.experts import ByExpert, Routing
from scone_pl.model.sequence import PackedSequence


class Remaining:
    """The remaining tokens, for the layers after the source layer."""

    def __init__(self, pack: PackedSequence, blocked: Tensor) -> None:
        """`blocked` (L,) bool: what leaves `pack`; reference tokens only."""
        lengths = kept_lengths(pack, blocked)
        padded = _padded_lengths(pack, lengths)
        self.pack = shortened(pack, padded)
        """L' tokens; filler is at the end of its split. For attention."""
        self._sizes = len(pack.understanding_index), len(pack.latent_index)
        kept = (~blocked).nonzero().flatten()
        # Blocked tokens of earlier splits move a token up, their filler moves it back down.
        moves = [a - b for a, b in zip(accumulate(padded, initial=0), accumulate(lengths, initial=0), strict=True)]
        index = torch.arange(len(kept), device=pack.device) + pack.per_split(moves[:-1])[kept]
        rows = pack.merge_index[kept]
        is_understanding = rows < self._sizes[0]
        self._rows = ByExpert(rows[is_understanding], rows[~is_understanding] - self._sizes[0])
        self._kept, self._index = kept, index
        self.routing = Routing.between(index[is_understanding], index[~is_understanding], len(self.pack))
        self.present: Tensor | None = None
        """(L',) bool, false for filler; None if there is none."""
        if len(kept) < len(self.pack):
            self.present = torch.zeros(len(self.pack), dtype=torch.bool, device=pack.device)
            self.present[index] = True

    def take(self, x: ByExpert) -> ByExpert:
        """(U, D), (N, D) -> (U', D), (N', D)."""
        return ByExpert(*(states.index_select(0, rows) for states, rows in zip(x, self._rows, strict=True)))

    def spread(self, values: Tensor) -> Tensor:
        """(L, ...), one for each token -> (L', ...), 0 for filler."""
        return values.new_zeros(len(self.pack), *values.shape[1:]).index_copy(0, self._index, values[self._kept])

    def restore(self, x: ByExpert) -> ByExpert:
        """(U', D), (N', D) -> (U, D), (N, D), zero for dropped tokens."""
        parts = zip(x, self._rows, self._sizes, strict=True)
        return ByExpert(
            *(states.new_zeros(size, states.shape[1]).index_copy(0, rows, states) for states, rows, size in parts)
        )


def kept_lengths(pack: PackedSequence, blocked: Tensor) -> list[int]:
    """Number of tokens that each split keeps; synchronises with the device."""
    split = pack.per_split(list(range(len(pack.splits))))
    return torch.bincount(split[~blocked], minlength=len(pack.splits)).tolist()


def shortened(pack: PackedSequence, lengths: list[int]) -> PackedSequence:
    """The structure of `pack` with splits of other lengths.

    Its tensors stay those of the whole pack: after the embedding they are not read.
    """
    starts = accumulate(lengths, initial=0)
    return dataclasses.replace(
        pack,
        splits=tuple(
            dataclasses.replace(split, start=start, length=length)
            for split, start, length in zip(pack.splits, starts, lengths, strict=False)
        ),
    )


def _padded_lengths(pack: PackedSequence, lengths: list[int]) -> list[int]:
    """`lengths` of all splits, in each batch those of corresponding splits raised to their largest."""
    padded: list[int] = []
    for batch in batches_of(pack):
        width = len(batch.layout)
        own = lengths[len(padded) : len(padded) + batch.num_samples * width]
        padded += [max(own[column::width]) for column in range(width)] * batch.num_samples
    return padded
