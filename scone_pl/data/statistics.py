"""Statistics of a data set from its index, and a contact sheet of samples."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from scone_pl.data.decoding import ExifOrientation, decode_rgb
from scone_pl.data.index import Size
from scone_pl.data.packing import PackingConfig
from scone_pl.data.planning import next_fit_packs, plan_packs
from scone_pl.data.sample import BrokenSampleError, Candidate
from scone_pl.data.seeding import generator
from scone_pl.data.shards import ShardSet
from scone_pl.data.sources import sample_lengths
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.model.sequence import SequenceFormat

_BAR = 40
_MAX_REFERENCES = 12
"""Maximum reference images per row of the contact sheet."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of a data set at given packing settings."""

    samples: int
    bytes: int
    shards: int
    kinds: dict[str, int]
    references: dict[int, int]
    """Number of reference images -> number of samples."""
    sizes: list[tuple[Size, int]]
    """The most frequent image sizes (width, height), with the number of images."""
    lengths: np.ndarray
    """(samples,) int64: tokens of every sample."""
    token_budget: int
    over_budget: int
    packs: int
    efficiency: float
    """Used fraction of the packs' token budgets."""
    next_fit_efficiency: float
    """The same for next-fit packing."""

    def report(self, ranks: int) -> str:
        """A text report; `ranks`: number of GPUs that share an epoch."""
        per_step = self.samples - self.over_budget
        lines = [
            f"samples           {self.samples} ({_counts(self.kinds)})",
            f"size              {self.bytes / 1e6:.1f} MB in {self.shards} shards, "
            f"{self.bytes / self.samples / 1e3:.0f} kB per sample",
            "image sizes       " + ", ".join(f"{w}x{h}: {n}" for (w, h), n in self.sizes),
            "reference images  per sample",
            *(_row(f"{number}", count, self.references) for number, count in self.references.items()),
            f"tokens            {self.lengths.sum()}",
            f"tokens per sample min {self.lengths.min()}, mean {self.lengths.mean():.0f}, "
            f"median {np.median(self.lengths):.0f}, max {self.lengths.max()}",
        ]
        counts, edges = np.histogram(self.lengths, bins=min(10, len(np.unique(self.lengths))))
        table = {f"{low:.0f} to {high:.0f}": int(n) for n, low, high in zip(counts, edges[:-1], edges[1:], strict=True)}
        lines += [_row(name, count, table) for name, count in table.items()]
        steps = -(-self.packs // ranks)
        lines += [
            f"token budget      {self.token_budget}; longer, and skipped: {self.over_budget} samples",
            f"packs per epoch   {self.packs}, packing efficiency {self.efficiency:.1%} (next fit: "
            f"{self.next_fit_efficiency:.1%})",
            f"steps per epoch   {steps} on {ranks} ranks, {per_step / max(steps, 1):.1f} samples per step",
        ]
        return "\n".join(lines)


def shard_statistics(
    path: str | Path,
    sequence_format: SequenceFormat,
    tokenizer: Tokenizer,
    packing: PackingConfig,
) -> Statistics:
    """Statistics of a data set, computed from its index.

    Raises:
        UserError: it is not a complete shard set, or is empty.
    """
    shards = ShardSet(path)
    if not len(shards):
        raise UserError(f"{path}: has no samples; convert it again")
    kinds: Counter[str] = Counter()
    lengths = sample_lengths(shards, sequence_format, tokenizer, packing)
    references: Counter[int] = Counter()
    sizes: Counter[Size] = Counter()
    for entry in shards.index:
        kinds[entry.kind] += 1
        references[len(entry.references)] += 1
        sizes.update((*entry.references, entry.target) if entry.target else entry.references)
    shuffled = generator("statistics").permutation(lengths).tolist()
    budget = packing.token_budget
    plan, greedy = plan_packs(shuffled, budget, packing.lookahead), next_fit_packs(shuffled, budget)
    return Statistics(
        samples=len(shards),
        bytes=shards.manifest.bytes,
        shards=len(shards.manifest.shards),
        kinds=dict(sorted(kinds.items())),
        references=dict(sorted(references.items())),
        sizes=sizes.most_common(8),
        lengths=lengths,
        token_budget=budget,
        over_budget=len(plan.over_budget),
        packs=len(plan.packs),
        efficiency=plan.efficiency(shuffled, budget),
        next_fit_efficiency=greedy.efficiency(shuffled, budget),
    )


def contact_sheet(
    path: str | Path,
    rows: int = 12,
    side: int = 160,
    exif_orientation: ExifOrientation = "apply",
) -> Image.Image:
    """An image with one row per sample, evenly spaced over the set: references, target (framed), key and instruction.

    Annotated candidates of a reference are framed: targets green, distractors red. The row of a broken sample shows the
    error instead.
    """
    shards = ShardSet(path, check_files=False)
    chosen = np.unique(np.linspace(0, len(shards) - 1, min(rows, len(shards))).astype(int)).tolist()
    columns = min(max(len(shards.index[i].references) for i in chosen), _MAX_REFERENCES) + 1
    sheet = Image.new("RGB", (columns * side + 3 * side, len(chosen) * side), "white")
    draw = ImageDraw.Draw(sheet)
    for row, i in enumerate(chosen):
        entry, top = shards.index[i], row * side
        text = entry.instruction
        try:
            sample = shards.read(i)
            images = [
                decode_rgb(data, exif_orientation=exif_orientation) if data else None
                for data in (*sample.references[:_MAX_REFERENCES], sample.target)
            ]
        except BrokenSampleError as error:
            images, text = [], f"{error.reason}: {error}"
        for column, image in enumerate(images, columns - len(images)):
            if image is not None:
                image.thumbnail((side - 8, side - 8))
                corner = (column * side + (side - image.width) // 2, top + (side - image.height) // 2)
                sheet.paste(image, corner)
                number = column - columns + len(images)
                if sample.candidates is not None and number < len(sample.candidates):
                    _draw_candidates(draw, sample.candidates[number], corner, image.size)
        draw.rectangle((columns * side - side + 1, top + 1, columns * side - 2, top + side - 2), outline="darkorange")
        facts = f"{entry.kind}, references: {len(entry.references)}"
        answer = textwrap.wrap(f"answer: {entry.answer}", side // 2 - 6) if entry.answer else []
        lines = [entry.key, facts, *textwrap.wrap(text, side // 2 - 6), *answer]
        draw.multiline_text((columns * side + 6, top + 6), "\n".join(lines[: side // 14]), fill="black")
    return sheet


def _draw_candidates(
    draw: ImageDraw.ImageDraw, candidates: tuple[Candidate, ...], corner: tuple[int, int], size: Size
) -> None:
    for candidate in candidates:
        corners = [round(corner[i % 2] + fraction * (size[i % 2] - 1)) for i, fraction in enumerate(candidate.box)]
        draw.rectangle(corners, outline="limegreen" if candidate.is_target else "red", width=2)


def _row(name: str, count: int, table: Mapping[Any, int]) -> str:
    return f"  {name:>18} {count:8d} {'#' * round(_BAR * count / max(table.values()))}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
