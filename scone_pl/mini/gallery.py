"""A picture grid of answers: references, what the bridge blocked, target, generated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scone_pl.generation.pictures import Picture, dim_blocked, grid_of
from scone_pl.mini.evaluate import Drawn
from scone_pl.mini.judge import judge


def gallery(drawn: Sequence[Drawn], per_task: int = 2) -> Picture:
    """A row per answer, the first `per_task` of each task, captioned with instruction and scores."""
    chosen: dict[str, list[Drawn]] = {}
    for one in drawn:
        members = chosen.setdefault(one.episode.task, [])
        if len(members) < per_task:
            members.append(one)
    width = max(len(d.episode.references) for d in drawn)
    rows = []
    for one in (d for members in chosen.values() for d in members):
        references = list(one.episode.references)
        blocked = [dim_blocked(r, b.cpu().numpy()) for r, b in zip(references, one.latents.blocked, strict=False)]
        blank = [np.full((8, 8, 3), 250, dtype=np.uint8)]
        cells = [
            *references,
            *blank * (width - len(references)),
            *blocked,
            *blank * (width - len(blocked)),
            one.episode.target,
            one.image,
        ]
        verdict = judge(one.episode, one.image)
        scores = f"PF {verdict.prompt_following:.1f}, SC {verdict.subject_consistency:.1f}, {verdict.failure}"
        rows.append((cells, f"{one.episode.task}: {one.episode.instruction}   [{scores}]"))
    titles = [
        *(f"reference {i + 1}" for i in range(width)),
        *(f"blocked {i + 1}" for i in range(width)),
        "target",
        "generated",
    ]
    return grid_of(rows, titles=titles)
