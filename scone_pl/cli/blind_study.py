"""`python -m scone_pl study-page` and `study-choices`: a blind study with people, and its result."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from scone_pl.errors import UserError
from scone_pl.evaluation.agreement.sources import CSV_FIELDS
from scone_pl.evaluation.steps import print_json, print_line
from scone_pl.files import write_json, write_text
from scone_pl.outputs import check_output_folder
from scone_pl.ranges import check_whole

_PAGE, _KEY = "study.html", "study_key.json"
_RESULTS = ("choices.md", "choices.json", "choices.csv")
MAX_SIDE, MAX_RESAMPLES = 4096, 100_000


def study_page(
    runs: list[str],
    output: Path = Path("blind_study"),
    prompts: str | None = None,
    limit: int | None = None,
    side: int = 512,
    seed: int = 0,
) -> int:
    """Make one page on which people choose the best image of two to four models, without knowing whose it is.

    Args:
        runs: The models' images, FOLDER or NAME=FOLDER each: outputs of evaluate or predict, or folders of
            TASK/KEY.png.
        output: Folder for study.html, which goes to the raters, and study_key.json, which does not.
        prompts: JSONL file that the images were generated from; by default the prompts.jsonl of a run.
        limit: Maximum number of items, drawn at random; by default all of which every run has an image.
        side: Longest side of an image on the page in pixels; the page is one file, so smaller is lighter.
        seed: Seed of the choice and order of items and images; the order differs from rater to rater.
    """
    check_whole("--seed", seed)
    check_whole("--side", side, minimum=16, maximum=MAX_SIDE)
    if limit is not None:
        check_whole("--limit", limit, minimum=1)
    check_output_folder(output, files=(_PAGE, _KEY))
    from scone_pl.evaluation.blind_study.page import choose_items, find_runs, write_study

    found = find_runs(runs)
    requests = choose_items(found, prompts, limit, seed)
    write_study(found, requests, output / _PAGE, output / _KEY, side=side, seed=seed)
    size = (output / _PAGE).stat().st_size / 1e6
    print_line(f"{output / _PAGE}: {len(requests)} items, {size:.1f} MB, for the raters")
    print_line(f"{output / _KEY}: whose image is whose; keep it")
    return 0


def study_choices(
    choices: list[str],
    key: Path = Path("blind_study") / _KEY,
    benchmark: str | None = None,
    scores: list[str] | None = None,
    output: Path | None = None,
    resamples: int = 2000,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Print how often each model was chosen, with intervals, and how far a judge's scores agree.

    Args:
        choices: Files that the raters saved, or folders of them.
        key: The study_key.json that was written with the page.
        benchmark: Benchmark of the judge's scores; by default that of the runs.
        scores: scores.jsonl of every model, in the order of --runs; by default those of the runs, if all were judged.
        output: Folder for choices.md, choices.json and choices.csv (for agreement --ratings); by default none.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.
        json: Print everything as JSON.
    """
    check_whole("--seed", seed)
    check_whole("--resamples", resamples, minimum=1, maximum=MAX_RESAMPLES)
    if output is not None:
        check_output_folder(output, files=_RESULTS)
    from scone_pl.evaluation.agreement.sources import read_source
    from scone_pl.evaluation.benchmarks import find_benchmark
    from scone_pl.evaluation.blind_study.choices import read_choices
    from scone_pl.evaluation.blind_study.key import StudyKey
    from scone_pl.evaluation.blind_study.shares import agreement_with, markdown, people, shares_of

    study = StudyKey.read(key)
    if scores is not None and len(scores) != len(study.systems):
        raise UserError(f"--scores: give {len(study.systems)} files, of {', '.join(study.systems)} in this order")
    known = [file for name in study.systems if (file := study.scores.get(name)) and Path(file).is_file()]
    files = scores or (known if len(known) == len(study.systems) else [])
    name = benchmark or study.benchmark
    if scores and name is None:
        raise UserError("--benchmark: say which benchmark these scores are of")
    chosen = read_choices(choices, study)
    result = shares_of(study, chosen, resamples=resamples, seed=seed)
    agreement = None
    if files and name is not None:
        judge = read_source(files, study.systems, find_benchmark(name), "judge")
        agreement = agreement_with(study, chosen, judge, resamples=resamples, seed=seed)
    text = markdown(result, agreement)
    if output is not None:
        write_text(text, output / _RESULTS[0])
        write_json({**result, "agreement": agreement}, output / _RESULTS[1])
        source = people(study, chosen, ["chosen"])
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow([*CSV_FIELDS, "system"])
        for image, raters in source.ratings["chosen"].items():
            for rater, value in raters.items():
                writer.writerow([rater, image.task, image.key, image.sampling, "chosen", int(value), image.system])
        write_text(table.getvalue(), output / _RESULTS[2])
    if json:
        print_json({**result, "agreement": agreement})
    else:
        print_line(text)
    return 0
