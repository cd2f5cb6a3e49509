"""DINO, CLIP-I and CLIP-T by UNO's protocol; beside them minima over references and collapse rates.

All cosines are of whole frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from scone_pl.errors import UserError
from scone_pl.evaluation.judge_images import open_rgb
from scone_pl.evaluation.similarity.encoders import Encoders, ImageEncoder
from scone_pl.evaluation.similarity.lists import Entry
from scone_pl.progress import Progress

THRESHOLDS = (0.4, 0.5, 0.6)
COLUMNS = ("DINO", "CLIP-I", "CLIP-T")
OWN_COLUMNS = ("DINO min", "CLIP-I min", *(f"SCR {threshold}" for threshold in THRESHOLDS))
"""Our additions. min: of the references the one with the lowest cosine. SCR (subject collapse rate): fraction of
references whose DINOv2 cosine with the image is below the threshold."""
RESAMPLES = 2000


@dataclass
class Result:
    """Scores of one model."""

    columns: dict[str, float]
    """Means over groups (subjects, or pairs of subjects) of means over their images."""
    intervals: dict[str, tuple[float, float]]
    groups: dict[str, dict[str, float]]
    images: int
    missing: list[str] = field(default_factory=list)
    """Images that do not exist or cannot be decoded."""

    def as_dict(self) -> dict[str, Any]:
        """JSON representation."""
        return {
            "columns": self.columns,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "groups": self.groups,
            "images": self.images,
            "missing": self.missing,
        }


class _Features:
    """Normalised features of reference files, each encoded once."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self._encoder = encoder
        self._cache: dict[Path, torch.Tensor] = {}

    def of(self, files: Sequence[Path]) -> torch.Tensor:
        """(files, d)."""
        new = [file for file in dict.fromkeys(files) if file not in self._cache]
        if new:
            features = normalize(self._encoder.images([open_rgb(file) for file in new]), dim=-1)
            self._cache |= dict(zip(new, features, strict=True))
        return torch.stack([self._cache[file] for file in files])


def similarity(
    entries: Sequence[Entry],
    images: Path,
    num_images_per_prompt: int,
    encoders: Encoders,
    *,
    progress: bool = True,
    seed: int = 0,
) -> Result:
    """The scores of the images `INDEX_NUMBER.png` in a folder.

    Args:
        entries: the list.
        images: folder of generated images.
        num_images_per_prompt: number of images for each entry.
        encoders: see `Encoders`.
        progress: whether to show it.
        seed: of the bootstrap over groups.

    Raises:
        UserError: a reference cannot be decoded, or no image is there.
    """
    features = {name: _Features(encoder) for name, encoder in vars(encoders).items()}
    rows: dict[str, list[dict[str, float]]] = {}
    missing: list[str] = []
    with Progress("encoding", len(entries), unit="prompts", show=progress) as shown:
        for entry in entries:
            found, absent = _opened(images, entry, num_images_per_prompt)
            missing += absent
            if found:
                rows.setdefault(" + ".join(entry.group), []).extend(_rows(entry, found, encoders, features))
            shown.advance()
    if not rows:
        raise UserError(f"{images}: has no image INDEX_NUMBER.png, such as 0_0.png, of this list")
    names = list(next(iter(rows.values()))[0])
    groups = {
        group: {name: float(np.mean([row[name] for row in members])) for name in names}
        for group, members in rows.items()
    }
    table = np.array([[group[name] for name in names] for group in groups.values()])
    drawn = np.random.default_rng(seed).integers(0, len(table), (RESAMPLES, len(table)))
    ends = np.percentile(table[drawn].mean(axis=1), [2.5, 97.5], axis=0)
    return Result(
        columns=dict(zip(names, table.mean(axis=0).tolist(), strict=True)),
        intervals={name: (float(ends[0, i]), float(ends[1, i])) for i, name in enumerate(names)},
        groups=groups,
        images=sum(map(len, rows.values())),
        missing=missing,
    )


def _opened(images: Path, entry: Entry, num_images_per_prompt: int) -> tuple[list[Any], list[str]]:
    found, missing = [], []
    for number in range(num_images_per_prompt):
        file = images / f"{entry.index}_{number}.png"
        try:
            found.append(open_rgb(file))
        except UserError:
            missing.append(file.name)
    return found, missing


def _rows(
    entry: Entry, images: Sequence[Any], encoders: Encoders, features: dict[str, _Features]
) -> list[dict[str, float]]:
    """The columns of each image of an entry."""
    cosines: dict[str, torch.Tensor] = {}  # (images, subjects)
    encoded = {name: normalize(encoder.images(images), dim=-1) for name, encoder in vars(encoders).items()}
    for name in ("dino", "clip"):
        per_subject = [(encoded[name] @ features[name].of(views).T).mean(dim=1) for views in entry.views]
        cosines[name] = torch.stack(per_subject, dim=1)
    given = encoded["dinov2"] @ features["dinov2"].of(entry.references).T
    text = normalize(encoders.clip.texts([entry.prompt]), dim=-1)
    of_text = (encoded["clip"] @ text[0]).clamp(min=0)
    rows = []
    for i in range(len(images)):
        row = {"DINO": float(cosines["dino"][i].mean()), "CLIP-I": float(cosines["clip"][i].mean())}
        row["CLIP-T"] = float(of_text[i])
        row |= {"DINO min": float(cosines["dino"][i].amin()), "CLIP-I min": float(cosines["clip"][i].amin())}
        row |= {f"SCR {limit}": float((given[i] < limit).float().mean()) for limit in THRESHOLDS}
        rows.append(row)
    return rows
