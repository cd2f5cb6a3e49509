"""Attention over a packed sequence: one definition, several backends.

Who attends to whom follows from the splits of a `PackedSequence` (see there). The bridge may also hide blocked keys
from target queries, or weaken them. `AttentionPlan` is that definition for one pack; a backend computes it:

- `SplitPlan`: scaled-dot-product attention split by split. Slices replace masks, blocked keys are left out of the
  product, so a blocked token makes the step cheaper; a soft bridge's bias is one more channel of q and k, not a mask.
  Memory grows with L. Runs on every device, backward included.
- `VarlenPlan`: FlashAttention over sequences of variable length, for CUDA in half precision: the fastest there.
- `FlexPlan`: one FlexAttention kernel, for CUDA.
- `DensePlan`: an L x L mask. The reference that the others are tested against; not for training.
"""

from scone_pl.model.attention.dense import DensePlan, dense_mask
from scone_pl.model.attention.flex import FlexPlan
from scone_pl.model.attention.pairs import attended_pairs
from scone_pl.model.attention.plan import AttentionPlan
from scone_pl.model.attention.sdpa import attend
from scone_pl.model.attention.split import SplitPlan
from scone_pl.model.attention.varlen import VarlenPlan

ATTENTION_BACKENDS: dict[str, type[AttentionPlan]] = {
    "split": SplitPlan,
    "varlen": VarlenPlan,
    "flex": FlexPlan,
    "dense": DensePlan,
}
"""By name; each is built from a `PackedSequence`."""

__all__ = [
    "ATTENTION_BACKENDS",
    "AttentionPlan",
    "DensePlan",
    "FlexPlan",
    "SplitPlan",
    "VarlenPlan",
    "attend",
    "attended_pairs",
    "dense_mask",
]
