"""Where the result of a study goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scone_pl.files import read_json, write_json
from scone_pl.outputs import check_output_file, check_output_folder
from scone_pl.study.page import FIGURES
from scone_pl.study.pages import DOCS, write_pages
from scone_pl.study.plot import draw_histograms, draw_maps, plot
from scone_pl.study.result import Result, collect
from scone_pl.study.run import ROOT, root_of
from scone_pl.study.runner import Job
from scone_pl.study.spec import MINI, Study


def check_outputs(study: Study, output: Path | None, *, quick: bool) -> None:
    """Raises `UserError` if the runs or their result could not be written."""
    check_output_folder(ROOT)
    if not quick:
        folder = output or default_output(study)
        check_output_folder(folder, files=[f"{study.name}{end}" for end in (".json", *FIGURES)])
        check_output_file(folder.with_suffix(".md"))


def default_output(study: Study) -> Path:
    """Folder of results that are kept."""
    return DOCS if study.scale == MINI else root_of(study) / "results"


def keep(study: Study, jobs: Sequence[Job], output: Path | None = None, *, quick: bool = False) -> list[str]:
    """Collects finished runs; writes the JSON, the figures and the page.

    Args:
        study: whose runs they are.
        jobs: all finished.
        output: folder of results that are kept.
        quick: whether they were quick, which is never kept.

    Returns:
        Lines that say where everything is.
    """
    output = output or default_output(study)
    result = Result(collect(study, [read_json(job.result, dict) for job in jobs]))
    folder, lines = ROOT / "quick" if quick else output, []
    kept = output / f"{study.name}.json"
    if not quick and kept.is_file() and (more := _larger(Result.read(kept), result)):
        folder = ROOT / "partial"
        lines.append(f"{kept} has {more} and stays; this result goes to {folder}")
    write_json(dict(result.content), folder / kept.name)
    plot(result, folder / f"{study.name}.png")
    for name in result.of_kind("layers", "test")[:1]:
        draw_maps(result, name, folder / f"{study.name}_maps.png")
        draw_histograms(result, name, folder / f"{study.name}_histograms.png")
    return [*lines, f"{folder / kept.name}   {write_pages(folder, study.file.parent)}"]


def _larger(kept: Result, new: Result) -> str:
    """What a kept result has and a new one lacks."""
    if lacking := [name for name in kept.arms if name not in new.arms]:
        return f"the arms {', '.join(lacking)}"
    return f"{kept.seeds} seeds" if kept.seeds > new.seeds else ""
