"""Runs a pipeline on pools of icons and compares what it keeps with the truth."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from scone_pl.construct.items import Item
from scone_pl.construct.phases import State, read_items
from scone_pl.construct.pipeline import Pipeline
from scone_pl.construct.settings import Construction
from scone_pl.worlds.planted.pools import IconPools, consistent
from scone_pl.worlds.planted.scenes import Scene, meant

_NO_FAULT = ("not several subjects", "not drawn")
"""Reasons of samples that a step is not for."""
SAME_BOX = 0.05
"""Greatest difference of the sides of boxes that are the same."""


def construction(pools: IconPools, output: Path, url: str, **more: Any) -> Construction:
    """A pipeline with all steps, as `docs/construct.md` has it, over the pools of icons."""
    folder = pools.folder
    server = {"base_url": url, "api_key_env": "ICONS_API_KEY", "concurrency": 8, "first_wait": 0.05, "model": "icons"}
    notice = "MIT and Apache-2.0 (icons)"
    return Construction(
        output=str(output),
        pools=[
            {"name": "pairs", "path": str(folder / "labels"), "image_root": str(folder), "license": notice,
             "where": ["vlm_filter_cot.score_final >= 3.5"]},
            {"name": "sets", "path": str(folder / "sets.jsonl"), "license": notice},
            {"name": "photos", "path": str(folder / "photos"), "layout": "subjects", "license": notice},
        ],
        models={name: {**server, "model": f"icons-{name}"} for name in ("vlm", "llm", "editor")},
        steps=[
            {"step": "quality", "min_side": 100, "min_sharpness": 0, "input": ["pairs", "sets"]},
            {"step": "duplicates"},
            {"step": "decontaminate", "benchmarks": [str(folder / "benchmark")]},
            {"step": "consistency"},
            {"step": "reversal"},
            {"step": "draw", "name": "some", "samples": 100, "input": "consistency"},
            {"step": "editing"},
            {"step": "verify", "input": ["reversal", "editing"]},
            {"step": "compose", "input": "photos", "side": 256},
        ],
        outputs={"refined": "consistency", "multi": ["verify", "compose"]},
        **more,
    )  # fmt: skip


def is_clean(item: Item, pools: IconPools) -> bool:
    """Whether a sample is as it should be."""
    if pools.planted.get(item.key) in ("duplicate", "leak", "dirty", "low"):
        return False
    scenes = [pools.known.by_hash.get(ref.sha256) for ref in item.images]
    known = [scene for scene in scenes if scene is not None]
    if len(known) < len(scenes) or item.target is None:
        return False
    references, target = known[:-1], known[-1]
    if item.candidates is None:
        return consistent(pools, references, target, item.instruction)
    wanted = []
    for scene, group in zip(references, item.candidates, strict=True):
        if len(group) < 2:
            wanted.append(scene)
            continue
        targets = [i for i in range(len(scene.subjects)) if _is_target(scene, i, group)]
        if len(targets) != 1 or meant(item.instruction, scene) != targets:
            return False
        wanted.append(Scene((scene.subjects[targets[0]],)))
    return consistent(pools, wanted, target, "")


def _is_target(scene: Scene, number: int, group: Any) -> bool:
    box = scene.subjects[number].box
    return any(
        candidate.is_target and all(abs(a - b) <= SAME_BOX for a, b in zip(candidate.box, box, strict=True))
        for candidate in group
    )


def measure(pipeline: Pipeline, pools: IconPools) -> dict[str, Any]:
    """By step: samples in and out, how many are clean, precision, recall; and what became of planted faults."""
    report: dict[str, Any] = {}
    for step in pipeline.steps:
        if step.name.startswith("compose"):
            continue
        folder = pipeline.step_folder(step.name)
        kept = list(read_items([folder / "items.jsonl"]))
        rejected = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
        dropped = [Item.from_json(one["item"]) for one in rejected if "item" in one and one["reason"] not in _NO_FAULT]
        clean_kept = sum(is_clean(item, pools) for item in kept)
        clean_dropped = sum(is_clean(item, pools) for item in dropped)
        faults = Counter(pools.planted.get(item.key, "") for item in kept)
        state = State.of(folder)
        report[step.name] = {
            "in": len(kept) + len(dropped),
            "out": len(kept),
            "clean_out": clean_kept,
            "precision": round(clean_kept / len(kept), 4) if kept else None,
            "recall": round(clean_kept / (clean_kept + clean_dropped), 4) if clean_kept + clean_dropped else None,
            "faults_left": {name: count for name, count in sorted(faults.items()) if name},
            "calls": state.calls if state else 0,
        }
    return report


def digest(folder: Path) -> str:
    """Hash of all files of a set of shards."""
    content = hashlib.sha256()
    for file in sorted(folder.glob("[!.]*")):
        content.update(file.name.encode() + file.read_bytes())
    return content.hexdigest()
