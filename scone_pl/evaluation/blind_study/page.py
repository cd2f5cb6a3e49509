"""The page: one file with everything in it, from the images of two to four runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scone_pl.data.decoding import decode_rgb, load_file, read_encoded
from scone_pl.data.prompts import Request, read_requests
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError
from scone_pl.evaluation.blind_study.key import StudyItem, StudyKey
from scone_pl.evaluation.folder import EvaluationFolder, benchmark_of_folder, name_of_scores
from scone_pl.evaluation.published import unique_names
from scone_pl.evaluation.report import TEMPLATES
from scone_pl.files import write_text
from scone_pl.image_files import inline_url
from scone_pl.messages import warn
from scone_pl.progress import Progress

MIN_RUNS, MAX_RUNS = 2, 4


@dataclass(frozen=True)
class Run:
    """One model's images."""

    name: str
    images: Path
    """TASK/KEY.png, or KEY.png."""
    prompts: Path | None
    scores: Path | None
    benchmark: str | None


def find_runs(texts: Sequence[str]) -> list[Run]:
    """Runs from `FOLDER` or `NAME=FOLDER`: outputs of `evaluate` or of `predict`, or plain folders of images.

    Raises:
        UserError: fewer than two or more than four, or no such folder.
    """
    if not MIN_RUNS <= len(texts) <= MAX_RUNS:
        raise UserError(f"--runs: a page compares {MIN_RUNS} to {MAX_RUNS} models; these are {len(texts)}")
    runs = []
    for text in texts:
        name, equals, path = text.partition("=")
        folder = Path(path if equals else text)
        if not folder.is_dir():
            raise UserError(f"--runs {text}: no such folder; give the output of evaluate or predict, or TASK/KEY.png")
        evaluation = EvaluationFolder.open(folder, None)
        benchmark = benchmark_of_folder(folder)
        predicted = folder / "predictions"
        images = evaluation.images_of(1) if benchmark else predicted if predicted.is_dir() else folder
        known = name_of_scores(evaluation.scores) if benchmark else folder.resolve().name
        runs.append(
            Run(
                name if equals else known,
                images,
                evaluation.prompts if evaluation.prompts.is_file() else None,
                evaluation.scores if evaluation.scores.is_file() else None,
                benchmark,
            )
        )
    names = unique_names([run.name for run in runs])
    return [
        Run(name, run.images, run.prompts, run.scores, run.benchmark) for name, run in zip(names, runs, strict=True)
    ]


def choose_items(runs: Sequence[Run], prompts: str | None, count: int | None, seed: int) -> list[Request]:
    """Items of which every run has an image, in random order.

    Args:
        runs: the runs.
        prompts: file of prompts; None = that of the first run that has one.
        count: maximum number, drawn at random; None = all.
        seed: of order and choice.

    Raises:
        UserError: no prompts, or no item of which all runs have an image.
    """
    file = prompts or next((run.prompts for run in runs if run.prompts), None)
    if file is None:
        raise UserError(
            "--prompts: give the JSONL file that the images were generated from; no run has a prompts.jsonl"
        )
    requests = read_requests([file])
    shared = [one for one in requests if all(_image_of(run, one).is_file() for run in runs)]
    if not shared:
        raise UserError(f"{file}: of none of its {len(requests)} items do all runs have an image (TASK/KEY.png)")
    if len(shared) < len(requests):
        warn(f"{len(requests) - len(shared)} of {len(requests)} items are left out: not every run has an image of them")
    order = np.random.default_rng([seed, 0]).permutation(len(shared))
    return [shared[number] for number in order[:count]]


def _image_of(run: Run, request: Request) -> Path:
    return run.images / request.task_type / f"{request.key}.png"


def write_study(
    runs: Sequence[Run], requests: Sequence[Request], page: Path, key: Path, *, side: int, seed: int
) -> StudyKey:
    """Writes page and key.

    Args:
        runs: the runs.
        requests: items of the page.
        page: HTML file.
        key: JSON file.
        side: longest side of an image on the page in pixels.
        seed: of the images' order; each rater sees another, drawn from the rater's name.

    Raises:
        UserError: an image cannot be read.
    """
    generator = np.random.default_rng([seed, 1])
    shown: list[dict[str, Any]] = []
    items = []
    with Progress("images", len(requests), unit="items") as bar:
        for request in requests:
            chosen = [runs[number] for number in generator.permutation(len(runs))]
            files = [_image_of(run, request) for run in chosen]
            digests = [hashlib.sha256(read_encoded(file)).hexdigest() for file in files]
            items.append(StudyItem(request.task_type, request.key, [run.name for run in chosen], digests))
            try:
                references = [decode_rgb(content) for content in request.read().references]
            except BrokenSampleError as error:
                raise UserError(str(error)) from None
            # Encoded anew: a file's metadata, such as the settings that programs write into it, may name the model.
            shown.append(
                {
                    "instruction": request.instruction,
                    "references": [inline_url(image, side) for image in references],
                    "images": [inline_url(load_file(file), side) for file in files],
                }
            )
            bar.advance()
    study = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]
    content = json.dumps({"study": study, "items": shown}).replace("<", "\\u003c")
    write_text(TEMPLATES.get_template("study.html").render(content=content), page)
    benchmarks = {run.benchmark for run in runs}
    found = StudyKey(
        study,
        seed,
        [run.name for run in runs],
        benchmarks.pop() if len(benchmarks) == 1 else None,
        {run.name: str(run.scores.resolve()) for run in runs if run.scores},
        items,
    )
    found.write(key)
    return found
