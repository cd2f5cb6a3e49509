"""`docs/evidence.md` and a page for each study beside its JSON file under `docs/evidence/`: no number is typed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scone_pl.errors import UserError
from scone_pl.files import write_text
from scone_pl.study.comparisons import Comparisons
from scone_pl.study.page import READING, TEMPLATES, filled, section
from scone_pl.study.result import Result
from scone_pl.study.spec import FOLDER, MINI, Study, read_yaml, study_names

DOCS = Path("docs/evidence")
PUBLISHED = "published.yaml"
"""The paper's tables."""
SETTINGS = "page.yaml"
"""Beside the results: `head` of the front page and `reading`, the page that explains the others (templates); `groups`
of studies in the order of the front page, each with `title`, `text` and `studies`."""
WORDS = ("title", "question", "findings", "answer", "baseline", "contrasts", "frontier", "beside")
"""What a study's file says now, rather than when its result was collected."""


class Entry(NamedTuple):
    """A study on the front page."""

    title: str
    page: str
    answer: str


def write_pages(folder: Path = DOCS, studies: Path = FOLDER) -> Path:
    """Writes the front page beside `folder`, and a page for each study into it, from the results in it.

    Args:
        folder: results, as `study run` writes them.
        studies: the studies' files; their texts replace those stored with the results.

    Returns:
        The front page's file.

    Raises:
        UserError: `folder` holds no result.
    """
    settings = read_yaml(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    names = sorted(file.stem for file in folder.glob("*.json") if not file.stem.endswith("_cost"))
    if not names:
        raise UserError(f"{folder}: holds no result; run `make table5` or another study first")
    results = {name: _read(folder / f"{name}.json", studies) for name in names}
    current = {
        name: Comparisons(result, _published(result, folder)) for name, result in results.items() if result.is_complete
    }
    counts = [sum(numbers) for numbers in zip(*(c.counts for c in current.values()), strict=True)] or [0, 0, 0]
    if "reading" in settings:
        write_text(TEMPLATES.from_string(settings["reading"]).render(counts=counts), folder / READING)
    for name, comparisons in current.items():
        write_text(section(comparisons, folder), folder / f"{name}.md")
    groups = settings.get("groups", [])
    grouped = {name for group in groups for name in group["studies"]}
    groups = [*groups, {"title": "Results", "text": "", "studies": [n for n in names if n not in grouped]}]
    planned = [name for name in study_names(studies) if settings and name not in names]
    text = TEMPLATES.get_template("front.md.j2").render(
        head=TEMPLATES.from_string(settings.get("head", "")).render(counts=counts),
        folder=folder,
        groups=[
            (group["title"], group["text"], [_entry(current[n], folder) for n in group["studies"] if n in current])
            for group in groups
        ],
        planned=[Study.read(studies / f"{name}.yaml") for name in planned],
        outdated=[name for name in names if name not in current],
    )
    page = folder.with_suffix(".md")
    write_text(text, page)
    return page


def _entry(comparisons: Comparisons, folder: Path) -> Entry:
    result = comparisons.result
    answer = filled(result.text("answer"), comparisons) if result.has_findings else ""
    if result.partial:
        answer = f"Only {'; '.join(arm['label'] for arm in result.arms.values())} so far, no answer yet."
    return Entry(result.text("title"), f"{folder.name}/{result.study}.md", answer)


def _read(file: Path, studies: Path) -> Result:
    """A result with the texts of its study's file, where they can still be corrected."""
    result = Result.read(file)
    if not (source := studies / f"{result.study}.yaml").is_file() or result.scale != MINI:
        return result
    study = Study.read(source)
    return Result({**result.content, **{name: getattr(study, name) for name in WORDS}})


def _published(result: Result, folder: Path) -> Mapping[str, Any]:
    """The paper's table that a result corresponds to, if any."""
    if not (name := result.text("paper_table")):
        return {}
    file = next((f for f in (folder / PUBLISHED, DOCS / PUBLISHED) if f.is_file()), None)
    return read_yaml(file)[name] if file else {}
