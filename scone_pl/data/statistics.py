"""What training will see of a data set, from its index alone; and a picture of a few samples."""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from scone_pl.data.decoding import ExifOrientation, decode_rgb
from scone_pl.data.index import Size
from scone_pl.data.planning import first_come_packs, plan_packs
from scone_pl.data.sample import BrokenSampleError, Candidate
from scone_pl.data.seeding import generator
from scone_pl.data.shards import ShardSet
from scone_pl.data.storage import StorageConfig
from scone_pl.data.token_counts import TokenCounter
from scone_pl.errors import UserError

_BAR = 40
_MOST_REFERENCES = 12
"""Shown of a sample."""


@dataclass(frozen=True)
class Statistics:
    """What training will see of a data set."""

    samples: int
    bytes: int
    shards: int
    kinds: dict[str, int]
    references: dict[int, int]
    """Samples per number of reference images."""
    sizes: list[tuple[Size, int]]
    """The most frequent image sizes (width, height), and how many images have them."""
    lengths: np.ndarray
    """(samples,) int64: tokens of every sample."""
    stored: bool
    """Whether they are stored with the data set, too."""
    token_budget: int
    over_budget: int
    packs: int
    efficiency: float
    """Share of a pack's tokens that are used."""
    first_come: float
    """The same if a pack were closed as soon as the next sample does not fit."""

    def report(self, ranks: int) -> str:
        """Tables for people; `ranks`: GPUs that share an epoch."""
        per_step = self.samples - self.over_budget
        lines = [
            f"samples           {self.samples} ({_counts(self.kinds)})",
            f"size              {self.bytes / 1e6:.1f} MB in {self.shards} shards, "
            f"{self.bytes / self.samples / 1e3:.0f} kB a sample",
            "image sizes       " + ", ".join(f"{w}x{h}: {n}" for (w, h), n in self.sizes),
            "reference images  a sample",
            *(_row(f"{number}", count, self.references) for number, count in self.references.items()),
            f"tokens            {self.lengths.sum()} ({'as stored with the set' if self.stored else 'counted now'})",
            f"tokens a sample   min {self.lengths.min()}, mean {self.lengths.mean():.0f}, "
            f"median {np.median(self.lengths):.0f}, max {self.lengths.max()}",
        ]
        counts, edges = np.histogram(self.lengths, bins=min(10, len(np.unique(self.lengths))))
        table = {f"{low:.0f} to {high:.0f}": int(n) for n, low, high in zip(counts, edges[:-1], edges[1:], strict=True)}
        lines += [_row(name, count, table) for name, count in table.items()]
        steps = -(-self.packs // ranks)
        lines += [
            f"token budget      {self.token_budget}; longer, and left out: {self.over_budget} samples",
            f"packs an epoch    {self.packs}, filled to {self.efficiency:.1%} (first come, first packed: "
            f"{self.first_come:.1%})",
            f"steps an epoch    {steps} on {ranks} ranks, {per_step / max(steps, 1):.1f} samples a step",
        ]
        return "\n".join(lines)


def shard_statistics(path: str | Path, counter: TokenCounter, storage: StorageConfig | None = None) -> Statistics:
    """Statistics of a data set, from its index alone; stored token counts are used where they hold.

    Raises:
        UserError: it is no complete shard set.
    """
    shards = ShardSet(path, storage)
    if not len(shards):
        raise UserError(f"{path}: holds no sample; convert it again")
    kinds: Counter[str] = Counter()
    lengths = counter.count_all(shards)
    references: Counter[int] = Counter()
    sizes: Counter[Size] = Counter()
    for entry in shards.index:
        kinds[entry.kind] += 1
        references[len(entry.references)] += 1
        sizes.update((*entry.references, entry.target) if entry.target else entry.references)
    shuffled = generator("statistics").permutation(lengths)
    budget = counter.packing.token_budget
    plan, greedy = plan_packs(shuffled, budget, counter.packing.lookahead), first_come_packs(shuffled, budget)
    return Statistics(
        samples=len(shards),
        bytes=shards.manifest.bytes,
        shards=len(shards.manifest.shards),
        kinds=dict(sorted(kinds.items())),
        references=dict(sorted(references.items())),
        sizes=sizes.most_common(8),
        lengths=lengths,
        stored=counter.agrees_with(shards),
        token_budget=budget,
        over_budget=len(plan.over_budget),
        packs=len(plan.packs),
        efficiency=plan.efficiency(shuffled, budget),
        first_come=greedy.efficiency(shuffled, budget),
    )


def contact_sheet(
    path: str | Path,
    rows: int = 12,
    side: int = 160,
    storage: StorageConfig | None = None,
    exif_orientation: ExifOrientation = "apply",
) -> Image.Image:
    """A row a sample, taken evenly from the whole set: references, target (framed), key and instruction.

    Candidates of a reference, where known, are framed: green those that are meant, red the others. Broken samples
    show as a row that says why.
    """
    shards = ShardSet(path, storage, check_files=False)
    chosen = np.unique(np.linspace(0, len(shards) - 1, min(rows, len(shards))).astype(int)).tolist()
    columns = min(max(len(shards.index[i].references) for i in chosen), _MOST_REFERENCES) + 1
    sheet = Image.new("RGB", (columns * side + 3 * side, len(chosen) * side), "white")
    draw = ImageDraw.Draw(sheet)
    for row, i in enumerate(chosen):
        entry, top = shards.index[i], row * side
        text = entry.instruction
        try:
            sample = shards.read(i)
            pictures = [
                decode_rgb(data, exif_orientation=exif_orientation) if data else None
                for data in (*sample.references[:_MOST_REFERENCES], sample.target)
            ]
        except BrokenSampleError as error:
            pictures, text = [], f"{error.reason}: {error}"
        for column, picture in enumerate(pictures, columns - len(pictures)):
            if picture is not None:
                picture.thumbnail((side - 8, side - 8))
                place = (column * side + (side - picture.width) // 2, top + (side - picture.height) // 2)
                sheet.paste(picture, place)
                number = column - columns + len(pictures)
                if sample.candidates is not None and number < len(sample.candidates):
                    _draw_candidates(draw, sample.candidates[number], place, picture.size)
        draw.rectangle((columns * side - side + 1, top + 1, columns * side - 2, top + side - 2), outline="darkorange")
        facts = f"{entry.kind}, references: {len(entry.references)}"
        answer = textwrap.wrap(f"answer: {entry.answer}", side // 2 - 6) if entry.answer else []
        lines = [entry.key, facts, *textwrap.wrap(text, side // 2 - 6), *answer]
        draw.multiline_text((columns * side + 6, top + 6), "\n".join(lines[: side // 14]), fill="black")
    return sheet


def _draw_candidates(
    draw: ImageDraw.ImageDraw, candidates: tuple[Candidate, ...], place: tuple[int, int], size: Size
) -> None:
    for candidate in candidates:
        corners = [round(place[i % 2] + share * (size[i % 2] - 1)) for i, share in enumerate(candidate.box)]
        draw.rectangle(corners, outline="limegreen" if candidate.meant else "red", width=2)


def _row(name: str, count: int, table: dict) -> str:
    return f"  {name:>18} {count:8d} {'#' * round(_BAR * count / max(table.values()))}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
