"""`python -m scone_pl agreement`: how far two judges, or a judge and people, agree on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scone_pl.errors import UserError
from scone_pl.evaluation.agreement.requirements import Requirement, failures
from scone_pl.evaluation.agreement.sources import is_table
from scone_pl.evaluation.benchmarks import find_benchmark
from scone_pl.evaluation.folder import name_of_scores
from scone_pl.evaluation.published import unique_names
from scone_pl.evaluation.steps import print_json, print_line
from scone_pl.files import write_json, write_text
from scone_pl.outputs import check_output_folder
from scone_pl.ranges import check_whole

_FILES = ("agreement.md", "agreement.json", "report.html")
MAX_RESAMPLES = 100_000


def agreement(
    candidate: list[str],
    reference: list[str] | None = None,
    ratings: list[str] | None = None,
    benchmark: str | None = None,
    output: str | None = None,
    columns: list[str] | None = None,
    require: list[str] | None = None,
    names: list[str] | None = None,
    resamples: int = 300,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Print how far a candidate judge agrees with a reference judge, or with people, on the same images.

    Args:
        candidate: scores.jsonl of the candidate judge, one for each system (model) whose images it judged.
        reference: scores.jsonl of the reference judge, in the same order of systems.
        ratings: Instead of --reference, people's ratings: CSV tables, or folders of DreamBench++'s raw ratings.
        benchmark: Benchmark of the scores; needed for scores.jsonl.
        output: Folder for agreement.md, agreement.json, report.html and plots; by default nothing is written.
        columns: Only these columns, such as PF SC; by default all that both have.
        require: conditions, such as 'SC.spearman>=0.6' or 'TASK/PF.bias<1'; exit status 1 if one fails.
        names: What to call the reference and the candidate.
        resamples: Number of bootstrap resamples; 0 = no intervals.
        seed: Seed of the bootstrap.
        json: Print everything as JSON.
    """
    check_whole("--seed", seed)
    check_whole("--resamples", resamples, maximum=MAX_RESAMPLES)
    if (reference is None) == (ratings is None):
        raise UserError("give either --reference (scores of another judge) or --ratings (of people)")
    if names is not None and len(names) != 2:
        raise UserError(f"--names: give two, for the reference and the candidate, not {len(names)}")
    requirements = [Requirement.parse(text) for text in require or []]
    if output is not None:
        check_output_folder(Path(output), files=_FILES)
    from scone_pl.evaluation.agreement.compare import compare
    from scone_pl.evaluation.agreement.sources import read_source, with_system

    chosen = None if benchmark is None else find_benchmark(benchmark)
    scores = _scores(candidate)
    systems = unique_names([name_of_scores(Path(file)) for file in _scores(reference or []) or scores])
    if reference is not None and len(_scores(reference)) != len(scores):
        raise UserError(
            f"--reference names {len(_scores(reference))} files of scores, --candidate {len(scores)}; name one for "
            "each system on both sides, in the same order"
        )
    titles = names or ["reference" if reference is not None else "people", "candidate"]
    first = read_source(reference or ratings or [], systems, chosen, titles[0])
    second = read_source(candidate, systems, chosen, titles[1])
    first, second = with_system(first, second), with_system(second, first)
    for column in columns or []:
        if column not in first.ratings or column not in second.ratings:
            known = [name for name in first.ratings if name in second.ratings]
            raise UserError(f"--columns: not both sides have {column}; both have {', '.join(known) or 'none'}")
    if columns:
        first.ratings = {column: first.ratings[column] for column in columns}
    result = compare(first, second, resamples=resamples, seed=seed)
    failed = failures(requirements, result)
    if output is not None:
        _write(Path(output), result, first, second)
    if json:
        print_json({**result, "failed": failed})
    else:
        from scone_pl.evaluation.agreement.tables import markdown

        print_line(markdown(result))
        for line in failed:
            print_line(line)
    return 1 if failed else 0


def _scores(files: Sequence[str]) -> list[str]:
    """Those that are scores of a judge: neither tables nor folders."""
    return [file for file in files if not Path(file).is_dir() and not is_table(Path(file))]


def _write(folder: Path, result: dict, first: object, second: object) -> None:  # type: ignore[type-arg]  # as in JSON
    from scone_pl.evaluation.agreement.plots import write_plots
    from scone_pl.evaluation.agreement.report import write_report
    from scone_pl.evaluation.agreement.tables import markdown

    write_text(markdown(result), folder / "agreement.md")
    write_json(result, folder / "agreement.json")
    plots = write_plots(result, first, second, folder)  # type: ignore[arg-type]  # typed without importing numpy
    write_report(folder / "report.html", result, [first, second], plots)  # type: ignore[list-item]  # typed without importing numpy
