"""The table of published rows with ours."""

from __future__ import annotations

from pathlib import Path

import yaml

from scone_pl.evaluation.similarity.scores import COLUMNS, OWN_COLUMNS, Result
from scone_pl.markdown import markdown_table

FILE = Path(__file__).parent / "published.yaml"


def markdown(result: Result, references: int, name: str, views: str) -> str:
    """The published rows for this number of references, then ours with intervals.

    With `views` given instead of all, values are not comparable, and there are no published rows.
    """
    published = yaml.safe_load(FILE.read_text(encoding="utf-8")).get(references, {}) if views == "all" else {}
    rows = [
        [method, *("-" if value is None else f"{value:.3f}" for value in values), *["-"] * len(OWN_COLUMNS)]
        for method, values in published.items()
    ]
    ours = []
    for column in (*COLUMNS, *OWN_COLUMNS):
        low, high = result.intervals[column]
        ours.append(f"{result.columns[column]:.3f} [{low:.3f}, {high:.3f}]")
    rows.append([f"**{' '.join(name.replace('|', '/').split())}**", *ours])
    compared = "all views of a subject" if views == "all" else "the given view only (not comparable with papers)"
    shown = [*result.missing[:5], *(["..."] if len(result.missing) > 5 else [])]
    listed = f" ({', '.join(shown)})" if shown else ""
    note = (
        f"{result.images} images of {len(result.groups)} {'subjects' if references == 1 else 'groups of subjects'}, "
        f"compared with {compared}; 95 % bootstrap interval over them. Missing images: {len(result.missing)}{listed}."
    )
    return f"{markdown_table(['Method', *COLUMNS, *OWN_COLUMNS], rows)}\n\n{note}\n"
