"""Means over packs and ranks, kept by torchmetrics."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection, SumMetric
from torchmetrics.classification import BinaryAUROC, BinaryPrecision, BinaryRecall

from scone_pl.model.bridge import Bridge, BridgeState
from scone_pl.model.config import BridgeConfig
from scone_pl.model.sequence import PackedSequence

_UNKNOWN = -1
"""Label of a token that the data does not label."""
_THRESHOLDS = 201
"""Points of the ROC curve: similarities, from -1 to 1, are distinguished to 0.01."""


def summed_over_ranks(state: Tensor, group: Any = None) -> list[Tensor]:
    """A metric's `dist_sync_fn`, for states that are summed.

    torchmetrics' own gathers the state of every rank behind a barrier, for which the host waits; this is one reduction.
    """
    total = state.detach().clone()
    dist.all_reduce(total, group=group)
    return [total]


def blocked_fraction(state: BridgeState, pack: PackedSequence) -> tuple[Tensor, Tensor]:
    """Fraction of the reference tokens that the bridge blocks, 0 where there are none, and their number."""
    references = pack.reference_tokens
    # Counts, not an index by `references`: that would make the host wait for the device.
    count = references.sum()
    return ((state.blocked & references).sum() / count).nan_to_num(), count


class Means(Metric):
    """Named weighted means over packs and ranks, in one state, so in one reduction."""

    full_state_update = False
    sums: Tensor

    def __init__(self, *names: str) -> None:
        """`names` must be the same, in the same order, on all ranks."""
        super().__init__(dist_sync_fn=summed_over_ranks)
        self._columns = {name: i for i, name in enumerate(names)}
        self.add_state("sums", torch.zeros(2, len(names)), dist_reduce_fx="sum")

    def update(self, values: Mapping[str, Tensor], weight: Tensor | float = 1.0) -> None:
        """Adds means over items with a total weight of `weight`, such as a number of tokens."""
        for name, value in values.items():
            column = self.sums[:, self._columns[name]]
            column[0] += value.detach() * weight
            column[1] += weight

    def compute(self) -> dict[str, Tensor]:
        """The means by name; 0 where the total weight is 0."""
        total, weight = self.sums
        means = torch.where(weight > 0, total / weight, 0.0)
        return {name: means[i] for name, i in self._columns.items()}


class BridgeQuality(nn.Module):
    """How well the bridge distinguishes tokens of target subjects from others, where the data labels them.

    A ViT token counts as kept if its similarity reaches the threshold.
    """

    def __init__(self) -> None:
        super().__init__()
        settings: dict[str, Any] = {"dist_sync_fn": summed_over_ranks, "validate_args": False, "ignore_index": _UNKNOWN}
        self.known = SumMetric(nan_strategy="disable", dist_sync_fn=summed_over_ranks)
        self.kept = MetricCollection({"precision": BinaryPrecision(**settings), "recall": BinaryRecall(**settings)})
        self.auroc = BinaryAUROC(thresholds=_THRESHOLDS, **settings)

    def update(self, state: BridgeState, config: BridgeConfig, pack: PackedSequence) -> None:
        """Adds what the bridge of `config` computed in a pack."""
        if pack.vit_labels is None or not len(pack.vit_index):
            return
        target = pack.vit_labels.nan_to_num(nan=_UNKNOWN).long()
        similarity = state.similarity.detach()
        threshold = Bridge(config, pack).threshold(similarity)
        self.known.update((target != _UNKNOWN).sum())
        self.kept.update((similarity >= threshold)[pack.vit_index], target)
        self.auroc.update((similarity[pack.vit_index] / 2 + 0.5).clamp(0, 1), target)

    def compute(self) -> dict[str, Tensor]:
        """Precision, recall and AUROC over packs and ranks, by name; empty if no token is labelled."""
        with warnings.catch_warnings():  # a rank may have had no labelled pack
            warnings.filterwarnings("ignore", message=r".*called before the ``update`` method")
            if not self.known.compute():
                return {}
            return {**self.kept.compute(), "auroc": self.auroc.compute()}

    def reset(self) -> None:
        """Forgets all that was added."""
        for metric in (self.known, self.kept, self.auroc):
            metric.reset()
