"""The previews that a training run draws at its validations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from scone_pl.errors import UserError

_FILE = re.compile(r"step-(\d+)\.png")


@dataclass(frozen=True)
class Preview:
    """One image grid."""

    step: str
    """Step of the chain, empty if the run is none."""
    number: int
    """Optimizer steps so far."""
    file: Path

    @property
    def title(self) -> str:
        return f"{self.step}, step {self.number}" if self.step else f"step {self.number}"


def find_previews(run: Path) -> list[Preview]:
    """All previews of a run or of the steps of a chain, in the order in which they were drawn.

    Raises:
        UserError: no such run, or it has none yet.
    """
    if not run.is_dir():
        raise UserError(f"--previews {run}: no such folder; give the output_dir of a run")
    found = [
        Preview("" if folder == run else folder.name, int(match[1]), file)
        for folder in (run, *sorted(path for path in run.iterdir() if path.is_dir()))
        for file in (folder / "previews").glob("step-*.png")
        if (match := _FILE.fullmatch(file.name))
    ]
    if not found:
        raise UserError(f"--previews {run}: has no previews/step-*.png yet; they are drawn at each validation")
    first = {step: min(p.file.stat().st_mtime for p in found if p.step == step) for step in {p.step for p in found}}
    return sorted(found, key=lambda preview: (first[preview.step], preview.step, preview.number))
