"""Samples the fixed test sets of the mini-world and lets the exact judge score them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from scone_pl.checkpoints import from_pretrained
from scone_pl.data.packing import PackingConfig, add_sample
from scone_pl.data.seeding import generator
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.data.transforms import ResizeLimits
from scone_pl.evaluation.scores import SCONEEVAL_TASKS, average_row, overall_score, task_means
from scone_pl.generation.prompts import prompts_of
from scone_pl.generation.sampler import SampledLatents, SamplingConfig, decode_latents, initial_noise, sample, to_uint8
from scone_pl.mini.episode import Episode
from scone_pl.mini.judge import judge
from scone_pl.model.config import BridgeConfig
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import SequenceBuilder


@dataclass(frozen=True)
class Drawn:
    """One answer."""

    episode: Episode
    image: np.ndarray
    """(H, W, 3) uint8."""
    latents: SampledLatents


def bridge_of(folder: Path) -> BridgeConfig | None:
    """The mask that a checkpoint folder's own `training.json` says it was sampled with; None = off."""
    file = folder / "training.json"
    training: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return BridgeConfig(**training["bridge"]) if training.get("mask_sampling") and training.get("bridge") else None


def draw(
    model: Scone,
    tokenizer: Tokenizer,
    episodes: Sequence[Episode],
    config: SamplingConfig,
    *,
    batch_size: int = 96,
    progress: bool = True,
) -> list[Drawn]:
    """Samples an answer to every episode; its noise depends on the episode's key alone."""
    form = model.sequence_format(tokenizer.special)
    drawn = []
    bar = tqdm(total=len(episodes), desc="sampling", unit="picture", disable=not progress)
    for start in range(0, len(episodes), batch_size):
        chunk = episodes[start : start + batch_size]
        builder = SequenceBuilder(form)
        for episode in chunk:
            limits = ResizeLimits(max_size=episode.canvas, min_size=episode.canvas)
            packing = PackingConfig(vae_resize=limits, vit_resize=limits).without_dropout()
            add_sample(builder, episode.to_sample(), tokenizer, packing, generator("evaluate", episode.key))
        prompts = prompts_of(builder.build())
        noise = [
            initial_noise(p, model, form, torch.Generator().manual_seed(int(generator("noise", e.key).integers(2**62))))
            for p, e in zip(prompts, chunk, strict=True)
        ]
        for episode, found in zip(chunk, sample(model, form, prompts, config, noise), strict=True):
            drawn.append(Drawn(episode, to_uint8(decode_latents(model, found)).numpy(), found))
        bar.update(len(chunk))
    bar.close()
    return drawn


def evaluate(
    folder: Path, episodes: Sequence[Episode], config: SamplingConfig, *, progress: bool = True
) -> tuple[dict[str, Any], list[Drawn]]:
    """Scores a checkpoint folder.

    Returns:
        The report (scores per task, averages, failures, every item), and the pictures.
    """
    model, tokenizer = from_pretrained(folder), Tokenizer.from_folder(folder)
    drawn = draw(model, tokenizer, episodes, config, progress=progress)
    verdicts = [judge(d.episode, d.image) for d in drawn]
    records = [v.record(d.episode.task, d.episode.key) for v, d in zip(verdicts, drawn, strict=True)]
    per_task = task_means(records)
    average = average_row(per_task, SCONEEVAL_TASKS)
    blocked = [b.float().mean().item() for d in drawn for b in d.latents.blocked]
    report: dict[str, Any] = {
        "checkpoint": str(folder),
        "mask": config.bridge is not None,
        "blocked_share": float(np.mean(blocked)) if blocked else 0.0,
        "num_inference_steps": config.num_inference_steps,
        "pictures": len(drawn),
        "tasks": per_task,
        "average": average,
        "overall": overall_score(average) if average else None,
        "failures": dict(Counter(v.failure for v in verdicts)),
        "items": records,
    }
    return report, drawn


def score_table(reports: dict[str, dict[str, Any]]) -> str:
    """Composition, distinction and overall of several reports side by side, as Markdown."""
    lines = ["| weights | composition (COM) | distinction (DIS) | overall | failures |", "|---|---|---|---|---|"]
    for name, report in reports.items():
        average = report["average"]
        failures = ", ".join(f"{k} {v}" for k, v in sorted(report["failures"].items()) if k != "none") or "none"
        lines.append(
            f"| {name} | {average['COM']:.2f} | {average['DIS']:.2f} | {report['overall']:.2f} "
            f"| {failures} of {report['pictures']} |"
        )
    return "\n".join(lines)


def task_table(reports: dict[str, dict[str, Any]]) -> str:
    """COM and DIS per task, as Markdown."""
    lines = [f"| task | {' | '.join(f'{n}: COM / DIS' for n in reports)} |", "|---|" + "---|" * len(reports)]
    for task in SCONEEVAL_TASKS:
        cells = []
        for report in reports.values():
            row = report["tasks"][task]
            cells.append(f"{row['COM']:.2f} / {row['DIS']:.2f}" if "DIS" in row else f"{row['COM']:.2f} / -")
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)
