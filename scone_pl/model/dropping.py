"""What is left of a pack when the bridge's blocked tokens leave the network (beyond the paper).

`BridgeConfig.drop_blocked`: behind the source layer blocked tokens are computed by no layer, seen by no query and held
by no cache. Experts work on the tokens that are left and nothing else. Attention batches adjacent samples of equal
layout, which lose different numbers of tokens; so that they stay a batch, each split of such samples is filled up to
the longest of them with *filler*, which no query sees. Only attention meets filler: it costs neither projections nor
MLPs.

Shapes: L tokens, S splits, U understanding and N latent tokens; L', U', N' those that are left, filler counted in L'.
"""

from __future__ import annotations

import dataclasses
from itertools import accumulate

import torch
from torch import Tensor

from scone_pl.model.attention import runs_of
from scone_pl.model.experts import ByExpert, Routing
from scone_pl.model.sequence import PackedSequence


class Remaining:
    """The tokens that are left, for the layers behind the source layer."""

    def __init__(self, pack: PackedSequence, blocked: Tensor) -> None:
        """`blocked` (L,) bool: what leaves `pack`; reference tokens only."""
        lengths = kept_lengths(pack, blocked)
        filled = _filled_up(pack, lengths)
        self.pack = shortened(pack, filled)
        """L' tokens; in a filled-up split the filler comes last. Attention and positions may read it."""
        self._sizes = len(pack.understanding_index), len(pack.latent_index)
        kept = (~blocked).nonzero().flatten()
        # Behind the blocked tokens of earlier splits everything moves up, behind their filler back down.
        moves = [a - b for a, b in zip(accumulate(filled, initial=0), accumulate(lengths, initial=0), strict=True)]
        place = torch.arange(len(kept), device=pack.device) + pack.per_split(moves[:-1])[kept]
        rows = pack.merge_index[kept]
        is_understanding = rows < self._sizes[0]
        self._rows = ByExpert(rows[is_understanding], rows[~is_understanding] - self._sizes[0])
        self.routing = Routing.between(place[is_understanding], place[~is_understanding], len(self.pack))
        self.present: Tensor | None = None
        """(L',) bool, false for filler; None if there is none."""
        if len(kept) < len(self.pack):
            self.present = torch.zeros(len(self.pack), dtype=torch.bool, device=pack.device)
            self.present[place] = True

    def take(self, x: ByExpert) -> ByExpert:
        """(U, D), (N, D) -> (U', D), (N', D)."""
        return ByExpert(*(states.index_select(0, rows) for states, rows in zip(x, self._rows, strict=True)))

    def restore(self, x: ByExpert) -> ByExpert:
        """(U', D), (N', D) -> (U, D), (N, D), zero where tokens have left."""
        parts = zip(x, self._rows, self._sizes, strict=True)
        return ByExpert(
            *(states.new_zeros(size, states.shape[1]).index_copy(0, rows, states) for states, rows, size in parts)
        )


def kept_lengths(pack: PackedSequence, blocked: Tensor) -> list[int]:
    """How many tokens each split keeps; waits for the device."""
    split = pack.per_split(list(range(len(pack.splits))))
    return torch.bincount(split[~blocked], minlength=len(pack.splits)).tolist()


def shortened(pack: PackedSequence, lengths: list[int]) -> PackedSequence:
    """The structure of `pack` with splits of other lengths.

    Its tensors stay those of the whole pack: behind the embedding nobody reads them.
    """
    starts = accumulate(lengths, initial=0)
    return dataclasses.replace(
        pack,
        splits=tuple(
            dataclasses.replace(split, start=start, length=length)
            for split, start, length in zip(pack.splits, starts, lengths, strict=False)
        ),
    )


def _filled_up(pack: PackedSequence, lengths: list[int]) -> list[int]:
    """`lengths` of all splits, in each run those of corresponding splits raised to their largest."""
    filled: list[int] = []
    for run in runs_of(pack):
        width = len(run.layout)
        own = lengths[len(filled) : len(filled) + run.num_samples * width]
        filled += [max(own[column::width]) for column in range(width)] * run.num_samples
    return filled
