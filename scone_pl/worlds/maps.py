"""Similarity maps of a report, with the episode that they were read from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scone_pl.analysis.drawing import MapRow
from scone_pl.analysis.similarity import READ
from scone_pl.worlds.episode import Episode


def map_row(label: str, example: Mapping[str, Any], episode: Episode) -> MapRow:
    """Maps of the first reference; `example` is one of `layers.examples`, read from `episode`."""
    return MapRow(
        label=f"{label}\n{example['instruction']}",
        image=episode.references[0],
        maps={expert: np.array(example[expert]) for expert in READ if expert in example},
        targets=[[side / episode.canvas for side in s.box] for s in episode.candidates[0] if s.is_target],
    )
