"""Pools of icons with planted faults, and what is true of each sample."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from PIL import ImageEnhance

from scone_pl.data.decoding import decode_rgb
from scone_pl.files import write_text
from scone_pl.worlds.planted.scenes import FLAT, NOTO, SOLID, Known, Scene, Subject, encode, names, render

FAULTS = ("wrong subject", "missing", "count", "recoloured", "contradiction")
_WHERE = ("in a garden", "by the sea", "on a hill", "at a market", "in the snow", "under a bridge", "on a roof")
_HOW = ("at dawn", "at noon", "in the evening", "at night", "in the rain", "in bright sun")


@dataclass
class IconPools:
    """What was written, and the truth about it."""

    folder: Path
    known: Known = field(default_factory=Known)
    planted: dict[str, str] = field(default_factory=dict)
    """Key of a sample -> the fault that was planted; samples without one are not listed."""
    contradictions: set[str] = field(default_factory=set)
    """Instructions that do not fit their target."""
    _number: int = 0

    def image(self, subjects: Sequence[Subject], name: str, *, plain: bool = False) -> str:
        """Writes an image; returns its path below the folder."""
        self._number += 1
        image, scene = render(subjects, self._number, plain=plain)
        data = encode(image)
        self.known.add(image, scene, data)
        self._write(data, name)
        return name

    def _write(self, data: bytes, name: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def again(self, source: str, name: str, size: int = 200) -> str:
        """Writes a near-duplicate of an image: another size, format and brightness."""
        data = (self.folder / source).read_bytes()
        image = ImageEnhance.Brightness(decode_rgb(data).resize((size, size))).enhance(1.03)
        copy = encode(image, "JPEG")
        scene = self.known.scene(data)
        self.known.add(image, scene or Scene(()), copy)
        self._write(copy, name)
        return name


def write_pools(folder: Path, pairs: int, sets: int, seed: int = 0) -> IconPools:
    """Writes a pool of pairs in UNO-1M's layout, one of several references in X2I's, photographs, and a benchmark.

    Args:
        folder: to write to.
        pairs: number of pairs of the first; about a third have a fault.
        sets: number of samples of the second.
        seed: of everything.
    """
    pools, generator = IconPools(folder), random.Random(seed)
    _write_benchmark(pools, generator)
    _write_pairs(pools, pairs, generator)
    _write_sets(pools, sets, generator)
    for name in generator.sample(names(), 16):
        for drawing, other in ((FLAT, ""), (SOLID, ""), (NOTO, "2")):
            pools.image([Subject(name, drawing)], f"photos/{name}{other}/{drawing}.png", plain=True)
        pools.again(f"photos/{name}2/{NOTO}.png", f"photos/{name}2/again.jpg", 160)
    return pools


def _text(name: str, generator: random.Random) -> str:
    return f"{name} {generator.choice(_WHERE)} {generator.choice(_HOW)}, take {generator.randrange(10**6)}"


def _write_benchmark(pools: IconPools, generator: random.Random) -> None:
    rows = []
    for number in range(12):
        name = generator.choice(names())
        pools.image([Subject(name, generator.choice((FLAT, SOLID, NOTO)))], f"benchmark/images/{number}.png")
        rows.append({"instruction": f"Paint exactly this {_text(name, generator)} as a poster."})
    write_text(json.dumps(rows), pools.folder / "benchmark/data.json")


def _write_pairs(pools: IconPools, count: int, generator: random.Random) -> None:
    rows: list[dict[str, Any]] = []
    kinds = cycle((*FAULTS, "leak", "low", "duplicate", "dirty"))
    for number in range(count):
        fault = next(kinds) if generator.random() < 0.35 else ""
        name = generator.choice(names())
        other = generator.choice([one for one in names() if one != name])
        first, second = generator.sample((FLAT, SOLID), 2)
        shown = {
            "wrong subject": [Subject(name, NOTO)] if generator.random() < 0.5 else [Subject(other, second)],
            "missing": [],
            "count": [Subject(name, second)] * 2,
            "recoloured": [Subject(name, second, 110)],
        }.get(fault, [Subject(name, second)])
        captions = [f"The {_text(name, generator)}.", f"The {_text(name, generator)}."]
        if fault == "contradiction":
            captions = [f"No {name}, but three of the {_text(other, generator)}." for _ in range(2)]
            pools.contradictions.update(captions)
        if fault == "duplicate" and (clean := _clean_rows(pools, rows)):
            original = generator.choice(clean)
            paths = [pools.again(original[f"img_path{i}"], f"pairs/{number}_{i}.jpg") for i in (1, 2)]
        else:
            fault = "" if fault == "duplicate" else fault
            paths = [pools.image([Subject(name, first)], f"pairs/{number}_1.png")]
            if fault == "leak":
                paths = [pools.again(f"benchmark/images/{generator.randrange(12)}.png", f"pairs/{number}_1.jpg")]
            paths.append(pools.image(shown, f"pairs/{number}_2.png"))
        score = {"low": 2.5, "dirty": generator.choice((131184.67, 8.5, -1))}.get(fault, generator.choice((3.5, 4)))
        rows.append(
            {
                "img_path1": paths[0],
                "img_path2": paths[1],
                "caption": {"img_path1": captions[0], "img_path2": captions[1], "judgment": "same", "subject": name},
                "vlm_filter_cot": {"score_part": {"overall": score}, "score_final": score},
            }
        )
        if fault:
            pools.planted |= {f"pairs-{2 * number + part:09d}": fault for part in (0, 1)}
    write_text(json.dumps(rows), pools.folder / "labels/part_1.json")


def _clean_rows(pools: IconPools, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for number, row in enumerate(rows) if f"pairs-{2 * number:09d}" not in pools.planted]


def _write_sets(pools: IconPools, count: int, generator: random.Random) -> None:
    lines = []
    for number in range(count):
        fault = generator.choice(FAULTS) if generator.random() < 0.25 else ""
        size = generator.choice((2, 3))
        chosen = generator.sample(names(), size)
        subjects = [Subject(name, generator.choice((FLAT, SOLID))) for name in chosen]
        if generator.random() < 0.4:  # two of one category
            subjects[1] = Subject(chosen[0], NOTO)
        shown = [Subject(s.name, s.drawing if s.drawing == NOTO else 1 - s.drawing) for s in subjects]
        last = shown[-1]
        if fault == "wrong subject":
            stranger = generator.choice([one for one in names() if one not in chosen])
            shown[-1] = Subject(stranger, last.drawing)
        elif fault == "missing":
            shown.pop()
        elif fault == "count":
            shown.append(last)
        elif fault == "recoloured":
            shown[-1] = Subject(last.name, last.drawing, 110)
        generator.shuffle(shown)
        parts = [f"the {s.name} <img><|image_{i}|></img>" for i, s in enumerate(subjects, 1)]
        text = f"Show {' and '.join(parts)} together, {_text('standing', generator)}."
        if fault == "contradiction":
            text = f"Show {' without '.join(parts)} and ten others, {_text('standing', generator)}."
            pools.contradictions.add(text.replace("<img><|image_", "in image ").replace("|></img>", ""))
        references = [pools.image([s], f"sets/{number}_{i}.png") for i, s in enumerate(subjects, 1)]
        target = pools.image(shown, f"sets/{number}_target.png")
        lines.append(json.dumps({"input_images": references, "output_image": target, "instruction": text}))
        if fault:
            pools.planted[f"sets-{number:09d}"] = fault
    write_text("\n".join(lines) + "\n", pools.folder / "sets.jsonl")


def consistent(pools: IconPools, references: Sequence[Scene], target: Scene, instruction: str) -> bool:
    """Whether a target shows the subject of each reference once and nothing else, and the instruction fits."""
    expected = sorted(subject.identity for scene in references for subject in scene.subjects)
    shown = sorted(subject.identity for subject in target.subjects)
    return expected == shown and instruction not in pools.contradictions
