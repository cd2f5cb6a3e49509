"""Samples the fixed test sets of a world and lets its judge score them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from scone_pl.checkpoints.model import from_pretrained
from scone_pl.checkpoints.training_record import FILE, bridge_from, read_record
from scone_pl.data.packing import PackingConfig, add_sample
from scone_pl.data.seeding import generator
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.data.transforms import ResizeLimits
from scone_pl.errors import UserError
from scone_pl.evaluation.scores import SCONEEVAL_TASKS, average_row, item_scores, overall_score, task_means
from scone_pl.files import read_json
from scone_pl.markdown import markdown_table
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import BridgeConfig
from scone_pl.model.network import Network
from scone_pl.model.sequence import SequenceFormat
from scone_pl.progress import track
from scone_pl.sampling.prompts import prompts_of
from scone_pl.sampling.sampler import SampledLatents, decode_latents, initial_noise, sample, to_uint8
from scone_pl.sampling.settings import SamplingConfig
from scone_pl.worlds.episode import Episode, Failure, Subject


@dataclass(frozen=True)
class Drawn:
    """One answer."""

    episode: Episode
    image: np.ndarray
    """(H, W, 3) uint8."""
    latents: SampledLatents


def bridge_of(folder: Path) -> BridgeConfig | None:
    """The bridge that a checkpoint folder's own `training.json` says it was sampled with; None = off.

    Raises:
        UserError: the record is damaged.
    """
    record = read_record(folder)
    if not record.get("mask_sampling") or not record.get("bridge"):
        return None
    return bridge_from(record["bridge"], f"{folder / FILE}: bridge")


def packing_of(canvas: int, sequence_format: SequenceFormat) -> PackingConfig:
    """Images of a world as they are, but for the ViT where its patches do not divide the canvas.

    Raises:
        UserError: the model has no positions for images of `canvas` pixels a side.
    """
    positions, patch = sequence_format.vit_positions_per_side, sequence_format.vit_patch_size
    most = min(
        sequence_format.latent_positions_per_side * sequence_format.latent_stride, int((positions + 0.5) * patch)
    )
    if canvas > most:
        raise UserError(f"world.canvas is {canvas}, but this checkpoint's images have at most {most} pixels a side")
    limits = ResizeLimits(max_size=canvas, min_size=canvas)
    return PackingConfig(vae_resize=limits, vit_resize=limits).without_dropout()


def draw(
    model: Network,
    tokenizer: Tokenizer,
    episodes: Sequence[Episode],
    config: SamplingConfig,
    *,
    batch_size: int = 96,
    progress: bool = True,
) -> list[Drawn]:
    """Samples an answer to every episode; its noise depends on the episode's key alone."""
    sequence_format = model.config.sequence_format(tokenizer.special)
    drawn = []
    starts = range(0, len(episodes), batch_size)
    for start in track(starts, "sampling", len(starts), unit="batches", show=progress):
        chunk = episodes[start : start + batch_size]
        builder = SequenceBuilder(sequence_format)
        for episode in chunk:
            packing = packing_of(episode.canvas, sequence_format)
            add_sample(builder, episode.to_sample(), tokenizer, packing, generator("evaluate", episode.key))
        prompts = prompts_of(builder.build())
        noise = [
            initial_noise(
                p, model, sequence_format, torch.Generator().manual_seed(int(generator("noise", e.key).integers(2**62)))
            )
            for p, e in zip(prompts, chunk, strict=True)
        ]
        for episode, latents in zip(chunk, sample(model, sequence_format, prompts, config, noise), strict=True):
            drawn.append(Drawn(episode, to_uint8(decode_latents(model, latents)).numpy(), latents))
    return drawn


def evaluate(
    folder: Path, episodes: Sequence[Episode], config: SamplingConfig, *, progress: bool = True
) -> tuple[dict[str, Any], list[Drawn]]:
    """Scores a checkpoint folder.

    Returns:
        The report (scores per task, averages, failures, every item), and the images.
    """
    model, tokenizer = from_pretrained(folder), Tokenizer.from_folder(folder)
    began = time.process_time()
    drawn = draw(model, tokenizer, episodes, config, progress=progress)
    cpu_seconds = time.process_time() - began
    verdicts = [d.episode.judge(d.image) for d in drawn]
    records = [v.record(d.episode.task, d.episode.key) for v, d in zip(verdicts, drawn, strict=True)]
    per_task = task_means(records)
    average = average_row(per_task, SCONEEVAL_TASKS)
    blocked = [b.float().mean().item() for d in drawn for b in d.latents.blocked]
    report: dict[str, Any] = {
        "checkpoint": str(folder),
        "mask": config.bridge is not None,
        "blocked_share": float(np.mean(blocked)) if blocked else 0.0,
        "kept": kept_tokens(drawn),
        "num_inference_steps": config.num_inference_steps,
        "cpu_seconds": cpu_seconds,
        "pictures": len(drawn),
        "tasks": per_task,
        "choice": choice_means(records),
        "means": own_means(records),
        "average": average,
        "overall": overall_score(average) if average else None,
        "failures": dict(Counter(v.failure for v in verdicts)),
        "episodes": episode_scores(records),
        "items": records,
    }
    return report, drawn


