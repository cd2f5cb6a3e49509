"""One rank of test_metrics.py: started with torchrun's environment variables, prints what every rank must know."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from scone_pl.model.bridge import BridgeState
from scone_pl.model.config import BridgeConfig
from scone_pl.training.metrics import BridgeQuality, Means

PACKS = ((1.0, 2.0), (3.0, 6.0), (5.0, 0.0), (10.0, 4.0))
"""Mean and weight of each pack."""
TOKENS = (
    ([0.9, 0.1, 0.6, 0.4], [1.0, 0.0, 0.0, float("nan")]),
    ([0.8, 0.3], [1.0, 1.0]),
    ([0.7, 0.2], [float("nan"), float("nan")]),
)
"""Similarity of each ViT token, and whether it shows a target."""


def quality_of(packs: list[int]) -> dict[str, float]:
    """Of the packs with these numbers, and of all other ranks'."""
    quality = BridgeQuality()
    for number in packs:
        similarity, target = (torch.tensor(values) for values in TOKENS[number])
        pack = SimpleNamespace(vit_labels=target, vit_index=torch.arange(1, len(target) + 1))
        padded = torch.cat([torch.tensor([1.0]), similarity])
        quality.update(BridgeState(padded, padded < 0.5), BridgeConfig(threshold=0.5), pack)
    result = {name: value.item() for name, value in quality.compute().items()}
    quality.reset()
    assert not quality.known.compute()
    return result


def main() -> None:
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    means = Means("loss", "fraction", "nothing")
    for number in range(rank, len(PACKS), ranks):
        mean, weight = (torch.tensor(value) for value in PACKS[number])
        means.update({"loss": mean})
        means.update({"fraction": mean}, weight)
    result = {name: value.item() for name, value in means.compute().items()}
    means.reset()
    again = {name: value.item() for name, value in means.compute().items()}
    print(json.dumps([result, again, quality_of(list(range(rank, len(TOKENS), ranks))), quality_of([])]))


if __name__ == "__main__":
    main()