def read_report(file: Path) -> dict[str, Any]:
    """A report as `mini evaluate` writes it.

    Raises:
        UserError: it cannot be read, or lacks what the tables show.
    """
    report = read_json(file, dict)
    try:
        for table in TABLES:
            table({"": report})
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: not a scores.json of `mini evaluate` ({reason:.100})") from error
    return report


def choice_means(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Task -> mean `choice` of its records, in [0, 1]: the chance is one in so many candidates; without composition."""
    choices: dict[str, list[float]] = {}
    for record in records:
        if "choice" in record:
            choices.setdefault(record["task_type"], []).append(record["choice"])
    return {task: float(np.mean(values)) for task, values in choices.items()}


def episode_scores(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Score (COM, DIS, choice) -> task -> the score of each episode, in their order."""
    scores: dict[str, dict[str, list[float]]] = {}
    for record in records:
        own = {name: value for name, value in item_scores(record).items() if name in ("COM", "DIS")}
        for name, value in {**own, **{k: record[k] for k in ("choice",) if k in record}}.items():
            scores.setdefault(name, {}).setdefault(record["task_type"], []).append(round(value, 3))
    return scores


def own_means(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means of what one world's judge reports and others do not, over the records that have it."""
    plausible = [record["plausible"] for record in records if "plausible" in record]
    return {"plausible": float(np.mean(plausible))} if plausible else {}


def kept_tokens(drawn: Sequence[Drawn]) -> dict[str, dict[str, float]]:
    """Per task how well the bridge separated the target subjects' reference tokens from their distractors'.

    Returns:
        Task -> precision (of the kept tokens that show a subject, the fraction that show a target) and recall (of the
        tokens that show a target subject, the fraction that are kept), in [0, 1]; empty without a mask.
    """
    counts: dict[str, Counter[str]] = {}
    for one in drawn:
        for candidates, blocked in zip(one.episode.candidates, one.latents.blocked, strict=False):
            kept = ~blocked.cpu().numpy()
            targets = tokens_of([s for s in candidates if s.is_target], one.episode.canvas, kept.shape)
            shown = tokens_of(candidates, one.episode.canvas, kept.shape)
            count = counts.setdefault(one.episode.task, Counter())
            count.update(kept=int((kept & shown).sum()), targets=int(targets.sum()), both=int((kept & targets).sum()))
    return {
        task: {"precision": c["both"] / max(c["kept"], 1), "recall": c["both"] / max(c["targets"], 1)}
        for task, c in counts.items()
    }


def tokens_of(subjects: Sequence[Subject], canvas: int, grid: tuple[int, ...]) -> np.ndarray:
    """(rows, columns) bool: tokens whose centre lies in the box of one of `subjects`."""
    y, x = ((np.arange(n) + 0.5) / n * canvas for n in grid)
    inside = np.zeros(grid, dtype=bool)
    for subject in subjects:
        left, top, right, bottom = subject.box
        inside |= ((y >= top) & (y < bottom))[:, None] & (x >= left) & (x < right)
    return inside


def score_table(reports: dict[str, dict[str, Any]]) -> str:
    """Composition, distinction and overall of several reports side by side, as Markdown.

    Chosen: the fraction of references whose target candidate is the nearest to what was drawn. Target only: the
    fraction of images with the target subjects and nothing else.
    """
    rows = []
    for name, report in reports.items():
        average = report["average"]
        right = report["failures"].get("none", 0) / report["pictures"]
        scores = (average["COM"], average["DIS"], report["overall"])
        chosen = f"{np.mean(list(report['choice'].values())):.0%}" if report["choice"] else "-"
        rows.append([name, *(f"{s:.2f}" for s in scores), chosen, f"{right:.0%}"])
    return markdown_table(
        ["weights", "composition (COM)", "distinction (DIS)", "overall", "chosen", "target only"], rows
    )


def task_table(reports: dict[str, dict[str, Any]]) -> str:
    """COM and DIS per task, as Markdown."""
    rows = []
    for task in SCONEEVAL_TASKS:
        row = [task]
        for report in reports.values():
            scores = report["tasks"][task]
            row += [f"{scores['COM']:.2f}", f"{scores['DIS']:.2f}" if "DIS" in scores else "-"]
        rows.append(row)
    return markdown_table(["task", *(f"{n}: {column}" for n in reports for column in ("COM", "DIS"))], rows)


def failure_table(reports: dict[str, dict[str, Any]]) -> str:
    """How many images failed in which way, as Markdown."""
    names: tuple[str, ...] = get_args(Failure)
    rows = [[name, *(str(report["failures"].get(f, 0)) for f in names)] for name, report in reports.items()]
    heads = ["target only" if f == "none" else f.replace("_", " ") for f in names]
    return markdown_table(["images", *heads], rows)


def bridge_table(reports: dict[str, dict[str, Any]]) -> str:
    """What the bridge kept, per task, for the reports that were sampled with it, as Markdown; empty if there is none.

    See `kept_tokens`.
    """
    rows = [
        [name, f"{report['blocked_share']:.0%}", task, f"{kept['precision']:.0%}", f"{kept['recall']:.0%}"]
        for name, report in reports.items()
        for task, kept in report["kept"].items()
    ]
    heads = ["weights", "blocked", "task", "subject tokens kept: precision", "recall"]
    return markdown_table(heads, rows) if rows else ""


TABLES = (score_table, task_table, failure_table, bridge_table)
"""What `mini report` prints."""
